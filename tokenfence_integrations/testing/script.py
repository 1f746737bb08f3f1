"""What the simulated provider is told to do: how to answer, how slowly, and what to break."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model calls.

    Args:
        name: One of the request's tools; another one is answered with a 400.
        arguments: A JSON object; or text that is sent as it is, for JSON that is none. Default
            None: the least that the tool's schema allows.

    Example:
        >>> ToolCall("search", {"query": "tides"}).name
        'search'
    """

    name: str
    arguments: Mapping[str, Any] | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """How one request is answered.

    Lengths are wishes: the request's own output cap still applies. Billing follows what real
    servers do: a plain answer is finished and billed in full even if the client has left; a stream
    is billed for its input and for what was generated until the server noticed, but in full if it
    is one of a background response.

    Args:
        latency: Seconds before the first byte. Default 0.
        hold: Keep the answer back until `SimulatedProvider.release()`. Default False.
        output_tokens: Tokens of visible answer that the model wants to write. Default 16.
        text: The answer, instead of `output_tokens` filler words. Default None.
        reasoning_tokens: Hidden output tokens, before and on top of the visible ones. Default 0.
        cached_tokens: Input tokens reported and billed as cached (at most all). Default 0.
        tool_call: Call the request's first tool (True) or the one of that name, unless the request
            ends with a tool's result. Default False: only if the request insists (`tool_choice`)
            and there is no `text`.
        tool_arguments: Arguments of that call; None makes the least that the tool's schema allows.
        tool_calls: Call these tools, side by side, whatever came before. Default none.
        chunk_tokens: Tokens per streamed chunk. Default 1.
        chunk_delay: Seconds before each streamed chunk. Default 0.
        status: Answer with this HTTP error (400 to 599) instead. Default None.
        error_code: The `code` in the error's JSON; None takes OpenAI's usual one for the status.
        retry_after: Seconds in the error's Retry-After header. Default None: no header.
        bill_errors: Bill the call even though `status` is answered. Default False.
        drop: Break the connection: "before" the first byte, with all work done and billed; or
            "during" the answer, halfway. Default None.
        stall: Stop halfway and send nothing more until the client leaves. Default False.
        end_early: End a stream halfway in good order: no finish reason, no usage. Default False.
        corrupt: Put invalid JSON halfway into the answer. Default False.
        omit_usage: Report no usage (it is billed all the same). Default False.
        usage_factor: Reported and billed tokens are this many times the true ones. Default 1.
        continuous_usage: Usage so far on every chat chunk, as vLLM does on request. Default False.
        include_empty_first_chunk: Begin a chat stream with a chunk without choices, as Azure does.
        service_tier: Report and bill this tier; None takes the request's. Default None.
        bill_full_on_disconnect: Bill a stream in full when it is cut short. Default False.

    Raises:
        ValueError: A value outside of its range.

    Example:
        >>> Behavior(output_tokens=300, latency=0.2, drop="during").output_tokens
        300
    """

    latency: float = 0.0
    hold: bool = False
    output_tokens: int = 16
    text: str | None = None
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    tool_call: bool | str = False
    tool_arguments: Mapping[str, Any] | None = None
    tool_calls: Sequence[ToolCall] = ()
    chunk_tokens: int = 1
    chunk_delay: float = 0.0
    status: int | None = None
    error_code: str | None = None
    retry_after: float | None = None
    bill_errors: bool = False
    drop: Literal["before", "during"] | None = None
    stall: bool = False
    end_early: bool = False
    corrupt: bool = False
    omit_usage: bool = False
    usage_factor: float = 1.0
    continuous_usage: bool = False
    include_empty_first_chunk: bool = False
    service_tier: str | None = None
    bill_full_on_disconnect: bool = False

    def __post_init__(self) -> None:
        counts = ("output_tokens", "reasoning_tokens", "cached_tokens", "latency", "chunk_delay")
        for name in (*counts, "usage_factor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}.")
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {self.chunk_tokens!r}.")
        if self.status is not None and not 400 <= self.status <= 599:
            raise ValueError(f"status must be an HTTP error, 400 to 599, got {self.status!r}.")
        if self.drop not in (None, "before", "during"):
            raise ValueError(f'drop must be None, "before" or "during", got {self.drop!r}.')
        calls = (c if isinstance(c, ToolCall) else ToolCall(**c) for c in self.tool_calls)
        object.__setattr__(self, "tool_calls", tuple(calls))  # from JSON they come as objects


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the simulated provider received it.

    Args:
        endpoint: The path on api.openai.com ("/v1/chat/completions"), also for Azure's paths.
        body: The JSON body, or the form's fields. Shared between equal requests: do not change it.
        headers: The HTTP headers; names in any case.
        index: How many requests came before it, since the start or the last `clear()`.
    """

    endpoint: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    index: int

    @property
    def model(self) -> str:
        """The model asked for; empty if none was."""
        return str(self.body.get("model") or "")

    @property
    def tool_results(self) -> int:
        """How many results of tools it brings: the turns of an agent so far."""
        items = self.body.get("messages") or self.body.get("input") or ()
        kinds = [(i.get("role"), i.get("type")) for i in items if isinstance(i, Mapping)]
        return sum(role == "tool" or kind == "function_call_output" for role, kind in kinds)


Say = str | ToolCall | Sequence[ToolCall]
"""What the model says: a text, a call of a tool, or several side by side."""

Script = Callable[[Request], Behavior | Say | None]
"""Chooses the behavior of a request, or only what is said; the rest, and all of it on None, is as
in the provider's own `behavior`."""


def behavior_for(script: Script | None, request: Request, behavior: Behavior) -> Behavior:
    """What a script makes of the provider's own behavior, for one request."""
    said = script(request) if script else None
    if said is None:
        return behavior
    if isinstance(said, Behavior):
        return said
    if isinstance(said, str):
        return replace(behavior, text=said, tool_call=False, tool_calls=())
    return replace(behavior, tool_calls=(said,) if isinstance(said, ToolCall) else said)


def in_turn(*answers: Behavior | Say) -> Script:
    """A script of answers in the order of the requests; the last one is repeated for ever.

    A request counts when it comes in: also one that is refused or retried.

    Args:
        *answers: A text, a `ToolCall`, several of them side by side, or a whole `Behavior`.

    Returns:
        What `SimulatedProvider(script=...)` takes, for one provider.

    Raises:
        ValueError: There are no answers.

    Example:
        An agent that calls a failing tool fifty times before it gives up:

        >>> with SimulatedProvider(script=in_turn(*[ToolCall("search")] * 50, "I give up.")):
        ...     pass
    """
    if not answers:
        raise ValueError("in_turn() needs at least one answer.")
    left = iter(answers)
    return lambda _: next(left, answers[-1])

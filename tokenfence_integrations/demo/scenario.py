"""Ten calls at once, watched on the wire: the same for a bare client and for a guarded one.

What each call cost is worked out here from what was really sent and from the usage that the
server reported, not from the guard's books: so the one can be held against the other.
"""

from __future__ import annotations

import asyncio
import enum
import json
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.usage import Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    from openai.types import CompletionUsage

PriceOf = Callable[[str, Usage], int]
"""(model, usage) -> cost in nano-dollars."""

STOPPED_MODEL = "tokenfence"
"""The model of the reply that a guard gives in place of a call that does not fit."""

QUESTIONS = (
    "Why is the sky blue?",
    "How does a bicycle stay upright?",
    "What makes bread rise in the oven?",
    "Why do cats purr when they are stroked?",
    "How do vaccines protect us?",
    "Why is the sea salty?",
    "How does a sailing boat move against the wind?",
    "Why do leaves turn red in autumn?",
    "How do bees find their way home?",
    "What causes the tides of the sea?",
)

_ROUNDING = 100_000  # a budget made up by the demo is a multiple of $0.0001


class State(enum.Enum):
    """Where a call is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    ANSWERED = "answered"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass
class Call:
    """One call of the scenario: what was asked, what was sent, and what came of it.

    Args:
        number: Its place in the plan, from 1.
        question: The prompt.
        asked: The model that the caller asks for.
        max_tokens: The longest answer that the caller asks for, in tokens.
        streamed: Whether the answer is streamed.
        state: Where it is in its life.
        sent_model: The model in the request that went out; empty if none did.
        sent_max_tokens: The output limit in that request.
        input_tokens: Of the prompt, as the server reported.
        output_tokens: Of the answer, as the server reported.
        cost: What these cost, in nano-dollars.
        wait: Seconds from asking until the request went out, or the call was stopped.
        error: Why it failed; empty if it did not.
    """

    number: int
    question: str
    asked: str
    max_tokens: int
    streamed: bool
    state: State = State.WAITING
    sent_model: str = ""
    sent_max_tokens: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    wait: float = 0.0
    error: str = ""
    _started: float = field(default=0.0, repr=False)

    def start(self) -> None:
        """Note that the caller has asked."""
        self._started = time.perf_counter()

    def sent(self, body: dict[str, Any]) -> None:
        """Note that a request has gone out, and with which model and output limit."""
        self.state = State.RUNNING
        self.wait = time.perf_counter() - self._started
        self.sent_model = body["model"]
        self.sent_max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))

    def answered(self, model: str, usage: CompletionUsage | None, price: PriceOf) -> None:
        """Note the reply's model and usage, and what they cost as the model that was sent."""
        if model == STOPPED_MODEL:
            self.state = State.STOPPED
            self.wait = time.perf_counter() - self._started
        elif usage is None:
            self.failed("the server reported no usage")
        else:
            self.state = State.ANSWERED
            self.input_tokens = usage.prompt_tokens
            self.output_tokens = usage.completion_tokens
            self.cost = price(self.sent_model, _counted(usage))

    def failed(self, why: str) -> None:
        """Note that the call came to nothing."""
        self.state = State.FAILED
        self.error = why

    @property
    def fell_back(self) -> bool:
        """Whether a cheaper model was sent than was asked for."""
        return bool(self.sent_model) and self.sent_model != self.asked

    @property
    def cut_to(self) -> int | None:
        """The output limit that the guard put on the call, if it is lower than the caller's."""
        cap = self.sent_max_tokens
        return cap if cap is not None and cap < self.max_tokens else None


_current_call: ContextVar[Call] = ContextVar("_current_call")


def plan(model: str, *, calls: int, max_tokens: int) -> list[Call]:
    """The calls of the scenario, every second one streamed.

    Args:
        model: The model that all of them ask for.
        calls: How many, at least 1.
        max_tokens: The longest answer that each asks for, in tokens.

    Example:
        >>> [call.streamed for call in plan("gpt-4o", calls=3, max_tokens=80)]
        [False, True, False]
    """
    return [
        Call(
            number=number,
            question=QUESTIONS[(number - 1) % len(QUESTIONS)],
            asked=model,
            max_tokens=max_tokens,
            streamed=number % 2 == 0,
        )
        for number in range(1, calls + 1)
    ]


def watched_http_client(*, local: bool) -> DefaultAsyncHttpxClient:
    """An HTTP client for ``AsyncOpenAI`` that notes each request in the call that made it.

    Args:
        local: Whether the server is on this machine, so that no proxy must come between.
    """
    import openai

    async def note(request: Any) -> None:
        _current_call.get().sent(json.loads(request.content))

    return openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]}, trust_env=not local)


async def run(client: AsyncOpenAI, calls: Iterable[Call], price: PriceOf) -> None:
    """Make all calls at once, and fill them in as they go.

    Args:
        client: A client, bare or guarded, over a ``watched_http_client``.
        calls: As ``plan`` gives them.
        price: What the usage of a model costs, in nano-dollars.
    """
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(_make(client, call, price))


async def _make(client: AsyncOpenAI, call: Call, price: PriceOf) -> None:
    import openai

    _current_call.set(call)  # each task has a context of its own
    call.start()
    try:
        model, usage = await (_stream if call.streamed else _create)(client, call)
    except openai.OpenAIError as error:
        call.failed(str(error))
    else:
        call.answered(model, usage, price)


async def _create(client: AsyncOpenAI, call: Call) -> tuple[str, CompletionUsage | None]:
    reply = await client.chat.completions.create(
        model=call.asked,
        max_tokens=call.max_tokens,
        messages=[{"role": "user", "content": call.question}],
    )
    return reply.model, reply.usage


async def _stream(client: AsyncOpenAI, call: Call) -> tuple[str, CompletionUsage | None]:
    stream = await client.chat.completions.create(
        model=call.asked,
        max_tokens=call.max_tokens,
        messages=[{"role": "user", "content": call.question}],
        stream=True,
        stream_options={"include_usage": True},
    )
    model, usage = "", None
    async with stream:
        async for chunk in stream:
            model, usage = chunk.model, chunk.usage or usage
    return model, usage


def _counted(reported: CompletionUsage) -> Usage:
    details = reported.prompt_tokens_details
    return Usage(
        input_tokens=reported.prompt_tokens,
        output_tokens=reported.completion_tokens,
        cached_tokens=(details and details.cached_tokens) or 0,
    )


def total_cost(calls: Iterable[Call]) -> int:
    """What the calls cost together, in nano-dollars."""
    return sum(call.cost for call in calls)


def budget_for(calls: Iterable[Call], *, share: int = 4) -> int:
    """A budget for about ``share`` calls like these.

    Args:
        calls: Calls that have been made; those without a cost do not count.
        share: How many of them the budget shall pay for. Default 4.

    Returns:
        ``share`` times their mean cost, rounded up to $0.0001, in nano-dollars.

    Raises:
        ValueError: None of the calls cost anything.
    """
    costs = [call.cost for call in calls if call.cost]
    if not costs:
        raise ValueError("no call was answered, so there is no cost to make a budget from")
    steps = -(-share * sum(costs) // (len(costs) * _ROUNDING))  # rounded up, in integers
    return steps * _ROUNDING

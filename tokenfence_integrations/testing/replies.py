"""What the simulated model says: some hidden reasoning, then a text or calls of tools."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenfence_integrations.testing.answers import Job, ProviderError
from tokenfence_integrations.testing.counting import Generation, generate
from tokenfence_integrations.testing.schemas import smallest_instance
from tokenfence_integrations.testing.script import ToolCall


class WrittenCall(NamedTuple):
    """A call of a tool as the model wrote it; the cap may have cut its arguments."""

    id: str
    name: str
    name_tokens: int
    written: Generation
    """The arguments."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One choice's worth of output.

    Args:
        text: The visible answer; empty where tools were to be called.
        calls: The calls of tools, in order.
        reasoning_tokens: Hidden tokens, before everything else.
        lost_tokens: Tokens of a call whose very name did not fit below the cap.
        truncated: The cap cut it short.
    """

    text: Generation
    calls: Sequence[WrittenCall]
    reasoning_tokens: int
    lost_tokens: int
    truncated: bool

    @property
    def tokens(self) -> int:
        """Billed output tokens."""
        called = sum(call.name_tokens + call.written.tokens for call in self.calls)
        return self.reasoning_tokens + len(self.text.pieces) + called + self.lost_tokens


def reply_to(
    job: Job, *, last_type: str, response_format: Mapping[str, Any] | None, cap: int | None
) -> Reply:
    """Let the model say what the behavior, or else the request, wants of it.

    Args:
        job: The request.
        last_type: Role or type of what came last in its input.
        response_format: The form of text that the request asks for.
        cap: The most tokens that it may write, hidden ones and tools' names included.

    Raises:
        ProviderError: 400, for a call of a tool that the request does not have.
    """
    calls = _wanted_calls(job, last_type)
    if not calls:
        text = job.write(_wanted_json(job, response_format), cap)
        return Reply(text, (), text.reasoning_tokens, 0, text.truncated)
    return _write_calls(job, calls, cap)


def _write_calls(job: Job, calls: Sequence[ToolCall], cap: int | None) -> Reply:
    tools = _functions(job)
    thought = job.write("", cap)
    left = sys.maxsize if cap is None else cap - thought.reasoning_tokens
    written: list[WrittenCall] = []
    lost, truncated = 0, thought.truncated
    for index, call in enumerate(calls):
        text, name_tokens = _arguments(call, tools), job.tokenizer.count(call.name)
        if truncated or left < name_tokens:
            lost, truncated = 0 if truncated else left, True
            break
        left -= name_tokens
        arguments = generate(job.tokenizer, text, 0, 0, left)
        written.append(WrittenCall(f"call_{job.number}_{index}", call.name, name_tokens, arguments))
        left -= arguments.tokens
        truncated = arguments.truncated
    return Reply(thought, written, thought.reasoning_tokens, lost, truncated)


def _arguments(call: ToolCall, tools: Mapping[str, Mapping[str, Any]]) -> str:
    if call.name not in tools:
        raise ProviderError(400, f"The request has no tool {call.name!r}, only {list(tools)}.")
    if isinstance(call.arguments, str):
        return call.arguments
    if call.arguments is None:
        return json.dumps(smallest_instance(tools[call.name].get("parameters") or {}))
    return json.dumps(call.arguments)


def _wanted_calls(job: Job, last_type: str) -> Sequence[ToolCall]:
    """The scripted calls, else that of `tool_call`, else one that the request insists on."""
    behavior, choice = job.behavior, job.body.get("tool_choice")
    names = list(_functions(job))
    if behavior.tool_calls:
        return behavior.tool_calls
    if not names or choice == "none":
        return ()
    wanted: bool | str = False
    if last_type not in ("tool", "function_call_output"):
        wanted = behavior.tool_call
    if not wanted and behavior.text is None:
        wanted = _insisted(choice)
    if not wanted:
        return ()
    return (ToolCall(names[0] if wanted is True else wanted, behavior.tool_arguments),)


def _insisted(choice: Any) -> bool | str:
    """The tool that a request's `tool_choice` insists on; True: any, False: none."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        # Chat Completions nests the function, Responses does not.
        return str(choice.get("function", choice)["name"])
    return bool(choice == "required")


def _functions(job: Job) -> dict[str, Mapping[str, Any]]:
    """The request's own tools by name; hosted ones have none."""
    # Chat Completions nests the function, Responses does not.
    tools: Iterator[Mapping[str, Any]] = (
        tool.get("function", tool) for tool in job.body.get("tools") or ()
    )
    return {tool["name"]: tool for tool in tools if "name" in tool}


def _wanted_json(job: Job, response_format: Mapping[str, Any] | None) -> str | None:
    """The JSON text that a response format asks for, unless the behavior has a text."""
    if response_format is None or job.behavior.text is not None:
        return None
    if response_format.get("type") == "json_object":
        return "{}"
    if response_format.get("type") != "json_schema":
        return None
    # Chat Completions nests the schema, Responses does not.
    schema = response_format.get("json_schema", response_format)["schema"]
    return json.dumps(smallest_instance(schema))

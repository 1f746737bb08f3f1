"""A conversation with tools, told in plain messages, for a last answer that uses none.

Providers differ in what they accept of tool calls in a request that offers no tools (some refuse
it), so calls and their results become text. That also makes the conversation countable, and any
part of it can be left out.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    merge_message_runs,
)

__all__ = ["shortened", "transcript"]

LEFT_OUT = " […] "
SHORTEST = 200
"""Characters below which a text is left out rather than cut once more."""


def transcript(messages: Sequence[BaseMessage], instruction: str) -> list[BaseMessage]:
    """The conversation without tools, and an instruction at its end.

    Args:
        messages: What would have been sent, the system message included.
        instruction: What the user says last.

    Returns:
        New messages; those that have nothing to do with tools as they were.

    Example:
        >>> [message.type for message in transcript([HumanMessage("Why?")], "Sum up.")]
        ['human', 'human']
    """
    told: list[BaseMessage] = []
    calls: dict[str, str] = {}
    for message in messages:
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                arguments = json.dumps(call["args"], ensure_ascii=False, default=str)
                calls[str(call["id"])] = f"{call['name']}({arguments})"
            text = str(message.text)
            if text:
                told.append(AIMessage(text))
        elif isinstance(message, ToolMessage):
            call_told = calls.get(message.tool_call_id, message.name or "a tool")
            told.append(HumanMessage(f"Result of {call_told}:\n{message.text}"))
        else:
            told.append(message)
    return [*told, HumanMessage(instruction)]


def shortened(
    messages: Sequence[BaseMessage], size: Callable[[list[BaseMessage]], int], most: int
) -> list[BaseMessage] | None:
    """A transcript, cut until it fits: the longest texts first, the request and system prompt last.

    Args:
        messages: What `transcript` made.
        size: Measures a conversation.
        most: The largest size that fits.

    Returns:
        The messages, consecutive ones of one side joined; None if nothing is left to cut.
    """
    kept = [*messages]
    while True:
        joined = merge_message_runs(kept, chunk_separator="\n\n")
        if size(joined) <= most:
            return joined
        place = _longest(kept)
        if place is None:
            return None
        cut = _cut(kept[place])
        kept[place : place + 1] = [] if cut is None else [cut]


def _longest(messages: Sequence[BaseMessage]) -> int | None:
    """Where the longest message is that may be cut; None if there is none."""
    first = next((n for n, message in enumerate(messages) if message.type == "human"), 0)
    places = [
        place
        for place, message in enumerate(messages[:-1])
        if place != first and message.type != "system"
    ]
    return max(places, key=lambda place: _length(messages[place]), default=None)


def _length(message: BaseMessage) -> int:
    content: Any = message.content
    return len(content if isinstance(content, str) else str(content))


def _cut(message: BaseMessage) -> BaseMessage | None:
    """Half of a text, from its two ends; None where it is too short, or more than text."""
    text = message.content
    if not isinstance(text, str) or len(text) < SHORTEST:
        return None
    quarter = len(text) // 4
    return type(message)(text[:quarter] + LEFT_OUT + text[-quarter:])

"""Replies that we make up when a call is refused with ``on_limit="stop"``.

They are JSON (or server-sent events) in the form that the endpoint itself answers with, so that the
SDK turns them into its own types: raw, streamed and parsed ones alike.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from tokenfence_integrations.errors import BudgetExceeded, in_units

__all__ = ["MODEL", "refusal_text", "reply_events", "reply_json"]

MODEL = "tokenfence"
"""What a synthetic reply names as its model."""

ID = "tokenfence-budget-exceeded"
NO_CHAT_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
NO_RESPONSE_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def refusal_text(refusal: BudgetExceeded) -> str:
    """What a synthetic reply says: the budget, what is gone of it, and when it is renewed."""

    def show(amount: float) -> str:
        return in_units(amount, "usd") if refusal.quantity == "usd" else f"{amount:,.0f}"

    limit = in_units(refusal.budget, refusal.quantity)
    gone = [f"spent {show(refusal.spent)}"]
    if refusal.uncertain:
        gone.append(f"uncertain {show(refusal.uncertain)}")
    if refusal.reserved:
        gone.append(f"in flight {show(refusal.reserved)}")
    text = f"[TokenFence] Budget of {limit} exceeded ({', '.join(gone)}). Request blocked."
    return f"{text} {refusal.renewal}".rstrip()


def reply_json(kind: str, text: str, *, structured: bool = False) -> bytes:
    """A refusal as a whole answer.

    Args:
        kind: ``"chat"``, ``"completions"`` or ``"responses"``.
        text: What it says.
        structured: Whether the caller wants an object: then the text is a refusal, since a made-up
            object would be a lie.

    Returns:
        The body of the answer.
    """
    return json.dumps(_WHOLE[kind](text, structured)).encode()


def reply_events(
    kind: str, text: str, *, structured: bool = False, with_usage: bool = False
) -> bytes:
    """A refusal as a stream of server-sent events; arguments as for `reply_json`.

    Args:
        kind: As for `reply_json`.
        text: As for `reply_json`.
        structured: As for `reply_json`.
        with_usage: Whether the caller asked for the usage chunk.
    """
    lines = []
    for event in _STREAMED[kind](text, structured, with_usage):
        if kind == "responses":
            lines.append(f"event: {event['type']}")
        lines.append(f"data: {json.dumps(event)}\n")
    if kind != "responses":
        lines.append("data: [DONE]\n")
    return ("\n".join(lines) + "\n").encode()


def _chat(text: str, structured: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": text if structured else None}
    return {
        "id": ID,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": NO_CHAT_USAGE,
    }


def _chat_events(text: str, structured: bool, with_usage: bool) -> Iterator[dict[str, Any]]:
    said = {"refusal": text} if structured else {"content": text}
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", **said}, None),
        ({}, "stop"),
    ]
    base = {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": MODEL,
    }
    for delta, reason in deltas:
        yield {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    if with_usage:
        yield {**base, "choices": [], "usage": NO_CHAT_USAGE}


def _completions(text: str, structured: bool) -> dict[str, Any]:
    return {
        "id": ID,
        "object": "text_completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}],
        "usage": NO_CHAT_USAGE,
    }


def _completions_events(text: str, structured: bool, with_usage: bool) -> Iterator[dict[str, Any]]:
    whole = _completions(text, structured)
    usage = whole.pop("usage")
    yield whole
    if with_usage:
        yield {**whole, "choices": [], "usage": usage}


def _responses(text: str, structured: bool) -> dict[str, Any]:
    return {
        "id": ID,
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": MODEL,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [_response_message(text, structured)],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": NO_RESPONSE_USAGE,
    }


def _response_message(text: str, structured: bool) -> dict[str, Any]:
    return {
        "id": ID,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [_response_part(text, structured)],
    }


def _response_part(text: str, structured: bool) -> dict[str, Any]:
    if structured:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": []}


def _responses_events(text: str, structured: bool, with_usage: bool) -> Iterator[dict[str, Any]]:
    whole = _responses(text, structured)
    unfinished = {**whole, "status": "in_progress", "output": [], "usage": None}
    item = {"output_index": 0, "item_id": ID}
    part = {**item, "content_index": 0}
    message = _response_message(text, structured)
    kind = "refusal" if structured else "output_text"
    said = "refusal" if structured else "text"
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": unfinished},
        {"type": "response.in_progress", "response": unfinished},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**message, "status": "in_progress", "content": []},
        },
        {
            "type": "response.content_part.added",
            **part,
            "part": _response_part("", structured),
        },
        {"type": f"response.{kind}.delta", **part, "delta": text, "logprobs": []},
        {"type": f"response.{kind}.done", **part, said: text, "logprobs": []},
        {
            "type": "response.content_part.done",
            **part,
            "part": _response_part(text, structured),
        },
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": whole},
    ]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


_WHOLE = {"chat": _chat, "completions": _completions, "responses": _responses}
_STREAMED = {
    "chat": _chat_events,
    "completions": _completions_events,
    "responses": _responses_events,
}

"""Usage as OpenAI reports it, brought into a `Usage`; from SDK models and from plain JSON alike."""

import json
from collections.abc import Mapping
from math import inf
from typing import Any

from tokenfence_integrations.usage import Usage

__all__ = ["get", "members", "response_usage", "token_usage", "usage_in_bytes"]


NO_MEMBERS: Mapping[str, Any] = {}


def members(value: Any) -> Mapping[str, Any]:
    """The members of a JSON object or of an SDK model; none for anything else.

    Not ``getattr``: with a default it costs microseconds on a pydantic model that lacks the field,
    and this runs for every answer and every chunk of a stream.
    """
    if type(value) is dict:
        return value
    fields: Mapping[str, Any] = getattr(value, "__dict__", NO_MEMBERS)
    extra = getattr(value, "__pydantic_extra__", None)
    return {**fields, **extra} if extra else fields


def get(value: Any, name: str) -> Any:
    """One member of a JSON object or of an SDK model; None if it is not there."""
    return members(value).get(name)


def token_usage(usage: Any) -> Usage | None:
    """Usage of chat, completions, embeddings, responses, images and transcriptions.

    Args:
        usage: The ``usage`` object of an answer, or None.

    Returns:
        The counts; None if nothing usable was reported.
    """
    reported = members(usage)
    into = reported.get("prompt_tokens")
    if into is not None:
        out = reported.get("completion_tokens") or 0
        in_details = members(reported.get("prompt_tokens_details"))
        out_details = members(reported.get("completion_tokens_details"))
    else:
        into = reported.get("input_tokens")
        if into is None:
            seconds: Any = reported.get("seconds")
            known = isinstance(seconds, int | float) and 0 <= seconds < inf
            return Usage(audio_ms=-int(-seconds * 1000 // 1)) if known else None
        out = reported.get("output_tokens") or 0
        in_details = members(
            reported.get("input_tokens_details") or reported.get("input_token_details")
        )
        out_details = members(reported.get("output_tokens_details"))
    cached = written = audio_in = image_in = reasoning = audio_out = image_out = 0
    if in_details:
        cached = in_details.get("cached_tokens") or 0
        written = in_details.get("cache_write_tokens") or 0
        audio_in = in_details.get("audio_tokens") or 0
        image_in = in_details.get("image_tokens") or 0
    if out_details:
        reasoning = out_details.get("reasoning_tokens") or 0
        audio_out = out_details.get("audio_tokens") or 0
        image_out = out_details.get("image_tokens") or 0
    counts = Usage(
        into, out, cached, written, reasoning, audio_in, 0, audio_out, image_in, 0, image_out
    )
    # Counts at all? The SDK does not validate its answers.
    return counts if set(map(type, counts)) == {int} and min(counts) >= 0 else None


def response_usage(answer: Any) -> Usage | None:
    """The usage of an answer that carries it in ``usage``."""
    return token_usage(get(answer, "usage"))


def usage_in_bytes(content: bytes, content_type: str) -> dict[str, Any] | None:
    """The JSON object, or the last event with usage, of a body that nobody has parsed.

    Args:
        content: The decoded body.
        content_type: Its media type; event streams are read line by line.

    Returns:
        An object to look for ``usage`` in; None if there is none.
    """
    if "event-stream" not in content_type:
        return _json_object(content)
    found = None
    for line in content.splitlines():
        if line.startswith(b"data:") and b'"usage"' in line:
            event = _json_object(line[5:])
            if event is not None:
                answer = event.get("response", event)
                if isinstance(answer, dict) and answer.get("usage"):
                    found = answer
    return found


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

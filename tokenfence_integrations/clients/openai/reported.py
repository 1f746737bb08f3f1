"""Usage as OpenAI reports it, brought into a `Usage`; from SDK models and from plain JSON alike."""

import json
from collections.abc import Iterable
from math import inf
from typing import Any

from tokenfence_integrations.usage import Usage

__all__ = ["get", "response_usage", "token_usage", "usage_in_bytes"]


def get(value: Any, name: str) -> Any:
    """A member of a JSON object or of an SDK model; None if it is not there.

    ``getattr`` with a default costs microseconds on a pydantic model that lacks the field, and this
    runs for every chunk of a stream.
    """
    if value is None:
        return None
    if type(value) is dict:
        return value.get(name)
    members = getattr(value, "__dict__", None)
    if members is None:  # a transcript as plain text, say
        return None
    found = members.get(name)
    if found is None:
        extra = getattr(value, "__pydantic_extra__", None)
        if extra:
            found = extra.get(name)
    return found


def token_usage(usage: Any) -> Usage | None:
    """Usage of chat, completions, embeddings, responses, images and transcriptions.

    Args:
        usage: The ``usage`` object of an answer, or None.

    Returns:
        The counts; None if nothing usable was reported.
    """
    if usage is None:
        return None
    into = get(usage, "prompt_tokens")
    if into is not None:
        out = get(usage, "completion_tokens") or 0
        in_details = get(usage, "prompt_tokens_details")
        out_details = get(usage, "completion_tokens_details")
    else:
        into = get(usage, "input_tokens")
        if into is None:
            seconds = get(usage, "seconds")
            known = isinstance(seconds, int | float) and 0 <= seconds < inf
            return Usage(audio_ms=-int(-seconds * 1000 // 1)) if known else None
        out = get(usage, "output_tokens") or 0
        in_details = get(usage, "input_tokens_details") or get(usage, "input_token_details")
        out_details = get(usage, "output_tokens_details")
    if in_details is None and out_details is None:
        return Usage(into, out) if _are_counts((into, out)) else None
    counts = Usage(
        input_tokens=into,
        output_tokens=out,
        cached_tokens=get(in_details, "cached_tokens") or 0,
        cache_write_tokens=get(in_details, "cache_write_tokens") or 0,
        input_audio_tokens=get(in_details, "audio_tokens") or 0,
        output_audio_tokens=get(out_details, "audio_tokens") or 0,
        input_image_tokens=get(in_details, "image_tokens") or 0,
        output_image_tokens=get(out_details, "image_tokens") or 0,
        reasoning_tokens=get(out_details, "reasoning_tokens") or 0,
    )
    return counts if _are_counts(counts) else None


def _are_counts(values: Iterable[Any]) -> bool:
    """Whether a server reported counts at all: the SDK does not validate its answers."""
    return all(type(value) is int and value >= 0 for value in values)


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

"""Usage as OpenAI reports it, brought into a `Usage`; from SDK models and from plain JSON alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from tokenfence_integrations.usage import MOST_TOKENS, Usage, are_counts

__all__ = [
    "elements",
    "events_in_bytes",
    "get",
    "members",
    "tier_in",
    "token_usage",
    "usage_in_bytes",
]


NO_MEMBERS: Mapping[str, Any] = {}
MEMBERS = attrgetter("__dict__", "__pydantic_extra__")

new = tuple.__new__

CACHED_BESIDE = "cached_tokens", "prompt_cache_hit_tokens"
"""Where Moonshot and DeepSeek tell what was read from a cache: in the usage itself."""

TEXT_ALONE = (0,) * (len(Usage._fields) - 2)
"""The counts of a usage beside its two totals, where nothing but plain text went in and out."""


def members(value: Any) -> Mapping[str, Any]:
    """The members of a JSON object or of an SDK model; none for anything else.

    Not ``getattr``: with a default it costs microseconds on a pydantic model that lacks the field,
    and this runs for every answer and every chunk of a stream.
    """
    if type(value) is dict:
        return value
    if value is None:
        return NO_MEMBERS
    try:
        fields, extra = MEMBERS(value)
    except AttributeError:  # no model of pydantic's
        return getattr(value, "__dict__", NO_MEMBERS)
    return {**fields, **extra} if extra else fields


def get(value: Any, name: str) -> Any:
    """One member of a JSON object or of an SDK model; None if it is not there."""
    return members(value).get(name)


def elements(value: Any) -> Sequence[Any]:
    """The elements of a JSON array; none for anything else."""
    return value if isinstance(value, list | tuple) else ()


def tier_in(shown: Mapping[str, Any]) -> str | None:
    """The service tier that the members of an answer tell; None if it does not."""
    tier = shown.get("service_tier")
    return tier if isinstance(tier, str) else None


def token_usage(usage: Any) -> Usage | None:
    """Usage of chat, completions, embeddings, responses, images and transcriptions.

    Args:
        usage: The ``usage`` object of an answer, or None.

    Returns:
        The counts; None if nothing usable was reported.
    """
    if usage is None:
        return None
    try:
        # Mostly it is the SDK's of a chat, and of nothing but plain text.
        told = usage.__dict__
        into, out = told["prompt_tokens"], told["completion_tokens"]
        given, made = told["prompt_tokens_details"], told["completion_tokens_details"]
        if (
            (given is None or not (any(given.__dict__.values()) or given.__pydantic_extra__))
            and (made is None or not (any(made.__dict__.values()) or made.__pydantic_extra__))
            and not usage.__pydantic_extra__
            and type(into) is type(out) is int
            and told["total_tokens"] == into + out < MOST_TOKENS
            and into >= 0 <= out
        ):
            return new(Usage, (into, out) + TEXT_ALONE)  # noqa: RUF005 - in half the time
    except (AttributeError, KeyError):  # of another form: JSON, for one
        pass
    reported = members(usage)
    into = reported.get("prompt_tokens")
    if into is not None:  # chat, completions, embeddings
        out = reported.get("completion_tokens") or 0
        given = reported.get("prompt_tokens_details")
        made = reported.get("completion_tokens_details")
        beside = next(filter(None, map(reported.get, CACHED_BESIDE)), 0)
    else:
        into = reported.get("input_tokens")
        if into is None:
            seconds: Any = reported.get("seconds")
            known = isinstance(seconds, int | float) and 0 <= seconds < MOST_TOKENS
            return Usage(audio_ms=-int(-seconds * 1000 // 1)) if known else None
        out = reported.get("output_tokens") or 0
        given = reported.get("input_tokens_details") or reported.get("input_token_details")
        made = reported.get("output_tokens_details")
        beside = 0
    details = _details(members(given), members(made), beside)
    if not are_counts(into, out, *details):
        return None
    # What some servers leave out of their output is in their total, and paid for as output: the
    # reasoning of xAI's models, and that of Google's.
    total = reported.get("total_tokens")
    if are_counts(total) and total > into + out:
        out = total - into
    return new(Usage, (into, out) + details)  # noqa: RUF005 - in half the time


def _details(given: Mapping[str, Any], made: Mapping[str, Any], cached: Any) -> tuple[Any, ...]:
    """The counts of a usage beside its two totals, in the order of `Usage`.

    Args:
        given: The parts of the input.
        made: Those of the output.
        cached: What was read from a cache, if the parts of the input do not tell.
    """
    cached = given.get("cached_tokens") or cached
    written = given.get("cache_write_tokens") or 0
    audio_in = given.get("audio_tokens") or 0
    image_in = given.get("image_tokens") or 0
    reasoning = made.get("reasoning_tokens") or 0
    audio_out = made.get("audio_tokens") or 0
    image_out = made.get("image_tokens") or 0
    return cached, written, reasoning, audio_in, 0, audio_out, image_in, 0, image_out, 0, 0, 0, 0


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
    for event in events_in_bytes(content, b'"usage"'):
        answer = event.get("response", event)
        if isinstance(answer, dict) and answer.get("usage"):
            found = answer
    return found


def events_in_bytes(content: bytes, having: bytes) -> Iterator[dict[str, Any]]:
    """The events of a body that nobody has parsed, as far as it was read.

    Args:
        content: The decoded body.
        having: What the JSON of an event must have in it to be worth parsing.
    """
    for line in content.splitlines():
        if line.startswith(b"data:") and having in line:
            event = _json_object(line[5:])
            if event is not None:
                yield event


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

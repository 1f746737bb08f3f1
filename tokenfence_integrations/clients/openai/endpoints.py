"""What each endpoint of the API means for a budget: its bound, its cap, its usage, its refusal.

One `Endpoint` per path. Everything else of a call is the same for all of them, and is in
`exchange`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tokenfence_integrations.clients.openai import content as contents
from tokenfence_integrations.clients.openai.content import UNKNOWN_WINDOW
from tokenfence_integrations.clients.openai.reasoning import remember
from tokenfence_integrations.clients.openai.reported import (
    elements,
    token_usage,
    usage_in_bytes,
)
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.pricing.images import EDITED_IMAGE_TOKENS, generated_image_tokens
from tokenfence_integrations.pricing.rates import Card, asked_tier
from tokenfence_integrations.pricing.tokens import (
    REQUEST_OVERHEAD,
    byte_bound,
    count_chat,
    count_text,
    text_messages_bound,
)
from tokenfence_integrations.usage import Usage

__all__ = ["BATCHES", "ENDPOINTS", "Body", "Endpoint", "endpoint_of"]

Body = Mapping[str, Any]

CHAT_CAPS = ("max_completion_tokens", "max_tokens")
CHAT_CHANGES = frozenset({*CHAT_CAPS, "n", "service_tier", "prediction"})
"""Keys of a chat that change its bound or its price, beside what the model reads."""

COMPLETIONS_DEFAULT_MAX = 16
"""The legacy completions endpoint's own default of ``max_tokens``."""


def _batch_usage(answer: Body, body: Body) -> Usage | None:
    """The usage of a batch: none as long as nothing is counted."""
    reported = token_usage(answer.get("usage"))
    return reported if reported is not None and any(reported) else None


def _usage_field(answer: Body, body: Body) -> Usage | None:
    return token_usage(answer.get("usage"))


def _responses_usage(answer: Body, body: Body) -> Usage | None:
    remember(answer)
    return _usage_field(answer, body)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How one endpoint is metered.

    Args:
        request: Makes a `CallRequest` of a request body and its uploaded bytes.
        caps: The keys of the body that limit output, the one to set when none is given first.
        usage: Finds the usage among the members of an answer, given the request's body.
        reply: Name of the synthetic reply in `replies`; None: a refusal raises.
        streams_usage: Whether ``stream_options.include_usage`` has to ask for it.
    """

    name: str
    request: Callable[[Body, int, bool], CallRequest]
    caps: tuple[str, ...] = ()
    usage: Callable[[Body, Body], Usage | None] = _usage_field
    reply: str | None = None
    streams_usage: bool = False


def _no_request(body: Body, uploaded: int, exact: bool) -> CallRequest:
    raise AssertionError("a batch's request is made of its file, by batches.batch_request")


BATCHES = Endpoint("batches", _no_request, usage=_batch_usage)
"""Batches are known by their file, not by the body that starts them."""


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint of a request path, however it is written; None if it is not metered."""
    return ENDPOINTS.get("/" + path.split("?", 1)[0].strip("/"))


def _chat(body: Body, uploaded: int, exact: bool) -> CallRequest:
    model, messages = body.get("model") or "", body.get("messages")
    # Nothing but texts is the commonest chat by far, and has a short way of its own.
    texts = text_messages_bound(messages) if type(messages) is list else None
    name = model if type(model) is str else _plain_text(model)
    if texts is None or not contents.CHAT_KEYS.isdisjoint(body):
        request = CallRequest(name, contents.chat_content(body).bound)
    elif exact:
        request = CallRequest(name, texts, lambda card: count_chat(messages, card.known_as))  # type: ignore[arg-type]
    else:
        request = CallRequest(name, texts)
    if not CHAT_CHANGES.isdisjoint(body):
        request.max_output_tokens = _larger(*map(body.get, CHAT_CAPS))
        request.choices = _positive(body.get("n"))
        request.service_tier = asked_tier(body.get("service_tier"))
        prediction = body.get("prediction")
        request.extra_price = contents.unused_prediction(prediction, request.service_tier)
    return request


def _responses(body: Body, uploaded: int, exact: bool) -> CallRequest:
    found = contents.responses_content(body)
    return CallRequest(
        _plain_text(body.get("model") or ""),
        found.bound,
        _count_responses(body) if exact and not found.unseen and not found.images else None,
        _larger(body.get("max_output_tokens"), None),
        service_tier=asked_tier(body.get("service_tier")),
    )


def _compaction(body: Body, uploaded: int, exact: bool) -> CallRequest:
    found = contents.responses_content(body)
    return CallRequest(
        _plain_text(body.get("model") or ""),
        found.bound,
        service_tier=asked_tier(body.get("service_tier")),
    )


def _count_responses(body: Body) -> Callable[[Card], int | None] | None:
    """Text as one user message, which is how the Responses API counts it; None for all else."""
    given, instructions = body.get("input"), body.get("instructions")
    if body.get("tools") or body.get("text") or not isinstance(given, str | list):
        return None
    messages: list[Any] = []
    if isinstance(instructions, str):
        messages.append({"role": "developer", "content": instructions})
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        messages += given
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return None
    plain = [{"role": m.get("role", "user"), "content": m["content"]} for m in messages]
    return lambda card: count_chat(plain, card.known_as)


def _completions(body: Body, uploaded: int, exact: bool) -> CallRequest:
    prompt, suffix = body.get("prompt"), body.get("suffix")
    prompts = _bounds_of_each(prompt)
    if suffix is not None:
        prompts = [into + byte_bound(contents.plain(suffix)) for into in prompts]
    choices = len(prompts) * max(_positive(body.get("n")), _positive(body.get("best_of")))
    given = body.get("max_tokens")
    wanted = COMPLETIONS_DEFAULT_MAX if given is None else _count(given)
    return CallRequest(
        _plain_text(body.get("model") or ""),
        lambda card: _sum_of_windows(prompts, card),
        _text_count(prompt) if exact and suffix is None else None,
        None if wanted is None or wanted < 0 else wanted,  # none at all is of use for logprobs
        choices,
        whole_window=False,
    )


def _embeddings(body: Body, uploaded: int, exact: bool) -> CallRequest:
    given = body.get("input")
    inputs = _bounds_of_each(given)
    return CallRequest(
        _plain_text(body.get("model") or ""),
        lambda card: _sum_of_windows(inputs, card),
        _text_count(given) if exact else None,
        0,
        ceiling=0,
        whole_window=False,
    )


def _embeddings_usage(answer: Body, body: Body) -> Usage | None:
    reported = token_usage(answer.get("usage"))
    if reported is None or not reported.output_tokens:
        return reported
    # Nothing comes out of it: what the total alone tells went in.
    return Usage(reported.input_tokens + reported.output_tokens)


def _images(body: Body, uploaded: int, exact: bool) -> CallRequest:
    model = _plain_text(body.get("model") or "gpt-image-1")
    # The frames of a GIF, each of that size, are drawn on one sheet.
    size = "auto" if body.get("output_format") == "gif" else body.get("size")
    each = generated_image_tokens(
        model,
        str(size or "auto"),
        str(body.get("quality") or "auto"),
        max(0, _count(body.get("partial_images")) or 0),
    )
    pictures = _positive(body.get("n"))
    # Pictures to edit are uploaded, or named; each picture that is made pays for them anew.
    edited = uploaded + EDITED_IMAGE_TOKENS * len(contents.each_of(body.get("images")))
    return CallRequest(
        model,
        (byte_bound(str(body.get("prompt") or "")) + edited) * pictures,
        max_output_tokens=each,
        choices=pictures,
        ceiling=each,
        extra_price=lambda card: card.rates().image * pictures,
    )


def _images_usage(answer: Body, body: Body) -> Usage | None:
    reported = token_usage(answer.get("usage"))
    pictures = len(elements(answer.get("data")))
    if reported is None:
        return Usage(images=pictures) if pictures else None
    drawn = reported.output_image_tokens or reported.output_tokens  # told apart since gpt-image-1.5
    return reported._replace(images=pictures, output_image_tokens=drawn)


# The lowest bit rate of speech codecs is about 4 kbit/s: 500 bytes hold at most a second.
BYTES_PER_SECOND = 500
TRANSCRIPT_CEILING = 2_000  # output tokens of gpt-4o-transcribe; its model page


def _transcription(body: Body, uploaded: int, exact: bool) -> CallRequest:
    milliseconds = uploaded * 1000 // BYTES_PER_SECOND
    prompt = byte_bound(str(body.get("prompt") or ""))

    def into(card: Card) -> int:
        sound = min(milliseconds // 100 + 1, card.context_window or UNKNOWN_WINDOW)
        return prompt + sound

    return CallRequest(
        _plain_text(body.get("model") or ""),
        into,
        max_output_tokens=TRANSCRIPT_CEILING,
        ceiling=TRANSCRIPT_CEILING,
        extra_price=lambda card: card.rates().audio_ms * milliseconds,
    )


def _transcription_usage(answer: Body, body: Body) -> Usage | None:
    reported = token_usage(answer.get("usage"))
    if reported is not None:
        return reported
    if str(body.get("model")).startswith("gpt-"):  # which pay by tokens
        return None
    try:
        return token_usage({"seconds": float(answer.get("duration") or "")})  # of verbose_json
    except (TypeError, ValueError, OverflowError):  # it tells none
        return None


SPEECH_CEILING = 20 * 60 * 10  # ten minutes of sound at 20 tokens a second


def _speech(body: Body, uploaded: int, exact: bool) -> CallRequest:
    text = str(body.get("input") or "")
    instructions = str(body.get("instructions") or "")

    def price(card: Card) -> int:
        return card.rates().character * len(text)

    return CallRequest(
        _plain_text(body.get("model") or ""),
        lambda card: byte_bound([text, instructions]),
        # Sound has at most 20 tokens a second, and speech at least 4 letters (or a character that
        # takes three bytes, and as much time).
        max_output_tokens=min(SPEECH_CEILING, 20 + 20 * len(text.encode(errors="replace")) // 4),
        ceiling=SPEECH_CEILING,
        extra_price=price,
    )


def _speech_usage(answer: Body, body: Body) -> Usage | None:
    # Sound comes without usage, unless it comes as events.
    response = answer.get("response")
    if response is not None and "event-stream" in response.headers.get("content-type", ""):
        answer = usage_in_bytes(response.content, "text/event-stream") or {}
    reported = token_usage(answer.get("usage"))
    if reported is not None:
        return reported
    # Else only what is billed by its characters is known.
    if _plain_text(body.get("model") or "").startswith("tts-"):
        return Usage(characters=len(str(body.get("input") or "")))
    return None


ENDPOINTS = {
    "/chat/completions": Endpoint(
        "chat",
        _chat,
        ("max_completion_tokens", "max_tokens"),
        reply="chat",
        streams_usage=True,
    ),
    "/responses": Endpoint(
        "responses", _responses, ("max_output_tokens",), _responses_usage, reply="responses"
    ),
    "/responses/compact": Endpoint("compaction", _compaction, usage=_responses_usage),
    "/completions": Endpoint(
        "completions", _completions, ("max_tokens",), reply="completions", streams_usage=True
    ),
    "/embeddings": Endpoint("embeddings", _embeddings, usage=_embeddings_usage),
    "/images/generations": Endpoint("images", _images, usage=_images_usage),
    "/images/edits": Endpoint("images", _images, usage=_images_usage),
    "/images/variations": Endpoint("images", _images, usage=_images_usage),
    "/audio/transcriptions": Endpoint("audio", _transcription, usage=_transcription_usage),
    "/audio/translations": Endpoint("audio", _transcription, usage=_transcription_usage),
    "/audio/speech": Endpoint("speech", _speech, usage=_speech_usage),
}


def _bounds_of_each(given: Any) -> list[int]:
    """The most tokens in each of the inputs that one request may bring.

    Tokens given as numbers are counted, text is bounded by its bytes.
    """
    several = isinstance(given, list | tuple) and not (given and isinstance(given[0], int))
    bounds: list[int] = []
    once = REQUEST_OVERHEAD
    for one in given if several else (given,):
        if isinstance(one, list | tuple):
            bounds.append(len(one))
        else:
            bounds.append(byte_bound(contents.plain(one)) - REQUEST_OVERHEAD + once)
            once = 0
    return bounds


def _sum_of_windows(inputs: Sequence[int], card: Card) -> int:
    """The most input tokens of all: each has the model's context window to itself."""
    window = card.context_window
    return sum(inputs) if window is None else sum(min(into, window) for into in inputs)


def _text_count(given: Any) -> Callable[[Card], int | None] | None:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return None

    def count(card: Card) -> int | None:
        counts = [count_text(text, card.known_as) for text in texts]
        return None if None in counts else sum(filter(None, counts))

    return count


def _plain_text(value: Any) -> str:
    """A name as it is sent; ``str()`` of an Enum whose members are texts is not that."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def _larger(first: Any, second: Any) -> int | None:
    """The larger of two output maximums, either of which may be missing.

    One of -1 or 0 is none: there are servers that take it for as much as the model likes.
    """
    if first is None and (second is None or (type(second) is int and second > 0)):
        return second
    counts = [_count(given) for given in (first, second) if given is not None]
    if not all(count is not None and count > 0 for count in counts):
        return None
    return max(filter(None, counts), default=None)


def _positive(value: Any) -> int:
    """How many are asked for, 1 or more."""
    count = 1 if value is None else _count(value)
    return count if count is not None and count > 0 else 1


def _count(value: Any) -> int | None:
    """A number; also as "3" or 3.0, which many a compatible server takes for 3."""
    if type(value) is int:
        return value
    try:
        return ceil(float(value))
    except (TypeError, ValueError, OverflowError):
        return None

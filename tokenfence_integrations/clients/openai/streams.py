"""Metering of answers that arrive bit by bit: every way that they can end, ends their call once."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from functools import partial
from operator import attrgetter
from typing import Any

from tokenfence_integrations.clients.openai.endpoints import Body, Endpoint
from tokenfence_integrations.clients.openai.reported import (
    elements,
    get,
    members,
    tier_in,
    token_usage,
    usage_in_bytes,
)
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.stores.base import Amount
from tokenfence_integrations.usage import Usage

__all__ = [
    "EventMeter",
    "StreamMeter",
    "has_price",
    "read_through",
    "watch_response",
]

SPARE_TOKENS = 16
"""Output tokens that never show: end markers, the frame of a tool call."""

MOST_CAPTURED = 4 * 1024 * 1024
"""Bytes of an unparsed body that are kept to look for its usage."""

TEXT = frozenset({"role", "content"})
"""Members of a delta that carry no output but text."""

# Read at once, since every chunk of a stream is looked at.
CHUNK = attrgetter("usage", "choices")
CHOICE = attrgetter(
    "finish_reason", "delta.content", "delta.__pydantic_fields_set__", "delta.__pydantic_extra__"
)

FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")


class StreamMeter:
    """What was seen of one answer, and the one end of its call.

    The last usage counts, and counts only at the end: compatible servers report a running total
    with every chunk, which is a final one only once every choice has finished. Some report one
    final chunk for each choice; those are added up.

    Args:
        call: The call in flight.
        endpoint: Where it went.
        body: What was sent.
        hide_usage: Whether the final usage chunk was asked for by us, so the caller must not see
        it.
    """

    __slots__ = (
        "_bare",
        "_body",
        "_captured",
        "_captured_bytes",
        "_closes_left",
        "_decode",
        "_endpoint",
        "_final",
        "_finished",
        "_hide_usage",
        "_running",
        "_seen_bytes",
        "_service_tier",
        "_truncated",
        "call",
    )

    def __init__(self, call: Call, endpoint: Endpoint, body: Body, *, hide_usage: bool) -> None:
        self.call = call
        self._endpoint = endpoint
        self._body = body
        self._hide_usage = hide_usage
        self._running: Any = None
        self._final: Usage | None = None
        self._service_tier: str | None = None
        self._seen_bytes = 0
        self._bare = True
        self._finished = 0
        self._truncated = False
        self._closes_left = 0
        self._captured: list[bytes] | None = None
        self._captured_bytes = 0
        self._decode: Callable[[bytes], bytes] | None = None

    # What is seen

    def see(self, chunk: Any) -> bool:
        """Take note of one chunk or event.

        Returns:
            Whether it must be hidden from the caller.
        """
        try:
            # Nearly all are a piece of one choice's text, and nothing else.
            usage, choices = CHUNK(chunk)
            if usage is None and len(choices) == 1:
                reason, text, given, more = CHOICE(choices[0])
                if reason is None and not more and type(text) is str and given <= TEXT:
                    seen = len(text) if text.isascii() else len(text.encode(errors="replace"))
                    self._seen_bytes += seen
                    return False
        except (AttributeError, LookupError, TypeError):  # of another form: JSON, for one
            pass
        return self._see_chunk(chunk)

    def _see_chunk(self, chunk: Any) -> bool:
        shown = members(chunk)
        usage, choices = shown.get("usage"), shown.get("choices")
        if usage is None and "x_groq" in shown:  # where Groq tells it, to those who did not ask
            usage = get(shown["x_groq"], "usage")
        if usage is not None:
            self._service_tier = tier_in(shown) or self._service_tier
            if not choices:
                reported = self._endpoint.usage(shown, self._body)
                if reported is not None:
                    several = self.call.request.choices > 1
                    self._final = _combined(self._final, reported) if several else reported
                return self._hide_usage
            self._running = usage
        for choice in elements(choices):
            self._see_choice(choice)
        return False

    def _see_choice(self, choice: Any) -> None:
        shown = members(choice)
        delta = shown.get("delta")
        if delta is None:
            text = shown.get("text")
        else:
            written = members(delta)
            text = written.get("content")
            if self._bare and _has_more_than_text(written):
                self._bare = False
        if isinstance(text, str):
            self._seen_bytes += len(text) if text.isascii() else len(text.encode(errors="replace"))
        elif text is not None:
            self._bare = False
        reason = shown.get("finish_reason")
        if reason is not None:
            self._finished += 1
            if reason == "length":
                self._truncated = True
            if self._finished == self.call.request.choices:
                self.call.at_most = self._at_most()

    def see_answer(self, answer: Any) -> None:
        """Take note of a whole answer, parsed at last (or in an unread body)."""
        shown = members(answer)
        self._final = self._endpoint.usage(shown, self._body)
        self._service_tier = tier_in(shown)
        self._truncated = was_cut(shown)
        self.finish()

    # How it ends

    def finish(self) -> None:
        """The one end: settle by what was reported, else book what may have been billed."""
        usage = self._final
        if usage is None and self._finished >= self.call.request.choices:
            usage = token_usage(self._running)
        if usage is not None and (usage[0] or usage[1] or has_price(self.call, usage)):
            tier = self._service_tier or self.call.request.service_tier
            self.call.settle(usage, service_tier=tier, truncated=self._truncated)
        else:
            self.call.lose()

    def exhausted(self) -> None:
        """The body has been read to its end (and may not be parsed yet)."""
        # httpx now closes the response by itself, once, before the last chunks reach the caller.
        self._closes_left = 1
        if self._captured is not None:
            self._finish_captured()

    def closed(self) -> None:
        """The response was closed: early by the caller, or as the end of reading it."""
        if self._closes_left:
            self._closes_left -= 1
        else:
            self.finish()

    def capture(self, response: Any) -> None:
        """Keep the bytes that go by, to find the usage in a body that is never parsed.

        Args:
            response: Whose bytes they are. One that was read already (by an event hook, say) is
                looked through at once.
        """
        self._captured = []
        coding = response.headers.get("content-encoding")
        if coding:
            self._decode = partial(_decoded, _package_of(response).Response, coding)
        if response.is_closed:
            with suppress(RuntimeError):  # closed, but not read
                content = response.content
                if len(content) <= MOST_CAPTURED:
                    self._look_through(content)

    def read_elsewhere(self) -> None:
        """Keep no bytes any more: what they say will be seen chunk by chunk."""
        self._captured = None

    def pass_by(self, data: bytes) -> None:
        """Take note of raw bytes of the body."""
        if self._captured is None:
            return
        self._captured.append(data)
        self._captured_bytes += len(data)
        if self._captured_bytes > MOST_CAPTURED:
            self._captured = None

    def _finish_captured(self) -> None:
        content = b"".join(self._captured or ())
        self._look_through(self._decode(content) if self._decode else content)

    def _look_through(self, content: bytes) -> None:
        self._see_captured(content, events=content.lstrip().startswith((b"data:", b"event:", b":")))

    def _see_captured(self, content: bytes, *, events: bool) -> None:
        """Look for the usage in a body, or in as much of it as was read."""
        found = usage_in_bytes(content, "text/event-stream" if events else "")
        if found is not None:
            self.see_answer(found)
        elif self._endpoint.usage({}, self._body) is not None:
            self.see_answer(None)

    def _at_most(self) -> Amount | None:
        """What a finished answer of plain text can have cost: every token of it was seen."""
        call = self.call
        card = call.card
        if not self._bare or card is None or card.reasoning:
            return None
        into = call.bound.input_tokens
        out = min(self._seen_bytes + SPARE_TOKENS * self._finished, call.bound.output_tokens)
        tier = call.request.service_tier
        return Amount(card.bound(into, out, service_tier=tier), 1, into, out)


class EventMeter(StreamMeter):
    """The same for the events of the Responses API, of which the last one tells it all."""

    __slots__ = ()

    def see(self, chunk: Any) -> bool:
        kind = get(chunk, "type")
        if kind in FINAL_EVENTS:
            answer = members(get(chunk, "response"))
            self._final = self._endpoint.usage(answer, self._body)
            self._service_tier = tier_in(answer)
            self._truncated = kind == "response.incomplete"
        return False


class MeteredIterator:
    """Stands in for a stream's own iterator, sync or async, and shows the meter what goes by."""

    __slots__ = ("_inner", "_meter")

    def __init__(self, inner: Any, meter: StreamMeter) -> None:
        self._inner = inner
        self._meter = meter

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            chunk = self._inner.__next__()
            while self._meter.see(chunk):
                chunk = self._inner.__next__()
        except BaseException:
            self._meter.finish()
            raise
        return chunk

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await self._inner.__anext__()
            while self._meter.see(chunk):
                chunk = await self._inner.__anext__()
        except BaseException:
            self._meter.finish()
            raise
        return chunk

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


def read_through(stream: Any, meter: StreamMeter) -> None:
    """Have the meter see what is read from one of the SDK's streams.

    The SDK's stream and the generator that reads for it refer to each other, so one that is dropped
    would hold its reservation, while others wait for it, until the garbage collector comes by. Here
    the generator is that of a copy: it, and so the call, ends as soon as the stream is dropped.
    """
    meter.read_elsewhere()
    reader = copy(stream)
    reader._iterator = None
    stream._iterator = MeteredIterator(reader.__stream__(), meter)


def watch_response(response: Any, meter: StreamMeter) -> None:
    """Have the meter see a response's bytes and its closing, whoever reads or closes it.

    The SDK's stream helpers close the response, not the stream; so it is the response that is
    watched. Works for responses of httpx and of httpx2.
    """
    response.stream = _watched_bytes(_package_of(response))(response.stream, meter)
    close, aclose = response.close, response.aclose

    def closing() -> None:
        try:
            close()
        finally:
            meter.closed()

    async def aclosing() -> None:
        try:
            await aclose()
        finally:
            meter.closed()

    response.close, response.aclose = closing, aclosing


def _package_of(response: Any) -> Any:
    """The HTTP library that a response is of."""
    return sys.modules[type(response).__module__.partition(".")[0]]


def has_price(call: Call, usage: Usage) -> bool:
    """Whether a usage of no tokens is of a kind that its model has a price for.

    If not, it is not free (unless the model is): nobody knows what it costs.
    """
    return call.bound.usd == 0 or (call.card is not None and call.card.cost(usage) > 0)


def _has_more_than_text(delta: Mapping[str, Any]) -> bool:
    """Whether a delta carries output beside its text.

    Anything else counts: the reasoning that some servers show is in no type of the SDK, nor, in
    openai 2, is sound.
    """
    for name, value in delta.items():  # noqa: SIM110 - any() takes twice as long, for every chunk
        if value and name not in TEXT:
            return True
    return False


def was_cut(answer: Any) -> bool:
    """Whether an answer ended at its output maximum."""
    if get(answer, "status") == "incomplete":
        return True
    choices = elements(get(answer, "choices"))
    return any(get(choice, "finish_reason") == "length" for choice in choices)


_CLASSES: dict[str, Any] = {}


def _watched_bytes(package: Any) -> Any:
    """The class of watched byte streams for one of the two HTTP libraries."""
    known = _CLASSES.get(package.__name__)
    if known is not None:
        return known

    class WatchedBytes(package.SyncByteStream, package.AsyncByteStream):  # type: ignore[misc]
        """A byte stream that shows the meter what goes by, and else is the one it stands for."""

        def __init__(self, inner: Any, meter: StreamMeter) -> None:
            self._inner = inner
            self._meter = meter

        def __iter__(self) -> Iterator[bytes]:
            for data in self._inner:
                self._meter.pass_by(data)
                yield data
            self._meter.exhausted()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in self._inner:
                self._meter.pass_by(data)
                yield data
            self._meter.exhausted()

        def close(self) -> None:
            self._inner.close()

        async def aclose(self) -> None:
            await self._inner.aclose()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    _CLASSES[package.__name__] = WatchedBytes
    return WatchedBytes


def _combined(before: Usage | None, usage: Usage) -> Usage:
    """Final chunks of several choices: outputs add up, the one prompt does not."""
    if before is None:
        return usage
    return usage._replace(
        output_tokens=before.output_tokens + usage.output_tokens,
        output_audio_tokens=before.output_audio_tokens + usage.output_audio_tokens,
        output_image_tokens=before.output_image_tokens + usage.output_image_tokens,
        reasoning_tokens=before.reasoning_tokens + usage.reasoning_tokens,
    )


def _decoded(response_class: Any, coding: str, content: bytes) -> bytes:
    """A captured body without its content coding, as far as the HTTP library can undo it."""
    try:
        response = response_class(200, headers={"content-encoding": coding}, content=content)
    except Exception:  # its error for what cannot be decoded
        return b""
    return bytes(response.content)

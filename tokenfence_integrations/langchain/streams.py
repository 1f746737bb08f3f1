"""The chunks of a guarded model's stream: every way that it can end, ends its call once."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.exchange import Exchange
from tokenfence_integrations.langchain.replies import refusal_chunks
from tokenfence_integrations.langchain.structured import ANSWERED_BY

__all__ = ["BothWays", "Chunks", "as_chunk"]


class Chunks:
    """The chunks of one stream, metered as they go by; sync or async, as what it stands for.

    Args:
        inner: The stream.
        exchange: What meters it; None: somebody else does, or it costs nothing.
        opening: What has to surround its first step, in which the provider is called.
        may_stop: Whether a refusal is told in its place, rather than raised.
        answered_by: The name to put on the answer; on its first chunk, since texts add up.
    """

    __slots__ = ("_answered_by", "_exchange", "_may_stop", "_opening", "inner")

    def __init__(
        self,
        inner: Any,
        exchange: Exchange | None,
        opening: AbstractContextManager[Any] | None,
        *,
        may_stop: bool = False,
        answered_by: str | None = None,
    ) -> None:
        self.inner = inner
        self._exchange = exchange
        self._opening = opening
        self._may_stop = may_stop
        self._answered_by = answered_by

    @property
    def metered_elsewhere(self) -> bool:
        """Whether the rest of the stream need not be looked at."""
        return self._exchange is None or self._exchange.taken

    def __iter__(self) -> Iterator[ChatGenerationChunk]:
        return self

    def __next__(self) -> ChatGenerationChunk:
        try:
            if self._opening is None:
                chunk = next(self.inner)
            else:
                opening, self._opening = self._opening, None
                with opening:
                    chunk = next(self.inner)
        except StopIteration:
            self._exhausted()
            raise
        except BudgetExceeded as refusal:
            self._refused(refusal)
            chunk = next(self.inner)
        return self._seen(chunk)

    def __aiter__(self) -> AsyncIterator[ChatGenerationChunk]:
        return self

    async def __anext__(self) -> ChatGenerationChunk:
        try:
            if self._opening is None:
                chunk = await anext(self.inner)
            else:
                opening, self._opening = self._opening, None
                with opening:
                    chunk = await anext(self.inner)
        except StopAsyncIteration:
            self._exhausted()
            raise
        except BudgetExceeded as refusal:
            self._refused(refusal)
            chunk = await anext(self.inner)
        return self._seen(chunk)

    def failed(self, error: BaseException) -> None:
        """End the call after a failure, or because nobody reads on."""
        if self._exchange is not None:
            self._exchange.failed(error)

    def close(self) -> None:
        """Close the stream below at once."""
        close = getattr(self.inner, "close", None)
        if close is not None:
            close()

    async def aclose(self) -> None:
        """Close the stream below at once; left to the garbage collector it would stay open."""
        close = getattr(self.inner, "aclose", None)
        if close is not None:
            await close()

    def _seen(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        if self._exchange is not None:
            self._exchange.see(chunk)
        if self._answered_by is not None:
            chunk.message.response_metadata[ANSWERED_BY] = self._answered_by
            self._answered_by = None
        return chunk

    def _exhausted(self) -> None:
        if self._exchange is not None:
            self._exchange.exhausted()

    def _refused(self, refusal: BudgetExceeded) -> None:
        """An attempt of the provider's client did not fit: say so, or raise."""
        if not self._may_stop:
            raise refusal
        self.failed(refusal)
        self._exchange = None
        self.inner = BothWays(refusal_chunks(refusal))


class BothWays:
    """Some chunks that are there already, as a sync or an async stream."""

    def __init__(self, chunks: Iterator[ChatGenerationChunk]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[ChatGenerationChunk]:
        return self

    def __next__(self) -> ChatGenerationChunk:
        return next(self._chunks)

    def __aiter__(self) -> AsyncIterator[ChatGenerationChunk]:
        return self

    async def __anext__(self) -> ChatGenerationChunk:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def as_chunk(result: ChatResult) -> ChatGenerationChunk:
    """A whole answer as the only chunk of a stream."""
    message: Any = result.generations[0].message
    chunk = AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        tool_calls=message.tool_calls,
        usage_metadata=message.usage_metadata,
        id=message.id,
    )
    return ChatGenerationChunk(message=chunk, generation_info=result.generations[0].generation_info)

"""The responses of a guarded LLM's stream: every way that it can end, ends its call once."""

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.exchange import Exchange, may_stop
from tokenfence_integrations.llama_index.replies import refusal_stream
from tokenfence_integrations.stores.base import NOTHING

__all__ = ["Responses"]


class Responses:
    """The responses of one stream, metered as they go by; sync or async, as what it stands for.

    Args:
        method: The method that made the stream.
        inner: The stream.
        exchange: What meters it.
        signed: Notes in a response who gave it.
    """

    __slots__ = ("_call", "_exchange", "_inner", "_method", "_signed", "_started")

    def __init__(
        self, method: str, inner: Any, exchange: Exchange, signed: Callable[[Any], Any]
    ) -> None:
        self._signed = signed
        self._method = method
        self._inner = inner
        self._exchange: Exchange | None = exchange
        self._started = False
        self._call = exchange.call
        if not exchange.sent:
            # Its client is called in the first step: a stream that nobody reads is free.
            exchange.call.at_most = NOTHING

    def read(self) -> Generator[Any, None, None]:
        """The stream, for a sync method."""
        try:
            while True:
                exchange = self._before_step()
                try:
                    if exchange is None:
                        response = next(self._inner)
                    else:
                        with exchange:
                            response = next(self._inner)
                except StopIteration:
                    break
                except BudgetExceeded as refusal:
                    self._refused(refusal)
                    continue
                if exchange is not None:
                    exchange.see(response)
                yield self._signed(response)
            self._exhausted()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            close = getattr(self._inner, "close", None)
            if close is not None:
                close()
            self._left()

    async def aread(self) -> AsyncGenerator[Any, None]:
        """The stream, for an async method."""
        try:
            while True:
                exchange = self._before_step()
                try:
                    if exchange is None:
                        response = await anext(self._inner)
                    else:
                        with exchange:
                            response = await anext(self._inner)
                except StopAsyncIteration:
                    break
                except BudgetExceeded as refusal:
                    self._refused(refusal)
                    continue
                if exchange is not None:
                    exchange.see(response)
                yield self._signed(response)
            self._exhausted()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            close = getattr(self._inner, "aclose", None)
            if close is not None:
                await close()
            self._left()

    def _before_step(self) -> Exchange | None:
        """What has to surround the next step; None if the client below meters all the rest."""
        exchange = self._exchange
        if exchange is None:
            return None
        if not self._started:
            self._started = True
            exchange.call.at_most = None
        elif exchange.taken:
            self._exchange = exchange = None
        return exchange

    def _refused(self, refusal: BudgetExceeded) -> None:
        """Another attempt of the provider's client did not fit: say so, or raise."""
        exchange = self._exchange
        if exchange is None or not may_stop(exchange.call.policy, exchange.options):
            raise refusal
        exchange.failed(refusal)
        self._exchange = None
        self._inner = refusal_stream(self._method, refusal)

    def _exhausted(self) -> None:
        if self._exchange is not None:
            self._exchange.exhausted()

    def _failed(self, error: BaseException) -> None:
        if self._exchange is not None:
            self._exchange.failed(error)

    def _left(self) -> None:
        """End what is still open: the client's own stream, deep in LlamaIndex's async generators,
        would be closed by the garbage collector, and others wait for calls in flight.
        """
        self._call.lose()

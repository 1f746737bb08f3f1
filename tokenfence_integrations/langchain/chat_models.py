"""Guarded chat models: copies of a dynamic subclass that overrides where the provider is called.

A guarded model is an instance of the user's own class, so binding tools, structured output, caches,
tracing and every ``isinstance`` work as before. What is overridden lies below LangChain's cache:
`_generate`, `_stream` and their async forms. All that they do with a call is in `exchange`.

Each way to an answer is a flow (see `flows`), written once for sync and async.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.handover import Handover, offered
from tokenfence_integrations.engine.meter import Call
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.caches import CutAnswersLeftOut, cache_of
from tokenfence_integrations.langchain.exchange import Exchange, running
from tokenfence_integrations.langchain.flows import Flow, arun, run
from tokenfence_integrations.langchain.replies import refusal_chunks, refusal_result
from tokenfence_integrations.langchain.structured import ANSWERED_BY
from tokenfence_integrations.langchain.terms import GUARD_KEY, Terms
from tokenfence_integrations.langchain.tools import (
    adapted_options,
    same_family,
    without_notes,
)

__all__ = ["BudgetedChatModel"]

Options: TypeAlias = dict[str, Any]


class Way(NamedTuple):
    """The names of the methods that are called on a sync or on an async way."""

    generate: str
    stream: str
    cached: str
    admit: str


SYNC = Way("_generate", "_stream", "_generate_with_cache", "admit")
ASYNC = Way("_agenerate", "_astream", "_agenerate_with_cache", "aadmit")


class Route(NamedTuple):
    """Another way to the answer than the model's own: a refusal, or another model.

    ``call`` is what is reserved for that model, and ``options`` are the call's, as it takes them.
    ``signature`` is the name that it puts on its answer, if that has a form of its own.
    """

    refusal: BudgetExceeded | None = None
    target: Any = None
    call: Call | None = None
    options: Options = {}  # noqa: RUF012 - a named tuple's default, never changed
    signature: str | None = None


class Assignment(NamedTuple):
    """A route's target, and the call on offer to it."""

    target: Any
    handover: Handover


class Detour(BaseException):
    """Leaves LangChain's cached path of one model: the answer comes by another route.

    An answer that took one must not be stored as the answer of the model that was asked. Not an
    Exception, so that nothing on the way takes it for a failure.
    """

    def __init__(self, origin: object, route: Route) -> None:
        super().__init__()
        self.origin = origin
        self.route = route


catching: "ContextVar[Any]" = ContextVar("tokenfence_catching", default=None)
"""The guarded model that catches detours in this context."""

assigned: "ContextVar[Assignment | None]" = ContextVar("tokenfence_assigned", default=None)
"""What the target of a route finds reserved for it."""


if TYPE_CHECKING:
    _ChatModel = BaseChatModel
else:
    _ChatModel = object


class BudgetedChatModel(_ChatModel):
    """What all guarded chat models are instances of, beside the class that they were made of.

    Example:
        >>> model = guard(ChatOpenAI(model="gpt-4o"), budget="$5.00")  # doctest: +SKIP
        >>> isinstance(model, BudgetedChatModel), isinstance(model, ChatOpenAI)  # doctest: +SKIP
        (True, True)
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool

    @property
    def tokenfence(self) -> Budget:
        """The budget that this model's calls count against."""
        return self.tokenfence_terms.budget_now()

    # Where LangChain's cache is, and where the provider is called

    def _generate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return run(self._cached(SYNC, messages, stop, run_manager, kwargs))

    async def _agenerate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await arun(self._cached(ASYNC, messages, stop, run_manager, kwargs))

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return run(self._answer(SYNC, messages, stop, run_manager, kwargs))

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await arun(self._answer(ASYNC, messages, stop, run_manager, kwargs))

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        chunks = run(self._opened(SYNC, messages, stop, run_manager, kwargs))
        try:
            for chunk in chunks:
                yield chunk
                if chunks.metered_elsewhere:
                    yield from chunks.inner
        except BaseException as error:
            chunks.failed(error)
            raise
        finally:
            chunks.close()

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = await arun(self._opened(ASYNC, messages, stop, run_manager, kwargs))
        try:
            async for chunk in chunks:
                yield chunk
                if chunks.metered_elsewhere:
                    async for more in chunks.inner:
                        yield more
        except BaseException as error:
            chunks.failed(error)
            raise
        finally:
            await chunks.aclose()

    # The ways, each written once

    def _cached(
        self, way: Way, messages: Any, stop: Any, run_manager: Any, options: Options
    ) -> Flow[ChatResult]:
        """LangChain's way past its cache, and on from where a detour leaves it."""
        token = catching.set(self)
        try:
            inner = getattr(super(), way.cached)
            result: ChatResult = yield partial(inner, messages, stop, run_manager, **options)
            return result
        except Detour as detour:
            if detour.origin is not self:
                raise
            route = detour.route
        finally:
            catching.reset(token)
        return (yield from _travel(way.cached, route, messages, stop, run_manager))

    def _answer(
        self, way: Way, messages: Any, stop: Any, run_manager: Any, options: Options
    ) -> Flow[ChatResult]:
        """One whole answer: admitted, made, settled."""
        result: ChatResult
        if running.get() is self:
            result = yield self._provider(way.generate, messages, stop, run_manager, options)
            return result
        exchange = Exchange(self, messages, options, _given(self))
        route = yield from self._admission(way, exchange, options)
        if route is not None:
            self._leave_cache(route)
            return (yield from _travel(way.generate, route, messages, stop, run_manager))
        model, options = exchange.prepared()
        try:
            with exchange:
                result = yield model._provider(way.generate, messages, stop, run_manager, options)
        except BaseException as error:
            exchange.failed(error)
            if not isinstance(error, BudgetExceeded) or not exchange.may_stop:
                raise
            route = Route(refusal=error)  # another attempt of the provider's client did not fit
        if route is not None:
            self._leave_cache(route)
            return (yield from _travel(way.generate, route, messages, stop, run_manager))
        exchange.finished(result)
        return result

    def _opened(
        self, way: Way, messages: Any, stop: Any, run_manager: Any, options: Options
    ) -> "Flow[Chunks]":
        """A stream that is admitted, and will be settled when it ends, however it does."""
        if running.get() is self:
            inner = self._provider(way.stream, messages, stop, run_manager, options)()
            return Chunks(inner, None, None)
        exchange = Exchange(self, messages, options, _given(self))
        route = yield from self._admission(way, exchange, options)
        if route is None:
            model, options = exchange.prepared()
            inner = model._provider(way.stream, messages, stop, run_manager, options)()
            return Chunks(inner, exchange, exchange)
        self._leave_cache(route)
        if route.refusal is not None:
            return Chunks(_BothWays(refusal_chunks(route.refusal)), None, None)
        target = route.target
        if _streams(target, way):
            opened = getattr(target, way.stream)(messages, stop, run_manager, **route.options)
            return Chunks(opened, None, _assigned(route), answered_by=route.signature)
        result = yield from _travel(way.generate, route, messages, stop, run_manager)
        return Chunks(_BothWays(iter([_as_chunk(result)])), None, None)

    def _admission(self, way: Way, exchange: Exchange, options: Options) -> Flow[Route | None]:
        """Get a call admitted; the route to take if this model will not answer."""
        call = exchange.call
        if not exchange.given:
            try:
                yield getattr(call, way.admit)
            except BudgetExceeded as refusal:
                if not exchange.may_stop:
                    raise
                return Route(refusal=refusal)
            if call.model != call.request.model:
                target = self.tokenfence_terms.targets[call.model]
                try:
                    adapted = adapted_options(options, self, target)
                    signature = None if same_family(self, target) else call.model
                    return Route(None, target, call, adapted, signature)
                except BaseException:
                    call.release()
                    raise
        if call.capped and catching.get() is self:
            cache = cache_of(self)
            if cache is not None and not isinstance(cache, CutAnswersLeftOut):
                # The rate limiter has let this call pass already.
                changes = {"cache": CutAnswersLeftOut(cache), "rate_limiter": None}
                copied = self.model_copy(update=changes)
                return Route(None, copied, call, options)
        return None

    def _leave_cache(self, route: Route) -> None:
        if catching.get() is self:
            raise Detour(self, route)

    def _provider(
        self, method: str, messages: Any, stop: Any, run_manager: Any, options: Options
    ) -> Callable[[], Any]:
        """The class's own method, with what it takes."""
        own = getattr(super(), method)
        options = without_notes(options)
        if run_manager is not None and _takes_manager(own.__func__):
            options = {**options, "run_manager": run_manager}
        return partial(own, messages, stop=stop, **options)

    # What LangChain asks of a model

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **without_notes(kwargs))
        return {**params, GUARD_KEY: self.tokenfence_terms.number}

    def _get_invocation_params(self, stop: Any = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **without_notes(kwargs))

    def _get_llm_string(self, stop: Any = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop=stop, **without_notes(kwargs))


class Chunks:
    """The chunks of one stream, metered as they go by; sync or async, as what it stands for.

    Args:
        inner: The stream.
        exchange: What meters it; None: somebody else does, or it costs nothing.
        opening: What has to surround its first step, in which the provider is called.
        answered_by: The name to put on the answer; on its first chunk, since texts add up.
    """

    __slots__ = ("_answered_by", "_exchange", "_opening", "inner")

    def __init__(
        self,
        inner: Any,
        exchange: Exchange | None,
        opening: AbstractContextManager[Any] | None,
        answered_by: str | None = None,
    ) -> None:
        self.inner = inner
        self._exchange = exchange
        self._opening = opening
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
        """Another attempt of the provider's client did not fit: say so, or raise."""
        exchange = self._exchange
        if exchange is None or not exchange.may_stop:
            raise refusal
        exchange.failed(refusal)
        self._exchange = None
        self.inner = _BothWays(refusal_chunks(refusal))


def _travel(
    method: str, route: Route, messages: Any, stop: Any, run_manager: Any
) -> Flow[ChatResult]:
    """Get the answer by a route."""
    if route.refusal is not None:
        result = refusal_result(route.refusal)
        if run_manager is not None:
            result.generations[0].message.id = f"lc_run--{run_manager.run_id}-0"
        return result
    with _assigned(route):
        inner = getattr(route.target, method)
        answer: ChatResult = yield partial(inner, messages, stop, run_manager, **route.options)
    if route.signature is not None:
        for generation in answer.generations:
            generation.message.response_metadata[ANSWERED_BY] = route.signature
    return answer


@contextmanager
def _assigned(route: Route) -> Iterator[None]:
    """Have a route's target take the call that is reserved for it.

    It takes it when it calls its provider; if it does not (its own cache knew the answer), the call
    is released.
    """
    call: Any = route.call
    assignment = Assignment(route.target, Handover(call))
    token = assigned.set(assignment)
    try:
        yield
    finally:
        assigned.reset(token)
        if assignment.handover.has(call):
            call.release()


def _given(model: BudgetedChatModel) -> Call | None:
    """The call that a route, or a layer around the model, has reserved for it."""
    assignment = assigned.get()
    if assignment is not None and assignment.target is model:
        return assignment.handover.take(model.tokenfence)
    handover = offered.get()
    if handover is None or handover.wire:  # a model called by another one's code: a call of its own
        return None
    return handover.take(model.tokenfence)


@cache
def _takes_manager(method: Callable[..., Any]) -> bool:
    """Whether a provider's method takes a run manager; LangChain calls older ones without."""
    return "run_manager" in signature(method).parameters


def _streams(target: BaseChatModel, way: Way) -> bool:
    cls = type(target)
    if cls._stream is not BaseChatModel._stream:
        return True
    return way is ASYNC and cls._astream is not BaseChatModel._astream


def _as_chunk(result: ChatResult) -> ChatGenerationChunk:
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


class _BothWays:
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

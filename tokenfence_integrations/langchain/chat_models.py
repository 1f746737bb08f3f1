"""Guarded chat models: copies of a dynamic subclass that overrides where the provider is called.

A guarded model is an instance of the user's own class, so binding tools, structured output, caches,
tracing and every ``isinstance`` work as before. What is overridden lies below LangChain's cache:
`_generate`, `_stream` and their async forms. All that they do with a call is in `exchange`.

Each way to an answer is a flow (see `flows`), written once for sync and async.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.waiting import waited_for
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.caches import CutAnswersLeftOut, cache_of
from tokenfence_integrations.langchain.exchange import Exchange, may_stop
from tokenfence_integrations.langchain.openai_clients import Metered, still_metered
from tokenfence_integrations.langchain.replies import refusal_chunks, refusal_result
from tokenfence_integrations.langchain.routes import (
    Detour,
    Route,
    assigned,
    assigned_to,
    catching,
)
from tokenfence_integrations.langchain.streams import BothWays, Chunks, as_chunk
from tokenfence_integrations.langchain.structured import ANSWERED_BY
from tokenfence_integrations.langchain.terms import GUARD_KEY, Terms
from tokenfence_integrations.langchain.tools import (
    adapted_options,
    same_family,
    without_notes,
)
from tokenfence_integrations.models.exchange import runs
from tokenfence_integrations.models.flows import Flow, arun, run

__all__ = ["BudgetedChatModel", "FallingBackChatModel"]

Options: TypeAlias = dict[str, Any]


class Way(NamedTuple):
    """The names of the methods that are called on a sync or on an async way."""

    generate: str
    stream: str
    cached: str
    admit: str


SYNC = Way("_generate", "_stream", "_generate_with_cache", "admit")
ASYNC = Way("_agenerate", "_astream", "_agenerate_with_cache", "aadmit")


if TYPE_CHECKING:
    _ChatModel = BaseChatModel
else:
    _ChatModel = object


class BudgetedChatModel(_ChatModel):
    """The class of all guarded chat models, in addition to their original class.

    Example:
        >>> model = guard(ChatOpenAI(model="gpt-4o"), budget="$5.00")  # doctest: +SKIP
        >>> isinstance(model, BudgetedChatModel), isinstance(model, ChatOpenAI)  # doctest: +SKIP
        (True, True)
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool
    tokenfence_below: Metered | tuple[()]

    @property
    def tokenfence(self) -> Budget:
        """The budget that this model's calls count against."""
        return self.tokenfence_terms.budget_now()

    # LangChain makes these calls in tasks, or threads, of their own, and waits for them

    async def agenerate(self, *args: Any, **kwargs: Any) -> Any:
        with waited_for():
            return await super().agenerate(*args, **kwargs)

    async def abatch(self, *args: Any, **kwargs: Any) -> Any:
        with waited_for():
            return await super().abatch(*args, **kwargs)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        with waited_for():
            return super().batch(*args, **kwargs)

    # Where LangChain's cache is, and where the provider is called

    def _generate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if self.tokenfence_terms.client_reserves and cache_of(self) is None:
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)
        return run(self._cached(SYNC, messages, stop, run_manager, kwargs))

    def _agenerate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Coroutine[Any, Any, ChatResult]:
        if self.tokenfence_terms.client_reserves and cache_of(self) is None:
            return super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        return arun(self._cached(ASYNC, messages, stop, run_manager, kwargs))

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if not self._left_to_client():
            return run(self._answer(SYNC, messages, stop, run_manager, kwargs))
        try:
            return super()._generate(messages, stop, run_manager, **kwargs)  # type: ignore[safe-super]
        except BudgetExceeded as refusal:
            return self._refused(refusal, kwargs)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if not self._left_to_client():
            return await arun(self._answer(ASYNC, messages, stop, run_manager, kwargs))
        try:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        except BudgetExceeded as refusal:
            return self._refused(refusal, kwargs)

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
        if runs(self):
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
        if runs(self):
            inner = self._provider(way.stream, messages, stop, run_manager, options)()
            return Chunks(inner, None, None)
        if self._left_to_client():
            inner = self._provider(way.stream, messages, stop, run_manager, options)()
            stops = may_stop(self.tokenfence_terms.policy, options)
            return Chunks(inner, None, None, may_stop=stops)
        exchange = Exchange(self, messages, options, _given(self))
        route = yield from self._admission(way, exchange, options)
        if route is None:
            model, options = exchange.prepared()
            inner = model._provider(way.stream, messages, stop, run_manager, options)()
            return Chunks(inner, exchange, exchange, may_stop=exchange.may_stop)
        self._leave_cache(route)
        if route.refusal is not None:
            return Chunks(BothWays(refusal_chunks(route.refusal)), None, None)
        target = route.target
        if _streams(target, way):
            opened = getattr(target, way.stream)(messages, stop, run_manager, **route.options)
            return Chunks(opened, None, assigned_to(route), answered_by=route.signature)
        result = yield from _travel(way.generate, route, messages, stop, run_manager)
        return Chunks(BothWays(iter([as_chunk(result)])), None, None)

    def _left_to_client(self) -> bool:
        """Whether the guarded client below does all that has to be done for a call.

        Not where an outer layer has reserved for this model; nor on the way to a cache, which has
        to know of a cap before it stores an answer; nor if the user has put another client in its
        place.
        """
        handover = offered.get()
        return (
            self.tokenfence_terms.client_reserves
            and (handover is None or not (handover.is_open() or runs(self)))
            and catching.get() is not self
            and still_metered(self)
        )

    def _refused(self, refusal: BudgetExceeded, options: Options) -> ChatResult:
        """What is answered where the guarded client has refused.

        Raises:
            BudgetExceeded: It may not be answered with a text.
        """
        if not may_stop(self.tokenfence_terms.policy, options):
            raise refusal
        return refusal_result(refusal)

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

    def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
        params = super()._get_ls_params(*args, **kwargs)
        return {**params, GUARD_KEY: self.tokenfence_terms.number}


class FallingBackChatModel(BudgetedChatModel):
    """Those that have fallbacks, whose bindings note in the options of a call how others take it.

    LangChain is not shown these notes. Those that have no fallbacks never meet any.
    """

    def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
        return super()._get_ls_params(*args, **without_notes(kwargs))

    def _get_invocation_params(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(*args, **without_notes(kwargs))

    def _get_llm_string(self, *args: Any, **kwargs: Any) -> str:
        return super()._get_llm_string(*args, **without_notes(kwargs))


def _travel(
    method: str, route: Route, messages: Any, stop: Any, run_manager: Any
) -> Flow[ChatResult]:
    """Get the answer by a route."""
    if route.refusal is not None:
        result = refusal_result(route.refusal)
        if run_manager is not None:
            result.generations[0].message.id = f"lc_run--{run_manager.run_id}-0"
        return result
    with assigned_to(route):
        inner = getattr(route.target, method)
        answer: ChatResult = yield partial(inner, messages, stop, run_manager, **route.options)
    if route.signature is not None:
        for generation in answer.generations:
            generation.message.response_metadata[ANSWERED_BY] = route.signature
    return answer


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

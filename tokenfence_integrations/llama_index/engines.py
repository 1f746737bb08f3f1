"""A budget for each query: an engine whose queries are limited, and report what they cost."""

from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.limits.snapshot import Snapshot
from tokenfence_integrations.engine.reading import asnapshot
from tokenfence_integrations.engine.scope import scoped_budget
from tokenfence_integrations.llama_index.components import models_of, with_parts
from tokenfence_integrations.llama_index.guarding import Guarding, LLMFallback
from tokenfence_integrations.models.guarding import MoreTerms
from tokenfence_integrations.models.subclasses import guarded_class, guarded_copy
from tokenfence_integrations.money import to_float

__all__ = ["BudgetedQueryEngine", "budget_for"]

KEY = "tokenfence"
"""The key of a response's metadata under which the query's cost is."""

Engine = TypeVar("Engine", bound=BaseQueryEngine)


class QueryTerms(NamedTuple):
    """What each query of an engine may spend: limits, and the budget above all queries."""

    limits: dict[str, Any]
    parent: Budget | None

    def fresh_budget(self) -> Budget:
        """The budget of one query."""
        parent = self.parent if self.parent is not None else scoped_budget()
        if parent is None:
            return Budget(**self.limits, name="query")
        # Not kept, and so with a name that no query of another process or time has.
        return Budget(**self.limits, parent=parent, kept=False)


if TYPE_CHECKING:
    _Engine = BaseQueryEngine
else:
    _Engine = object


class BudgetedQueryEngine(_Engine):
    """The class of the engines that `budget_for` returns, in addition to their original class."""

    tokenfence_terms: QueryTerms

    def query(self, *args: Any, **kwargs: Any) -> Any:
        budget = self.tokenfence_terms.fresh_budget()
        with budget.scope():
            response = super().query(*args, **kwargs)
        return _with_cost(response, budget, budget.snapshot())

    async def aquery(self, *args: Any, **kwargs: Any) -> Any:
        budget = self.tokenfence_terms.fresh_budget()
        with budget.scope():
            response = await super().aquery(*args, **kwargs)
        return _with_cost(response, budget, await asnapshot(budget))


def budget_for(
    query_engine: Engine,
    usd: Dollars | None = None,
    *,
    calls: int | None = None,
    tokens: int | None = None,
    parent: Budget | None = None,
    fallback: LLMFallback = None,
    **terms: Unpack[MoreTerms],
) -> Engine:
    """Return the same query engine with a fresh budget for each query.

    The original engine is left unchanged: parts that contain LLMs and embedding models are copied,
    and the models in them are guarded. Where they are guarded already, each query's budget is a
    child of theirs. A model that is hidden in a function, or in an object whose class is not built
    on LlamaIndex's, is not found: guard it yourself, without a budget, and it uses the query's.

    A query's cost is in ``response.metadata["tokenfence"]``: ``budget``, ``spent`` and
    ``uncertain`` in dollars, ``calls``, ``input_tokens``, ``output_tokens``; for a streamed
    response, once it has been read.

    Args:
        query_engine: Any query engine, including engines of engines.
        usd: What one query may cost, in dollars (``"$0.05"``, ``0.05``).
        calls: How many provider calls one query may make.
        tokens: How many tokens one query may use.
        parent: The budget of all queries together, which each of them counts against; default:
            that of the LLMs, if they are guarded, otherwise the one in scope at each query.
        fallback: Cheaper models for the engine's LLMs, as for `guard`.
        terms: Other terms of `guard`, such as ``on_limit`` and ``prices``.

    Returns:
        An instance of the engine's own class.

    Raises:
        TypeError: It is not a query engine, it already has a budget for each query, or a `Budget`
            was given for what each query may cost.
        ValueError: There is no limit, it has a window, a fallback was given although the LLMs are
            guarded already, or they count against a budget other than ``parent``.

    Example:
        >>> engine = budget_for(index.as_query_engine(), "$0.05")  # doctest: +SKIP
        >>> engine.query("Why?").metadata["tokenfence"]["spent"]  # doctest: +SKIP
        0.00042
    """
    if isinstance(query_engine, BudgetedQueryEngine):
        raise TypeError("this engine has a budget for each query already: give the plain engine")
    if not isinstance(query_engine, BaseQueryEngine):
        raise TypeError(
            f"budget_for() takes a query engine, got {type(query_engine).__name__}; for a chat "
            f"engine or an agent, guard the LLM and call it inside budget.scope()"
        )
    if "budget" in terms or isinstance(usd, Budget):
        raise TypeError(
            "budget_for() makes a budget for each query: give what one query may cost, "
            "budget_for(engine, '$0.05'), and the budget of all queries together as parent="
        )
    limits: dict[str, Any] = {"usd": usd, "calls": calls, "tokens": tokens}
    if set(limits.values()) == {None}:
        raise ValueError("each query needs a limit: dollars, calls or tokens")
    # Bad limits fail here, and not at the first query.
    if Budget(**limits).window is not None:
        raise ValueError(
            f"each query gets a new budget, so its limit cannot have a window, got {usd!r}: give "
            f"the window to the parent of all queries"
        )
    guarded = [model for model in models_of(query_engine) if hasattr(model, "tokenfence_terms")]
    if fallback is not None and any(isinstance(model, LLM) for model in guarded):
        raise ValueError(
            "the LLMs of this engine are guarded already: give the fallback to guard(), where "
            "they are guarded"
        )
    held = Guarding.given(None, fallback, **terms)
    engine: Any = with_parts(query_engine, lambda part: _guarded(part, held))
    cls = guarded_class(type(query_engine), BudgetedQueryEngine)
    kept = QueryTerms(limits, _common_parent(guarded, parent))
    return guarded_copy(engine, cls, kept, metered_below=False)  # type: ignore[no-any-return]


def _guarded(part: Any, held: Guarding) -> Any:
    """A part of an engine, guarded on the budget in scope if it calls a provider."""
    if hasattr(part, "tokenfence_terms") or isinstance(part, StructuredLLM):
        return part
    if isinstance(part, LLM):
        return held.llm(part)
    if isinstance(part, BaseEmbedding):
        return replace(held, fallback=None).embedding(part)
    return part


def _common_parent(guarded: list[Any], parent: Budget | None) -> Budget | None:
    """The budget above all queries.

    Raises:
        ValueError: Something in the engine counts against a budget that is not above them.
    """
    for model in guarded:
        own = model.tokenfence_terms.budget
        if own is None:
            continue
        if parent is None or parent.path[0] in own.path[1:]:
            parent = own
        if own._tree is not parent._tree or own.path[0] not in parent.path:
            raise ValueError(
                f"{type(model).__name__} in this engine counts against budget {own.name!r}, and "
                f"the queries against {parent.name!r}: guard the whole engine on one budget, and "
                f"give that, or one below it, as parent="
            )
    return parent


def _with_cost(response: Any, budget: Budget, now: Snapshot) -> Any:
    """The response, whose metadata tells what it cost, or will have cost once it is read."""
    cost: dict[str, Any] = {}
    if isinstance(response, StreamingResponse):
        response.response_gen = _read(response.response_gen, budget, cost)
    elif isinstance(response, AsyncStreamingResponse):
        response.response_gen = _aread(response.response_gen, budget, cost)
    response.metadata = {**(response.metadata or {}), KEY: cost}
    cost.update(_cost(now))
    return response


def _cost(now: Snapshot) -> dict[str, Any]:
    return {
        "budget": now.name,
        "spent": to_float(now.spent.usd),
        "uncertain": to_float(now.uncertain.usd),
        "calls": now.spent.calls + now.uncertain.calls,
        "input_tokens": now.spent.input_tokens,
        "output_tokens": now.spent.output_tokens,
    }


def _read(inner: Any, budget: Budget, cost: dict[str, Any]) -> Generator[Any, None, None]:
    """A streamed answer; what LlamaIndex calls while it is read is the query's as well."""
    try:
        while True:
            with budget.scope():
                try:
                    text = next(inner)
                except StopIteration:
                    return
            yield text
    finally:
        inner.close()
        cost.update(_cost(budget.snapshot()))


async def _aread(inner: Any, budget: Budget, cost: dict[str, Any]) -> AsyncGenerator[Any, None]:
    try:
        while True:
            with budget.scope():
                try:
                    text = await anext(inner)
                except StopAsyncIteration:
                    return
            yield text
    finally:
        await inner.aclose()
        cost.update(_cost(await asnapshot(budget)))

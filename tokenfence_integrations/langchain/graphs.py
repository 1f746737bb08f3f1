"""Budgets of the nodes of a LangGraph graph."""

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias, TypeVar, overload

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.types import Command

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["BudgetOf", "OnExceeded", "budgeted"]

Node = TypeVar("Node", bound=Callable[..., Any])

BudgetOf: TypeAlias = Budget | Callable[[Any], Budget]
"""A budget; or a function that returns it for a node's input: a share for each `Send`."""

OnExceeded: TypeAlias = str | Callable[[Any, BudgetExceeded], Any] | None
"""The node to go to; or a function of the input and the error that returns the node's output."""


@overload
def budgeted(
    node: Runnable[Any, Any], budget: BudgetOf, *, on_exceeded: OnExceeded = None
) -> Runnable[Any, Any]: ...
@overload
def budgeted(node: Node, budget: BudgetOf, *, on_exceeded: OnExceeded = None) -> Node: ...
def budgeted(node: Any, budget: BudgetOf, *, on_exceeded: OnExceeded = None) -> Any:
    """A node that runs in a budget's scope: whatever is guarded without a budget counts against it.

    This covers everything that the node calls in its own task, and in tasks and threads that it
    starts with its context: models, tools, sub-agents, sub-graphs. Anything guarded with its own
    budget keeps that.

    Args:
        node: A function of the state, sync or async, with any other arguments that LangGraph passes
            (``config``, ``runtime``, ``store``, ``writer``); or a runnable, such as a compiled
            sub-graph.
        budget: The budget; or a function that returns it for the node's input.
        on_exceeded: What to do when the node raises `BudgetExceeded`: the name of the node to go
            to, or a function of the input and the error that returns an update or a ``Command``
            (for an async node it may be async). None: raise it; no retry policy retries it. A model
            guarded with ``on_limit="stop"``, the default, answers instead of raising: guard it with
            ``on_limit="raise"``.

    Returns:
        A node for ``add_node``, with the same name and signature. To have the target of
        ``on_exceeded`` drawn, name it in ``add_node(..., destinations=...)``.

    Raises:
        TypeError: The node, the budget or ``on_exceeded`` is none of these.

    Example:
        >>> model = guard(ChatOpenAI(model="gpt-4o"), on_limit="raise")  # doctest: +SKIP
        >>> def research(state):  # doctest: +SKIP
        ...     return {"notes": [model.invoke(state["question"]).text]}
        >>> graph.add_node(  # doctest: +SKIP
        ...     "research", budgeted(research, team.child("research", "$0.50"), on_exceeded="write")
        ... )
    """
    if not isinstance(budget, Budget) and not callable(budget):
        raise TypeError(
            f"budgeted() takes a Budget, or a function that returns one, got {budget!r}"
        )
    if on_exceeded is not None and not isinstance(on_exceeded, str) and not callable(on_exceeded):
        raise TypeError(f"on_exceeded must be a node's name or a function, got {on_exceeded!r}")
    if isinstance(node, Runnable):
        return _runnable(node, budget, on_exceeded)
    if not callable(node):
        raise TypeError(f"budgeted() takes a function or a runnable, got {node!r}")
    called = node if inspect.isroutine(node) else getattr(node, "__call__", node)  # noqa: B004
    if inspect.iscoroutinefunction(node) or inspect.iscoroutinefunction(called):

        @wraps(node)
        async def arun(state: Any, *args: Any, **kwargs: Any) -> Any:
            return await _aguarded(lambda: node(state, *args, **kwargs), state, budget, on_exceeded)

        return arun

    @wraps(node)
    def run(state: Any, *args: Any, **kwargs: Any) -> Any:
        return _guarded(lambda: node(state, *args, **kwargs), state, budget, on_exceeded)

    return run


def _runnable(
    node: Runnable[Any, Any], budget: BudgetOf, on_exceeded: OnExceeded
) -> Runnable[Any, Any]:
    def run(state: Any, config: RunnableConfig) -> Any:
        return _guarded(lambda: node.invoke(state, config), state, budget, on_exceeded)

    async def arun(state: Any, config: RunnableConfig) -> Any:
        return await _aguarded(lambda: node.ainvoke(state, config), state, budget, on_exceeded)

    return RunnableLambda(run, arun, name=node.get_name())


def _guarded(call: Callable[[], Any], state: Any, budget: BudgetOf, on_exceeded: OnExceeded) -> Any:
    try:
        with _budget(budget, state).scope():
            return call()
    except BudgetExceeded as error:
        if on_exceeded is None:
            raise
        return _instead(on_exceeded, state, error)


async def _aguarded(
    call: Callable[[], Awaitable[Any]], state: Any, budget: BudgetOf, on_exceeded: OnExceeded
) -> Any:
    try:
        with _budget(budget, state).scope():
            return await call()
    except BudgetExceeded as error:
        if on_exceeded is None:
            raise
        instead = _instead(on_exceeded, state, error)
    return await instead if inspect.isawaitable(instead) else instead


def _budget(budget: BudgetOf, state: Any) -> Budget:
    found = budget if isinstance(budget, Budget) else budget(state)
    if not isinstance(found, Budget):
        raise TypeError(f"the function given to budgeted() must return a Budget, got {found!r}")
    return found


def _instead(
    on_exceeded: str | Callable[[Any, BudgetExceeded], Any], state: Any, error: BudgetExceeded
) -> Any:
    return Command(goto=on_exceeded) if isinstance(on_exceeded, str) else on_exceeded(state, error)

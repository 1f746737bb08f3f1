"""The budget of the current context, for everything guarded without one of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tokenfence_integrations.errors import NoBudgetError

if TYPE_CHECKING:
    from tokenfence_integrations.engine.budget import Budget

__all__ = ["budget_here", "budget_in_scope", "scope", "scoped_budget"]

_scoped: "ContextVar[Budget | None]" = ContextVar("tokenfence_budget", default=None)


@contextmanager
def scope(budget: "Budget") -> "Iterator[Budget]":
    """Make a budget the one in scope until the block ends.

    Tasks started in the block inherit it, and so do `asyncio.to_thread` and threads that run in a
    `contextvars.copy_context`. Scopes nest; the innermost counts.
    """
    token = _scoped.set(budget)
    try:
        yield budget
    finally:
        _scoped.reset(token)


def scoped_budget() -> "Budget | None":
    """The budget of the innermost ``with budget.scope():`` here; None if there is none.

    In a web app with `tokenfence_integrations.web`: the request's.

    Example:
        >>> with Budget("$5", name="job").scope():
        ...     scoped_budget().name
        'job'
    """
    return _scoped.get()


def budget_here(own: "Budget | None") -> "Budget":
    """The budget that a call made here and now counts against.

    Args:
        own: That of what is called. A scope of a budget below it narrows it: the call counts
            against both. None: the ambient one.

    Raises:
        NoBudgetError: There is none.
    """
    if own is None:
        return budget_in_scope()
    scoped = _scoped.get()
    if scoped is None or scoped is own or scoped._tree is not own._tree:
        return own
    return scoped if own.path[0] in scoped.path else own


def budget_in_scope() -> "Budget":
    """The ambient budget.

    Raises:
        NoBudgetError: There is none here.
    """
    budget = _scoped.get()
    if budget is None:
        raise NoBudgetError(
            "this was guarded without a budget and is called outside any budget.scope(); "
            'give it one, guard(..., budget="$5"), or call it inside "with budget.scope():". '
            "Threads of a pool do not inherit a scope: give them one with "
            "pool.submit(contextvars.copy_context().run, function, ...)"
        )
    return budget

"""Other ways to an answer than the model's own, and how they leave LangChain's cache behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from tokenfence_integrations.engine.calls.handover import Handover
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["Assignment", "Detour", "Route", "assigned", "assigned_to", "catching"]


class Route(NamedTuple):
    """Another way to the answer than the model's own: a refusal, or another model.

    ``call`` is what is reserved for that model, and ``options`` are the call's, as it takes them.
    ``signature`` is the name that it puts on its answer, if that has a form of its own.
    """

    refusal: BudgetExceeded | None = None
    target: Any = None
    call: Call | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default, never changed
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


@contextmanager
def assigned_to(route: Route) -> Iterator[None]:
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

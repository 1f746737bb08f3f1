"""A reservation handed down: made by an outer layer, ended by the layer nearest to the wire.

An agent's callback handler, its chat model and that model's client may each be guarded, and all
see the same provider call, which must be charged once. So the layer that has reserved offers its
call to those below, in a context variable; the first one whose budget is charged by it takes it
over, and from then on ends it: it sees each attempt, and the usage as the provider reported it.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenfence_integrations.engine.budget import Budget
    from tokenfence_integrations.engine.calls.meter import Call

__all__ = ["Handover", "offered"]


class Handover:
    """Calls on offer to the layers below, in the order in which they will be made.

    Args:
        calls: Admitted calls; whoever takes one has to end it.
        wire: Whether it is for the provider's client alone: the layer that offers it calls that
            next, so that any other guarded thing that is called meanwhile makes a call of its own.
        around: What a layer further out has on offer, for those whom nothing here fits. What that
            offers for its client alone is not for them.

    Example:
        >>> token = offered.set(Handover(call))  # doctest: +SKIP
    """

    __slots__ = ("_calls", "around", "wire")

    def __init__(
        self, *calls: "Call", wire: bool = False, around: "Handover | None" = None
    ) -> None:
        self._calls = [*calls]
        self.wire = wire
        self.around = None if around is not None and around.wire else around

    def add(self, call: "Call") -> None:
        """Offer another call after those that are on offer."""
        self._calls.append(call)

    def has(self, call: "Call") -> bool:
        """Whether this call is still on offer: nobody below has taken it."""
        return call in self._calls

    def withdraw(self, call: "Call") -> bool:
        """Take a call back; False if a layer below was quicker."""
        return self._remove(call)

    def is_open(self) -> bool:
        """Whether any call is still on offer, here or further out."""
        if any(call.open for call in [*self._calls]):
            return True
        return self.around is not None and self.around.is_open()

    def charges(self, budget: "Budget") -> bool:
        """Whether an open call on offer charges this budget already."""
        if any(call.charges(budget) and call.open for call in [*self._calls]):
            return True
        return self.around is not None and self.around.charges(budget)

    def take(self, budget: "Budget") -> "Call | None":
        """Take over the first call that charges this budget already.

        A call of a budget *above* this one charges too few accounts: it is released, since the
        reservation that is now made here is one in its budget as well.

        Args:
            budget: What the layer below would charge.

        Returns:
            An open call, to be used and ended in place of one's own; None: make one.
        """
        for call in [*self._calls]:
            if call.tree is not budget._tree:
                continue
            below, above = call.charges(budget), call.budget.path[0] in budget.path
            if not (below or above) or not self._remove(call):
                continue
            if below and call.open:
                return call
            call.release()
            return None
        return None if self.around is None else self.around.take(budget)

    def _remove(self, call: "Call") -> bool:
        try:
            self._calls.remove(call)
        except ValueError:  # another thread was faster
            return False
        return True


offered: "ContextVar[Handover | None]" = ContextVar("tokenfence_offered", default=None)
"""What the layers around this one have reserved for the call that is about to be made."""

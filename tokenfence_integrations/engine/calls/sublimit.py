"""Limits beside the budget's: of one run of an agent, say, or of all runs of its thread."""

from collections.abc import Collection

from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount, Limits

__all__ = ["Sublimit"]


class Sublimit:
    """An account beside the budget's, kept in memory: what one run of an agent has spent, say.

    A call is admitted only if it fits it as well as the budget, and is charged to it too. It is for
    calls that are made one after another: what is reserved in it is its maker's own, so nothing
    waits for that to end.

    Args:
        name: What refusals call it.
        limits: The most that it may hold; dollars in nano-dollars.
        spent: What its calls have surely cost so far.
        uncertain: What is charged for calls of unknown outcome so far.

    Example:
        >>> run = Sublimit("this run", Limits(usd=500_000_000))
        >>> run.charge(Amount(usd=70_000, calls=1), NOTHING)
        >>> run.state.spent.usd
        70000
    """

    __slots__ = ("_open", "limits", "name", "spent", "uncertain")

    def __init__(
        self, name: str, limits: Limits, spent: Amount = NOTHING, uncertain: Amount = NOTHING
    ) -> None:
        self.name = name
        self.limits = limits
        self.spent = spent
        self.uncertain = uncertain
        self._open: dict[int, Amount] = {}

    @property
    def open(self) -> Collection[int]:
        """The numbers of the calls that are reserved in it."""
        return [*self._open]

    @property
    def reserved(self) -> Amount:
        """What its open calls hold."""
        return NOTHING.plus(*self._open.values())

    @property
    def state(self) -> AccountState:
        """The account at this moment."""
        return AccountState(*self.limits, *self.spent, *self.reserved, *self.uncertain)

    def admitted(self, call: int, amount: Amount) -> None:
        """A call has reserved this."""
        self._open[call] = amount

    def ended(self, call: int, spent: Amount, uncertain: Amount) -> None:
        """A call has ended, and is charged this; a second time changes nothing."""
        if call in self._open:
            charged = self.spent.plus(spent), self.uncertain.plus(uncertain)
            self.spent, self.uncertain = charged  # and no call, so no Ctrl-C, before the next line
            del self._open[call]

    def charge(self, spent: Amount, uncertain: Amount) -> None:
        """Add to what is spent and uncertain."""
        self.spent = self.spent.plus(spent)
        self.uncertain = self.uncertain.plus(uncertain)

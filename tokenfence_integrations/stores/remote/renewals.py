"""When a process has to say that it lives, so that what it holds on a server is not charged."""

from collections.abc import Callable, Iterable, Sequence

from tokenfence_integrations.stores.base import Path
from tokenfence_integrations.stores.remote.wire import tree_of

__all__ = ["Renewals"]

REMEMBERED = 10_000
"""Trees of which it is remembered when a lease was renewed there."""


class Renewals:
    """The leases of this process, one in each tree, renewed when a third of their time is over.

    Args:
        lease: Seconds for which each lasts.

    Attributes:
        at: Monotonic time at which the leases are due of all trees in which anything is held.
    """

    def __init__(self, lease: float) -> None:
        self.at = 0.0
        self._third = lease / 3
        self._trees: dict[str, float] = {}  # when they were renewed

    def due(
        self, reserving: Iterable[Path], held: Callable[[], Iterable[Path]], now: float
    ) -> Sequence[str]:
        """The trees whose lease has to be renewed.

        Args:
            reserving: Where something is about to be reserved.
            held: Tells where something is reserved.
            now: Monotonic time.
        """
        before = now - self._third
        trees = set()
        for path in reserving:
            tree = tree_of(path[-1])
            if self._trees.get(tree, before) <= before:
                trees.add(tree)
        if now >= self.at:  # also those that were renewed since: the next time is one for all
            trees.update([tree_of(path[-1]) for path in held()])
        return list(trees)

    def renewed(self, trees: Iterable[str], now: float) -> None:
        """Take note that those were renewed that were `due` at this time."""
        if now >= self.at:
            self.at = now + self._third
        for tree in trees:
            if len(self._trees) >= REMEMBERED:
                self._trees.clear()
            self._trees[tree] = now

    def doubt(self) -> None:
        """Have all renewed as soon as that can be."""
        self.at = 0.0
        self._trees.clear()

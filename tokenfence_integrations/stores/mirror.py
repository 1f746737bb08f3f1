"""What a process knows of accounts that live elsewhere, kept up to date by its own calls."""

from collections import Counter
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any

from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount, Path
from tokenfence_integrations.stores.memory import COUNTED, SPENT, MemoryStore

__all__ = ["Mirror"]


class Mirror(MemoryStore):
    """Accounts as they were when they were last looked at, and with what was done here since.

    Each is kept twice: as it is in the store, where slices count as reserved, and as it is, where
    only calls do. Calls change the second alone; slices that are borrowed, reported or given back
    change the first alone. So their difference is what the store counts otherwise than it is, and
    turns whatever else the store tells into how things are.

    What other processes did since is missing. Limits therefore decide nothing here alone.

    Args:
        lock: Held by whoever changes both this and what it tells of.
    """

    def __init__(self, lock: RLock) -> None:
        super().__init__()
        self._lock = lock
        self._told: dict[str, list[Any]] = {}  # spent, reserved, uncertain, as in the store
        self._holders: Counter[str] = Counter()
        self.doubtful: set[str] = set()
        """Accounts to be looked at before they are used again."""

    def knows(self, path: Path) -> bool:
        """Whether all accounts of a path are known, and not doubted."""
        return all(name in self._told and name not in self.doubtful for name in path)

    def hold(self, path: Path) -> None:
        """Keep what is learned of accounts, from now on."""
        with self._lock:
            self._holders.update(path)

    def let_go(self, path: Path) -> None:
        """Keep it no more, unless others hold it."""
        with self._lock:
            self._holders.subtract(path)
            for name in path:
                if self._holders[name] <= 0:  # nobody looks at it again
                    del self._holders[name]
                    self.doubtful.discard(name)
                    self._told.pop(name, None)
                    self._accounts.pop(name, None)

    def doubt(self, accounts: Iterable[str] | None) -> None:
        """Have accounts looked at before they are used again; None: all."""
        known = self._told if accounts is None else [a for a in accounts if a in self._told]
        self.doubtful.update(known)

    def learn(self, path: Path, states: Sequence[AccountState]) -> None:
        """Take over how accounts are in the store."""
        with self._lock:
            true = self.as_they_are(path, states)
            for name, told, state in zip(path, states, true, strict=True):
                counted = any(limit is not None for limit in state[1:SPENT])
                self._accounts[name] = [*state, counted, state.limits]
                self._told[name] = [*told[SPENT:COUNTED]]
            self.doubtful.difference_update(path)

    def as_they_are(self, path: Path, states: Iterable[AccountState]) -> tuple[AccountState, ...]:
        """How accounts are that are so in the store."""
        with self._lock:
            return tuple(
                [self._as_it_is(name, state) for name, state in zip(path, states, strict=True)]
            )

    def _as_it_is(self, name: str, state: AccountState) -> AccountState:
        told = self._told.get(name)
        if told is None:
            return state
        known = self._accounts[name][SPENT:COUNTED]
        parts = zip(state[SPENT:], known, told, strict=True)
        return AccountState._make([*state[:SPENT], *[n + is_ - was for n, is_, was in parts]])

    def told(
        self,
        path: Path,
        *,
        spent: Amount = NOTHING,
        reserved: Amount = NOTHING,
        uncertain: Amount = NOTHING,
    ) -> None:
        """Add what the store was told, and what has long been counted here."""
        with self._lock:
            for name in path:
                if name in self._told:
                    _add(self._told[name], 0, *spent, *reserved, *uncertain)

    def changed(
        self,
        path: Path,
        *,
        spent: Amount = NOTHING,
        reserved: Amount = NOTHING,
        uncertain: Amount = NOTHING,
    ) -> None:
        """Add what was done in the store itself."""
        with self._lock:
            for name in path:
                if name in self._told:
                    _add(self._told[name], 0, *spent, *reserved, *uncertain)
                    _add(self._accounts[name], SPENT, *spent, *reserved, *uncertain)

    def _charge(self, name: str, path: Path, amount: Amount, what: str) -> None:
        """Charges are listed where the accounts are."""


def _add(numbers: list[Any], start: int, *more: int) -> None:
    for index, part in enumerate(more, start):
        numbers[index] += part

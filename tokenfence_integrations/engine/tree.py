"""What all budgets of one tree share: the store, the line of waiters, the ledger, the listeners."""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Lock, RLock
from typing import NamedTuple, Protocol, TypeAlias

from tokenfence_integrations.engine.events import Event, Listener, tell
from tokenfence_integrations.engine.forecast import Forecasts
from tokenfence_integrations.engine.leases import Leases
from tokenfence_integrations.engine.ledger import Ledger
from tokenfence_integrations.engine.limits.names import budget_of
from tokenfence_integrations.engine.waiting import Owner, WaitingLine, parents
from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.stores.base import AccountState, Amount, Drop, Path, Store

__all__ = ["NONE_STUCK", "Clock", "Live", "Orphan", "Tree"]

NONE_STUCK: Sequence[Amount | None] = (None,) * 64
"""For paths of up to this many accounts: nothing is stuck in any."""


NUMBERS = itertools.count(1)
"""Numbers of the calls: of all trees, because trees may share a store."""


ORPHANS: "deque[Orphan]" = deque()
"""Abandoned calls of all trees, because theirs may be gone with its last budget."""


class Clock(NamedTuple):
    """Where times come from; tests bring their own."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


Live: TypeAlias = tuple[Owner, Path, Amount]
"""A reservation in flight: who made it, where, and how much."""


class Orphan(Protocol):
    """A call whose last reference is gone although it never ended."""

    def abandon(self) -> None:
        """End it as a call of unknown outcome."""


class Tree:
    """The shared part of a budget and all its descendants.

    Args:
        store: Keeps the accounts.
        ledger: Keeps the records.
        clock: Gives the times.
    """

    def __init__(self, store: Store, ledger: Ledger, clock: Clock) -> None:
        self.store = store
        self.instant = store.instant
        self.ledger = ledger
        self.clock = clock
        self.leases = Leases(clock.monotonic)
        self.numbers = NUMBERS
        self.listeners: list[tuple[str, Listener]] = []
        self.orphans = ORPHANS
        self.passed: deque[tuple[Path, bool]] = deque()
        self._latest = 0.0
        self._retiring: list[tuple[float, str]] = []
        self._to_retire: set[str] = set()
        self._kept_until: dict[str, float] = {}
        self.forecasts = Forecasts()
        self.name = ""
        """The root's."""
        self.begin_life()
        begin_anew_in_children(self)
        store.on_trouble(self._heed)

    def begin_life(self) -> None:
        """As `Forked.begin_life`: calls in flight are the parent's, and nobody stands in line."""
        self.line = WaitingLine(self.clock.monotonic)
        self.live: dict[int, Live] = {}
        self.life = object()
        """Whose life it is: another one in a forked process."""
        self.making = RLock()
        """Held while a child is looked for and made, so that two threads get the same one."""
        self.changing = RLock()  # held while limits change, and those that are shares of them
        # Reentrant: a finalizer may end a call, and its listener look at a budget.
        self.moving = RLock()
        self.correcting = Lock()
        """Held while books are corrected by hand, so that the ledger tells what was corrected."""

    def now(self) -> float:
        """Unix time for windows: it stands still while the clock, set back, catches up."""
        now = self.clock.wall()
        if now < self._latest:
            return self._latest
        self._latest = now
        return now

    def keep(self, account: str, seconds: float) -> None:
        """Do not drop a window's account for so long, whatever the clock says; `moving` is held."""
        self._kept_until[account] = self.clock.monotonic() + seconds

    def retire_later(self, at: float, account: str, now: float) -> None:
        """Drop a window's account at a time, or once no call of this tree is in flight there.

        What is due now is dropped whenever another window opens; `moving` is held.
        """
        if account not in self._to_retire:  # else its budget has passed, and is made again
            self._to_retire.add(account)
            heapq.heappush(self._retiring, (at, account))
        due = []
        while self._retiring and self._retiring[0][0] <= now:
            due.append(heapq.heappop(self._retiring))
        if not due:
            return
        in_use = {name for _, path, _ in list(self.live.values()) for name in path}
        now_really = self.clock.monotonic()
        in_use |= {name for _, name in due if self._kept_until.get(name, now_really) > now_really}
        for time_due, name in due:
            if name in in_use:
                heapq.heappush(self._retiring, (max(now, time_due) + 1.0, name))
            else:
                self._to_retire.discard(name)
                self._kept_until.pop(name, None)
                self.store.note(Drop(name))
        self.ledger.retire([name for _, name in due if name not in in_use])

    def stuck(
        self, path: Path, states: Sequence[AccountState], owner: Owner, *, blocks_thread: bool
    ) -> Sequence[Amount | None]:
        """What is reserved by calls that cannot end while this call waits, for each account.

        Those are the calls of its own task (or, for a sync call, of its own thread, whose event
        loop it would block), and of those that wait for it (see `waited_for`). And if all other
        calls in flight belong to tasks and threads that wait in line themselves, theirs too: two
        streams that each make another call would otherwise wait for each other. Calls that the
        states tell of and this tree does not know are made by others, and may end at any time.
        """
        if not self.live:
            return NONE_STUCK
        line = self.line
        blocked = [
            w
            for w in line.waiting.copy()
            if (w.blocked and not w.awaits_window) or line.is_behind_closed(w)
        ]
        above = parents.get()
        own: list[tuple[Path, Amount]] = []
        theirs: list[tuple[Path, Amount]] = []
        live = list(self.live.values())
        something_moves = not self.instant and _more_reserved(path, states, live)
        for live_owner, live_path, amount in live:
            mine = live_owner[0] == owner[0] if blocks_thread else live_owner == owner
            if mine or live_owner in above:
                own.append((live_path, amount))
            elif any(waiter.is_stuck(live_owner) for waiter in blocked):
                theirs.append((live_path, amount))
            else:
                something_moves = True
        stuck = own if something_moves else own + theirs
        if not stuck:
            return NONE_STUCK
        return [_sum(amount for other, amount in stuck if account in other) for account in path]

    def hand_to(self, owner: Owner, calls: Iterable[int]) -> None:
        """Have calls in flight count as this owner's own from now on."""
        for call in calls:
            live = self.live.get(call)
            if live is not None:
                self.live[call] = (owner, live[1], live[2])

    def adopt(self, orphan: Orphan) -> None:
        """Take an abandoned call from a finalizer: no lock, no waiting, only a note."""
        self.orphans.append(orphan)
        for waiter in self.line.waiting.copy():
            try:
                waiter.wake()
            except RuntimeError:  # its event loop is closed: the next one looks
                continue
            return

    def settle_orphans(self) -> None:
        """End the calls that nobody else will end; every budget operation begins with this.

        Those are the ones that finalizers left a note of, and those whose lease is over. Passing
        budgets that are gone are forgotten as well.
        """
        if self.leases.given:
            self.leases.expire()
        while self.orphans:
            try:
                orphan = self.orphans.popleft()
            except IndexError:  # another thread was faster
                return
            orphan.abandon()
        while self.passed:
            try:
                path, nameless = self.passed.popleft()
            except IndexError:  # another thread was faster
                return
            self._forget(path, nameless)

    def _forget(self, path: Path, nameless: bool) -> None:
        """Forget a passing budget, of which nothing is in use any more.

        Nobody will ask for the account of one without a name. ``path`` is what it charged last.
        """
        if not self.ledger.close(path):  # it was made again meanwhile
            return
        for entry in self.listeners.copy():
            if entry[0] == budget_of(path[0]):
                self.listeners.remove(entry)
        if nameless:
            self.store.note(Drop(path[0]))

    def tell(self, path: Path, event: Event) -> None:
        """Tell the listeners of every budget of the path."""
        tell([listener for account, listener in self.listeners if account in path], event)

    def _heed(self, trouble: StoreError | None) -> None:
        """Tell all listeners that the store has ceased to answer, or does so again."""
        event = Event(
            kind="store_back" if trouble is None else "store_lost",
            budget=self.name,
            call=0,
            at=self.clock.wall(),
            tags={} if trouble is None else {"reason": trouble.reason},
        )
        tell([listener for _, listener in self.listeners.copy()], event)


def _more_reserved(path: Path, states: Sequence[AccountState], live: Sequence[Live]) -> bool:
    """Whether more calls are in flight, by the states of a path, than the known ones."""
    return any(
        state.reserved_calls > sum(amount.calls for _, known, amount in live if account in known)
        for account, state in zip(path, states, strict=True)
    )


def _sum(amounts: Iterable[Amount]) -> Amount:
    usd = calls = into = out = 0
    for amount in amounts:
        usd += amount[0]
        calls += amount[1]
        into += amount[2]
        out += amount[3]
    return Amount(usd, calls, into, out)

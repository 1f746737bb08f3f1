"""The accounts of a budget whose path has windows: which ones are charged now."""

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from tokenfence_integrations.engine.drivers import Flow
from tokenfence_integrations.engine.limits.names import account_named
from tokenfence_integrations.engine.limits.windows import Interval, Schedule, Window
from tokenfence_integrations.stores.base import Anchor, Drop, Limits, Open, Path

if TYPE_CHECKING:
    from tokenfence_integrations.engine.tree import Tree

__all__ = ["Accounts", "Renewal"]

KEPT = 600
"""Seconds after its end for which a window's account is kept at least; and one window at least.

Until then another process, whose clock is late or which was stopped, may still reserve there.
"""


class Renewal(NamedTuple):
    """A window, and the limits that the one after it begins with."""

    window: Window
    schedule: Schedule
    limits: Limits


class Accounts:
    """The accounts of a budget that has a window, or is below one that has.

    Time goes on for the whole tree, and never back: when the clock is set back, the windows that
    are open stay so.

    Args:
        tree: The budget's tree.
        path: The names of the budget and of those above it.
        limits: What each window begins with.
        schedule: The budget's own windows; None: only those above it have some.
        above: The accounts of the parent; None if it has constant ones, or there is no parent.
    """

    def __init__(
        self,
        tree: "Tree",
        path: Path,
        limits: Limits,
        schedule: Schedule | None,
        above: "Accounts | None",
    ) -> None:
        self.limits = limits
        self._tree = tree
        self._name = path[0]
        self._schedule = schedule
        self._above = above
        self._path = path
        self._until = -inf
        self._window: Window | None = None

    # The two fields that are read without a lock: `_until` is written last.

    def known(self) -> Path | None:
        """The accounts that are charged now, leaf first; None: the store has to be asked first."""
        now = self._tree.now()
        if now < self._until:
            return self._path
        with self._tree.moving:
            return self._move_to(now)

    def flow(self) -> Flow[Path]:
        """The same, with what has to be asked of the store."""
        while (path := self.known()) is None:
            unanchored = self._unanchored()
            if unanchored is None:  # another thread was faster
                continue
            reply = yield Anchor(unanchored._name, float(int(self._tree.now())))
            unanchored._set_anchor(int(reply.at))  # type: ignore[union-attr]
        return path

    @property
    def latest(self) -> Path:
        """The accounts that were last charged; for finalizers, which look at no clock."""
        return self._path

    @property
    def until(self) -> float:
        """Unix time at which the first of the path's windows ends."""
        return self._until

    @property
    def window(self) -> Window | None:
        """The window that was open when the accounts were last asked for."""
        return self._window

    def kept(self) -> Path:
        """The budget's own accounts that the store may still have, of the open window first."""
        window, schedule = self._window, self._schedule
        if window is None or schedule is None:
            return self._path[:1]
        windows, since = [window], self._tree.now() - KEPT
        while len(windows) == 1 or windows[-1].start > since:
            before = schedule.at(windows[-1].start - 1)
            if before == windows[-1]:  # the first one, at its anchor
                break
            windows.append(before)
        return tuple([account_named(self._name, each) for each in windows])

    def renewals(self) -> list[Renewal | None]:
        """For each account of the path, leaf first, the window that it will be renewed after."""
        window, schedule = self._window, self._schedule
        own = None
        if window is not None and schedule is not None:
            own = Renewal(window, schedule, self.limits)
        if self._above is None:
            return [own, *[None] * (len(self._path) - 1)]
        return [own, *self._above.renewals()]

    def _move_to(self, now: float) -> Path | None:
        """Go on to the windows of a moment; the tree's lock is held."""
        if now < self._until:
            return self._path
        parents, until = self._path[1:], inf
        if self._above is not None:
            above = self._above._move_to(now)
            if above is None:
                return None
            parents, until = above, self._above._until
        account, opened = self._path[0], False
        if self._schedule is not None:
            window = self._window
            if window is None or now >= window.end:
                if isinstance(self._schedule, Interval) and self._schedule.anchor is None:
                    return None
                window, opened = self._open_window(self._schedule, now), True
            account, until = account_named(self._name, window), min(until, window.end)
        self._path = (account, *parents)
        self._until = until
        if opened:
            self._tree.line.opened(self._name)
        return self._path

    def _open_window(self, schedule: Schedule, now: float) -> Window:
        """Open the account of a new window, and drop those that are long over."""
        tree, window = self._tree, schedule.at(now)
        account = account_named(self._name, window)
        # Noted, so that it stands in front of the first reservation, whoever makes that.
        tree.store.note(Open(account, self.limits))
        tree.ledger.open(account)
        if self._window is not None:
            # The clock may have been put forward, or the machine have slept for days, while another
            # thread or process is about to reserve there: so many seconds have really to go by.
            tree.keep(account_named(self._name, self._window), KEPT)
        tree.retire_later(max(schedule.at(window.end).end, window.end + KEPT), account, now)
        if self._window is None and (over := _long_over(schedule, window, now)) is not None:
            # Of a process that has ended meanwhile, perhaps.
            tree.store.note(Drop(account_named(self._name, over)))
        self._window = window
        return window

    def _unanchored(self) -> "Accounts | None":
        """The budget, here or above, whose first use the store has to be asked for."""
        schedule = self._schedule
        if isinstance(schedule, Interval) and schedule.anchor is None:
            return self
        return None if self._above is None else self._above._unanchored()

    def _set_anchor(self, at: int) -> None:
        assert isinstance(self._schedule, Interval)
        self._schedule = self._schedule._replace(anchor=at)


def _long_over(schedule: Schedule, window: Window, now: float) -> Window | None:
    """The last window whose account nobody can need any more."""
    by = min(schedule.at(window.start - 1).start, int(now) - KEPT)
    before = schedule.at(by - 1)
    if before.end > by:
        before = schedule.at(before.start - 1)
    return before if before.end <= by else None  # there is none before an anchor

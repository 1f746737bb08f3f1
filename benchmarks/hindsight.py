"""Which calls that wait there is room for, whatever the stores know of it."""

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

__all__ = ["Hindsight", "Peaks"]

C = TypeVar("C")


class Peaks:
    """The most that was used of an account at any moment of the last few: room that lasted.

    Args:
        used: What is used of each account; others change it, and say so here before they do.
        clock: The time.
        seconds: For how long room has to be there without a break.

    Example:
        >>> used, now = {"org": 9}, [0.0]
        >>> peaks = Peaks(used, lambda: now[0], 5.0)
        >>> peaks.will_change("org")
        >>> used["org"], now[0] = 3, 4.0
        >>> peaks["org"]
        9
        >>> now[0] = 5.0
        >>> peaks["org"]
        3
    """

    def __init__(self, used: Mapping[str, int], clock: Callable[[], float], seconds: float) -> None:
        self._used = used
        self._clock = clock
        self._seconds = seconds
        self._before: dict[str, deque[tuple[float, int]]] = {}  # until when it was so much

    def will_change(self, account: str) -> None:
        """Take note of what is used of an account up to now."""
        used, before = self._used[account], self._before.setdefault(account, deque())
        while before and before[-1][1] <= used:  # that will not be the most any more
            before.pop()
        before.append((self._clock(), used))

    def __getitem__(self, account: str) -> int:
        now, used = self._used[account], self._before.get(account)
        while used and used[0][0] + self._seconds <= self._clock():
            used.popleft()
        return max(now, used[0][1]) if used else now


class Hindsight(Generic[C]):
    """Finds the calls for which there was room while they waited, by the true sums.

    Room is only made when a call ends. So a call that has none in an account is looked at again
    some moments after a call has ended there, and not before. What others have taken by then, or
    had at any moment since, is no room.

    Args:
        limits: Of each account.
        used: What is spent, uncertain and in flight of each account; others keep it up to date.
        peaks: The most of that within the last moments.
        root: The account that all calls share.
        clock: The time.
        each: Whether the same room counts for each call that waits for it. If not, it is for one
            call alone, until that is admitted or refused: then those found would all have fitted
            together.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        used: Mapping[str, int],
        peaks: Peaks,
        root: str,
        clock: Callable[[], float],
        *,
        each: bool,
    ) -> None:
        self.fitted: dict[C, float] = {}
        """Those that wait and for which there was room, and since when."""
        self._limits = limits
        self._used = used
        self._peaks = peaks
        self._root = root
        self._clock = clock
        self._each = each
        self._promised = dict.fromkeys(limits, 0)
        self._waiting: dict[C, tuple[str, int]] = {}
        self._root_is_full: list[tuple[int, int, C]] = []
        self._tenant_is_full: dict[str, list[C]] = {}
        self._more_room: set[str] = set()
        self._order = count()

    def wait(self, call: C, tenant: str, needs: int) -> None:
        """A call begins to wait; if there is room for it at this moment, that counts at once."""
        self._waiting[call] = tenant, needs
        self._see(call, self._used)

    def leave(self, call: C) -> float | None:
        """A call is admitted or refused; since when there was room for it, if there was."""
        waiting = self._waiting.pop(call, None)
        fitted = self.fitted.pop(call, None)
        if waiting is not None and fitted is not None and not self._each:
            tenant, needs = waiting
            self._promise(tenant, -needs)
            self._more_room.add(tenant)
        return fitted

    def look(self, tenant: str) -> None:
        """Find those for which there is room by now; a call of this tenant ended moments ago."""
        tenants, self._more_room = self._more_room | {tenant}, set()
        calls = [call for each in tenants for call in self._tenant_is_full.pop(each, ())]
        heap, room = self._root_is_full, self._room(self._root, self._peaks)
        while heap and heap[0][0] <= room:
            calls.append(heappop(heap)[2])
        for call in calls:
            if call in self._waiting:
                self._see(call, self._peaks)

    def _see(self, call: C, used: Mapping[str, int] | Peaks) -> None:
        tenant, needs = self._waiting[call]
        if self._room(tenant, used) < needs:
            self._tenant_is_full.setdefault(tenant, []).append(call)
        elif self._room(self._root, used) < needs:
            heappush(self._root_is_full, (needs, next(self._order), call))
        else:
            self.fitted[call] = self._clock()
            if not self._each:
                self._promise(tenant, needs)

    def _room(self, account: str, used: Mapping[str, int] | Peaks) -> int:
        return self._limits[account] - used[account] - self._promised[account]

    def _promise(self, tenant: str, needs: int) -> None:
        for account in (tenant, self._root):
            self._promised[account] += needs

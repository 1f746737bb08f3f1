"""Which calls that wait there is room for, whatever the stores know of it."""

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

__all__ = ["Hindsight"]

C = TypeVar("C")


class Hindsight(Generic[C]):
    """Finds the calls for which there was room while they waited, by the true sums.

    Room is only made when a call ends. So a call that has none in an account is looked at again
    when there is more room in that account, and not before.

    Args:
        limits: Of each account.
        used: What is spent, uncertain and in flight of each account; others keep it up to date.
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
        root: str,
        clock: Callable[[], float],
        *,
        each: bool,
    ) -> None:
        self.fitted: dict[C, float] = {}
        """Those that wait and for which there was room, and since when."""
        self._limits = limits
        self._used = used
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
        """A call begins to wait."""
        self._waiting[call] = tenant, needs
        self._see(call)

    def leave(self, call: C) -> float | None:
        """A call is admitted or refused; since when there was room for it, if there was."""
        waiting = self._waiting.pop(call, None)
        fitted = self.fitted.pop(call, None)
        if waiting is not None and fitted is not None and not self._each:
            tenant, needs = waiting
            self._promise(tenant, -needs)
            self._more_room.add(tenant)
        return fitted

    def ended(self, tenant: str) -> bool:
        """A call of a tenant has ended; whether this is the first one since the last `look`."""
        first = not self._more_room
        self._more_room.add(tenant)
        return first

    def look(self) -> None:
        """Find those for which there is room now."""
        tenants, self._more_room = self._more_room, set()
        calls = [call for tenant in tenants for call in self._tenant_is_full.pop(tenant, ())]
        heap, room = self._root_is_full, self._room(self._root)
        while heap and heap[0][0] <= room:
            calls.append(heappop(heap)[2])
        for call in calls:
            if call in self._waiting:
                self._see(call)

    def _see(self, call: C) -> None:
        tenant, needs = self._waiting[call]
        if self._room(tenant) < needs:
            self._tenant_is_full.setdefault(tenant, []).append(call)
        elif self._room(self._root) < needs:
            heappush(self._root_is_full, (needs, next(self._order), call))
        else:
            self.fitted[call] = self._clock()
            if not self._each:
                self._promise(tenant, needs)

    def _room(self, account: str) -> int:
        return self._limits[account] - self._used[account] - self._promised[account]

    def _promise(self, tenant: str, needs: int) -> None:
        for account in (tenant, self._root):
            self._promised[account] += needs

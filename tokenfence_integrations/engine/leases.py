"""Reservations whose end may never be told, and how long it is waited for."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, TypeAlias
from weakref import ref

if TYPE_CHECKING:
    from tokenfence_integrations.engine.calls.meter import Call

    Lease: TypeAlias = tuple[float, int, ref[Call]]

__all__ = ["Leases"]


class Leases:
    """Calls that somebody reports on who may fall silent, each with its deadline.

    A callback is not told of every end: a cancelled task, an abandoned stream. What such a call had
    reserved turns uncertain when its lease is over: it stays charged, and no longer looks like a
    call in flight that is worth waiting for.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.given: list[Lease] = []
        self._numbers = count()

    def add(self, call: "Call", seconds: float) -> None:
        """Give a call this long to end."""
        heapq.heappush(self.given, (self._clock() + seconds, next(self._numbers), ref(call)))

    def expire(self) -> None:
        """Book the calls whose time is over as uncertain."""
        now = self._clock()
        while (first := self._first()) is not None and first[0][0] <= now:
            lease, call = first
            self._drop(lease)
            call.lose()

    def seconds_left(self) -> float | None:
        """Seconds until the next lease is over; None if there is none."""
        first = self._first()
        return None if first is None else max(0.0, first[0][0] - self._clock())

    def _first(self) -> "tuple[Lease, Call] | None":
        """The next lease of a call that is still open, those of ended ones dropped on the way."""
        while self.given:
            try:
                lease = self.given[0]
            except IndexError:  # another thread was faster
                return None
            call = lease[2]()
            if call is not None and call.open:
                return lease, call
            self._drop(lease)
        return None

    def _drop(self, lease: "Lease") -> None:
        """Take a lease away that was the first, unless another thread has done so meanwhile."""
        try:
            first = heapq.heappop(self.given)
        except IndexError:
            return
        if first is not lease:
            heapq.heappush(self.given, first)

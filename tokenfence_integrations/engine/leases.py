"""Reservations whose end may never be told, and how long it is waited for."""

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from tokenfence_integrations.engine.meter import Call

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
        self.given: list[tuple[float, int, ref[Call]]] = []
        self._added = 0

    def add(self, call: "Call", seconds: float) -> None:
        """Give a call this long to end."""
        self._added += 1
        heapq.heappush(self.given, (self._clock() + seconds, self._added, ref(call)))

    def expire(self) -> None:
        """Book the calls whose time is over as uncertain."""
        now = self._clock()
        while (first := self._first()) is not None and first[0] <= now:
            call = first[1]
            self._drop()
            call.lose()

    def seconds_left(self) -> float | None:
        """Seconds until the next lease is over; None if there is none."""
        first = self._first()
        return None if first is None else max(0.0, first[0] - self._clock())

    def _first(self) -> "tuple[float, Call] | None":
        """The next deadline of a call that is still open, ended ones dropped on the way."""
        while self.given:
            try:
                deadline, _, reference = self.given[0]
            except IndexError:  # another thread was faster
                return None
            call = reference()
            if call is not None and call.open:
                return deadline, call
            self._drop()
        return None

    def _drop(self) -> None:
        # One C call, so atomic; what another thread has dropped meanwhile was due as well.
        if self.given:
            heapq.heappop(self.given)

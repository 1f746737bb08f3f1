"""Commands on their way to a server, in the order in which they came, until they are answered."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.stores.base import Draw, End
from tokenfence_integrations.stores.noting import Note
from tokenfence_integrations.stores.remote.wire import Answer, Order

if TYPE_CHECKING:
    import asyncio

__all__ = ["AT_ONCE", "Outbox", "tell"]

AT_ONCE = 256
"""Orders in one batch, at most."""


class Outbox:
    """Orders that have no answer yet: they count as applied, and can be sent again.

    Any thread, and any finalizer, may put one in at any moment; one thread at a time takes out.
    """

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()

    def __len__(self) -> int:
        return len(self._orders)

    def __contains__(self, order: object) -> bool:
        return order in self.all()

    def all(self) -> list[Order]:
        """All, in their order."""
        return list(self._orders.copy())

    @property
    def last(self) -> Order | None:
        """The last one; None if it is empty."""
        try:
            return self._orders[-1]
        except IndexError:
            return None

    @property
    def notes(self) -> list[Note]:
        """What nobody waits for."""
        return [
            Note(order.command, order.reserved)  # type: ignore[arg-type]
            for order in self.all()
            if order.until is None and order.outcome is None  # else it counts in what is known
        ]

    @property
    def awaited(self) -> list[Order]:
        """What somebody waits for."""
        return [order for order in self.all() if order.until is not None]

    def put(self, order: Order) -> None:
        """Put one behind all others."""
        self._orders.append(order)

    def next(self) -> Sequence[Order]:
        """The orders of the next batch.

        A draw is its reservation's last order in a batch. One that was by chance not applied is
        sent again, and an end that was behind it in the batch might have been applied by then.
        """
        taken: list[Order] = []
        drawn: set[int] = set()
        for index in range(min(len(self._orders), AT_ONCE)):
            order = self._orders[index]
            command = order.command
            if type(command) is Draw or type(command) is End:
                if command.id in drawn:
                    break
                if type(command) is Draw:
                    drawn.add(command.id)
            taken.append(order)
        return taken

    def take_out(self, taken: Sequence[Order], again: Sequence[Order] = ()) -> None:
        """Take out those of a batch.

        Args:
            taken: All of them.
            again: Those of them that were not applied, and are to be sent once more.
        """
        for _ in taken:
            self._orders.popleft()
        if not again:
            return
        # What is drawn stays in front of the end of its reservation; see `next`.
        draws = [order for order in again if type(order.command) is Draw]
        self._orders.extendleft(reversed(draws))
        self._orders.extend([order for order in again if order not in draws])


def tell(orders: Sequence[Order]) -> None:
    """Tell those who wait for orders that have ended; each event loop once."""
    loops: dict[Any, list[Any]] = {}
    for order in orders:
        outcome = order.outcome
        if order.told is not None and outcome is not None:
            order.told(isinstance(outcome, Answer) and outcome.done)
        if order.future is not None and outcome is not None:
            loops.setdefault(order.future.get_loop(), []).append(order.future)
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # it is closed: nobody is there any more
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: "Sequence[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)

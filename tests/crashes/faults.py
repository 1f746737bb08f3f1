"""What may befall a worker or its store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.crashes.points import Held, Point
from tests.crashes.worker import Opening, Worker

__all__ = ["Fault", "Site", "killed"]


class Site(Protocol):
    """Where the budgets of workers are kept."""

    def opening(self, account: str) -> Opening:
        """How a worker opens the store of its budget."""

    def bring(self, worker: Worker, point: Point) -> Callable[[], None]:
        """Have a worker make a call, up to a point; returned is what lets it go on."""

    def held(self, worker: Worker) -> Held:
        """What the store itself holds of its budget, not by way of our code."""

    def expire(self, workers: Sequence[Worker]) -> None:
        """Have the leases of workers who have died be over, and be seen to be."""

    def deliver(self) -> None:
        """Have whatever is still on its way arrive."""

    def close(self) -> None:
        """Stop what it runs."""


class Fault(NamedTuple):
    """What happens, and what it means for those who call meanwhile.

    Attributes:
        place: The kind of store.
        name: What it is.
        site: Makes where it happens, in a folder.
        strike: Begins it, for a site and workers, and ends it.
        points: Where it strikes.
        bites: Whether no call can be admitted while it lasts.
        tries: Calls of which the last one is answered, once it has ended.
        on_loops: For calls in threads (False), in tasks of event loops (True), or in both.
        together: Whether it strikes all of these at once, because it takes long.
    """

    place: str
    name: str
    site: Callable[[Path], Site]
    strike: Callable[[Any, Sequence[Worker]], AbstractContextManager[None]]
    points: Sequence[Point]
    bites: bool = False
    tries: int = 1
    on_loops: Sequence[bool] = (False,)
    together: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"


@contextmanager
def killed(_: Site, workers: Sequence[Worker]) -> Iterator[None]:
    """SIGKILL."""
    for worker in workers:
        worker.kill()
    yield

"""Budgets on a server, each worker's way to it, and what may befall the two."""

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil

from tests.crashes.faults import Fault, killed
from tests.crashes.points import POINTS, Held, Point
from tests.crashes.worker import Opening, Worker
from tests.proxy import Proxy, Way

__all__ = ["TIMEOUT", "Server", "Servers", "server_faults"]

TIMEOUT = 1.5
"""Seconds that workers try to reach their server: longer than a store pauses between two tries."""

PAUSE = 5.0
"""Seconds for which a server is stopped."""

STOPPED: dict[str, tuple[str | None, Way]] = {
    "reserve under way": (None, "requests"),
    "reserved, not told": (None, "replies"),
    "settle under way": ("answered, not settled", "requests"),
    "settled, not told": ("answered, not settled", "replies"),
}
"""Where the next message that goes a way is the one of this point."""


class Server(Protocol):
    """A server of a test's own, which keeps what it was told over a restart."""

    @property
    def process(self) -> Any:
        """Its process."""

    def start(self) -> object:
        """Start it again, and wait until it serves."""

    def stop(self) -> None:
        """Have it die at once."""


class Servers(ABC):
    """Budgets on one server, to which each worker has a proxy of its own.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._proxies: dict[Opening, Proxy] = {}

    @abstractmethod
    def connect(self) -> socket.socket:
        """Connect to the server."""

    @abstractmethod
    def opening_at(self, port: int) -> Opening:
        """How a worker opens a store on a port of this machine."""

    @abstractmethod
    def held(self, worker: Worker) -> Held: ...

    @abstractmethod
    def expire(self, workers: Sequence[Worker]) -> None: ...

    def opening(self, account: str) -> Opening:
        proxy = Proxy(self.connect)
        opening = self.opening_at(proxy.port)
        self._proxies[opening] = proxy
        return opening

    def ways(self, workers: Sequence[Worker]) -> list[Proxy]:
        """Their ways to the server."""
        return [self._proxies[worker.opening] for worker in workers]

    def bring(self, worker: Worker, point: Point) -> Callable[[], None]:
        if point.name not in STOPPED:
            worker.ask(point.name)
            assert worker.said() == point.name
            return worker.go_on
        [proxy] = self.ways([worker])
        before, way = STOPPED[point.name]
        if before is None:
            proxy.stop_next(way)
            worker.ask()
        else:
            worker.ask(before)
            assert worker.said() == before
            proxy.stop_next(way)
            worker.go_on()
        proxy.stopped()
        return proxy.go_on

    def deliver(self) -> None:
        for proxy in self._proxies.values():
            proxy.deliver()

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


@contextmanager
def restarted(servers: Servers, _: Sequence[Worker]) -> Iterator[None]:
    """The server dies, and is started again."""
    servers.server.stop()
    yield
    servers.server.start()


@contextmanager
def paused(servers: Servers, _: Sequence[Worker]) -> Iterator[None]:
    """The server and all its processes are stopped (SIGSTOP) for five seconds."""
    until = time.monotonic() + PAUSE
    stopped = [psutil.Process(servers.server.process.pid)]
    stopped[0].suspend()  # first, so that it makes no others
    stopped += stopped[0].children(recursive=True)
    for process in stopped[1:]:
        process.suspend()
    try:
        yield
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):  # one that was about to end
                process.resume()


@contextmanager
def cut(servers: Servers, workers: Sequence[Worker]) -> Iterator[None]:
    """Connections are cut; others can be made."""
    for way in servers.ways(workers):
        way.cut()
    yield


@contextmanager
def refused(servers: Servers, workers: Sequence[Worker]) -> Iterator[None]:
    """Connections are cut, and refused."""
    for way in servers.ways(workers):
        way.refuse()
    yield
    for way in servers.ways(workers):
        way.accept()


@contextmanager
def swallowed(servers: Servers, workers: Sequence[Worker], *, late: bool) -> Iterator[None]:
    """Nothing passes any more, and nobody is told; in the end all of it arrives.

    Args:
        late: Not before the workers have given it up, and called again.
    """
    for way in servers.ways(workers):
        way.swallow()
    yield
    for way in servers.ways(workers):
        way.pass_on(late=late)


def server_faults(place: str, site: Callable[[Path], Servers]) -> Sequence[Fault]:
    """What may befall the workers of a server: all points at once, because it takes seconds."""
    silent, late = (partial(swallowed, late=late) for late in (False, True))
    fault = partial(Fault, place, site=site, points=POINTS, on_loops=(False, True), together=True)
    return (
        fault(name="worker killed", strike=killed, on_loops=(False,)),
        fault(name="restarted", strike=restarted, bites=True),
        fault(name="paused for 5 s", strike=paused, bites=True),
        fault(name="connections cut", strike=cut),
        fault(name="connections refused", strike=refused, bites=True),
        fault(name="silence", strike=silent, bites=True),
        # A worker may have made a new connection by then, whose silence it has to notice first.
        fault(name="delay", strike=late, bites=True, tries=2),
    )

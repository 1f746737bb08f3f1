"""A TCP proxy in front of a server: it stops what passes, cuts, refuses, loses or delays it."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Literal, TypeAlias

__all__ = ["Fault", "Proxy", "Way", "bad_network", "connected"]

TIMEOUT = 10.0

Way: TypeAlias = Literal["requests", "replies"]

Fault: TypeAlias = Literal["none", "request lost", "reply lost", "late"]
"""What happens to a request: nothing; its connection is cut before the server has it, or before
the client has the reply; or it is cut, and the server has the request once it is delivered."""


class Proxy:
    """One client's way to a server.

    Args:
        connect: Connects to the server.
        concerns: Whether a fault may befall these bytes.

    Attributes:
        fault: What befalls the next request.
        faults: How many were befallen.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        concerns: Callable[[bytes], bool] = lambda data: True,
    ) -> None:
        self.fault: Callable[[], Fault] = lambda: "none"
        self.faults = 0
        self._connect = connect
        self._concerns = concerns
        self._late = Event()
        self._links: list[_Link] = []
        self._lock = Lock()
        self._stop_at: Way | None = None
        self._stopped, self._go_on = Event(), Event()
        self._passes = Event()
        self._passes.set()
        self.port = 0
        self._listen()

    # Stopping one message

    def stop_next(self, way: Way) -> None:
        """Stop the next message that goes this way."""
        self._stopped.clear()
        self._go_on.clear()
        self._stop_at = way

    def stopped(self) -> None:
        """Wait until it has come."""
        assert self._stopped.wait(TIMEOUT), f"no {self._stop_at} came"

    def go_on(self) -> None:
        """Let it pass, if there is still a way."""
        self._go_on.set()

    # Faults

    def cut(self) -> None:
        """Cut the connections that there are."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def refuse(self) -> None:
        """Cut them, and refuse all others until `accept`."""
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread, as closing would not
        self._accepting.join(TIMEOUT)
        self.cut()

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._listen()

    def swallow(self) -> None:
        """Let nothing pass any more, either way, without a word."""
        self._passes.clear()

    def pass_on(self, *, late: bool) -> None:
        """Let connections pass again.

        Args:
            late: Whether what was swallowed is kept on its way until `deliver`.
        """
        passes, self._passes = self._passes, Event()
        self._passes.set()
        if late:
            self._late = passes
        else:
            passes.set()

    def deliver(self) -> None:
        """Have what is late arrive, and wait until the server has dealt with it."""
        with self._lock:
            links = [link for link in self._links if link.passes is self._late]
        late, self._late = self._late, Event()
        late.set()
        for link in links:
            link.join()

    def close(self) -> None:
        """Close all of it."""
        self._passes.set()
        self._late.set()
        self._go_on.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(TIMEOUT)
        self.cut()

    # Passing

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._accepting = Thread(target=self._accept, name="proxy", daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with self._listener as listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with self._lock:
                    self._links.append(_Link(self, client))

    def passing(self, way: Way, passes: Event) -> None:
        """Called with each message; returns when it may go on."""
        if self._stop_at == way:
            self._stop_at = None
            self._stopped.set()
            assert self._go_on.wait(TIMEOUT)
        passes.wait(TIMEOUT)

    def fault_of(self, data: bytes) -> Fault:
        """What befalls a request."""
        fault = self.fault() if self._concerns(data) else "none"
        self.faults += fault != "none"
        return fault

    def connected(self) -> socket.socket:
        return self._connect()


class _Link:
    """One connection, and its two threads."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self.passes = proxy._passes
        self._client = client
        self._server: socket.socket | None = None
        self._loses_reply = False
        self._threads = [Thread(target=self._requests, name="proxy", daemon=True)]
        self._threads[0].start()

    def join(self) -> None:
        """Wait until both sides have hung up."""
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a connection that was given up is still open"

    def close(self) -> None:
        for side in (self._client, self._server):
            if side is not None:
                _hang_up(side)

    def _requests(self) -> None:
        with self._client, suppress(OSError):
            self.passes.wait(TIMEOUT)
            with self._proxy.connected() as self._server:
                replies = Thread(target=self._replies, name="proxy", daemon=True)
                self._threads.append(replies)
                replies.start()
                self._pump(self._client, self._server, "requests")
                replies.join(TIMEOUT)

    def _replies(self) -> None:
        assert self._server is not None
        self._pump(self._server, self._client, "replies")

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._proxy.passing(way, self.passes)
                if self._is_lost(way, data):
                    self.close()
                    return
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _is_lost(self, way: Way, data: bytes) -> bool:
        """Whether a message goes no further; one that is late comes when it is delivered."""
        if way == "replies":
            return self._loses_reply
        fault = self._proxy.fault_of(data)
        self._loses_reply = fault == "reply lost"
        if fault == "late":
            self.passes = self._proxy._late
            _hang_up(self._client)
            self.passes.wait(TIMEOUT)
        return fault == "request lost"


def _hang_up(side: socket.socket) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


def connected(path: Path) -> socket.socket:
    """A connection to a Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


@contextmanager
def bad_network(path: Path, concerns: Callable[[bytes], bool]) -> Iterator[Proxy]:
    """A proxy in front of a Unix socket, for the block; for requests that faults may befall."""
    proxy = Proxy(partial(connected, path), concerns)
    try:
        yield proxy
    finally:
        proxy.close()

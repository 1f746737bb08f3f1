"""A TCP proxy in front of a server: it stops what passes, cuts, refuses, or swallows it."""

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Literal, TypeAlias

__all__ = ["Proxy"]

TIMEOUT = 10.0

Way: TypeAlias = Literal["requests", "replies"]


class Proxy:
    """One client's way to a server.

    Args:
        connect: Connects to the server.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
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
        """Have what was swallowed arrive, and wait until the server has dealt with it."""
        with self._lock:
            links = [link for link in self._links if link.passes is self._late]
        self._late.set()
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

    _late = Event()

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

    def connected(self) -> socket.socket:
        return self._connect()


class _Link:
    """One connection, and its two threads."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self.passes = proxy._passes
        self._client = client
        self._server: socket.socket | None = None
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
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

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
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

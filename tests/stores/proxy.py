"""A bad network: a socket in front of a server that loses, delays and cuts at a test's wish."""

import contextlib
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["BadNetwork", "Fault", "bad_network"]

Fault: TypeAlias = Literal["none", "request lost", "reply lost", "late"]
"""What happens to what is sent next: nothing; the connection is cut before the server has it, or
after; or the connection is cut, and the server has it only once `BadNetwork.deliver` is called."""


class BadNetwork:
    """Passes on what is sent to a server's unix socket, as far as `fault` lets it.

    Args:
        server: Path of the socket.
        concerns: Whether a fault may befall these bytes.
    """

    def __init__(self, server: str, concerns: Callable[[bytes], bool]) -> None:
        self.fault: Callable[[], Fault] = lambda: "none"
        self.faults = 0
        self._server = server
        self._concerns = concerns
        self._late: list[tuple[socket.socket, bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="tokenfence-")
        self.path = str(Path(self._folder.name) / "socket")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(64)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def deliver(self) -> None:
        """Let the server have what is late, and wait until it has dealt with it."""
        for upstream, data in self._late:
            upstream.sendall(data)
            assert upstream.recv(1 << 16)
            upstream.close()
        self._late.clear()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._folder.cleanup()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(self._server)
        self._open |= {client, upstream}
        keep = False
        try:
            while True:
                ready, _, _ = select.select([client, upstream], [], [])
                if upstream in ready:
                    data = upstream.recv(1 << 16)
                    if not data:
                        return
                    client.sendall(data)
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    fault = self.fault() if self._concerns(data) else "none"
                    self.faults += fault != "none"
                    if fault == "late":
                        self._late.append((upstream, data))
                        keep = True
                    elif fault != "request lost":
                        upstream.sendall(data)
                    if fault == "reply lost":
                        upstream.recv(1 << 16)
                    if fault != "none":
                        return
        except OSError:
            return
        finally:
            self._open -= {client, upstream}
            client.close()
            if not keep:
                upstream.close()


@contextlib.contextmanager
def bad_network(
    server: str, concerns: Callable[[bytes], bool] = lambda data: b"EVALSHA" in data
) -> Iterator[BadNetwork]:
    """One that is there for the block."""
    network = BadNetwork(server, concerns)
    try:
        yield network
    finally:
        network.close()

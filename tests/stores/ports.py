"""A port on which the tests stand in for a server."""

from collections.abc import Callable
from socket import SHUT_RDWR, create_server, socket
from threading import Thread

__all__ = ["Port"]


class Port:
    """A port of this machine; each of its clients is served in a thread of its own.

    Args:
        serve: Given a client's socket, which it closes.
    """

    def __init__(self, serve: Callable[[socket], object]) -> None:
        self._serve = serve
        self._listener = create_server(("127.0.0.1", 0))
        self.number: int = self._listener.getsockname()[1]
        self._accepting = Thread(target=self._accept, name="port", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.shutdown(SHUT_RDWR)  # which wakes the thread, as closing would not
        self._accepting.join(10)

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                Thread(target=self._serve, args=[client], name="port", daemon=True).start()

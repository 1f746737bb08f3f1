"""How many requests are under way, seen from the test's thread; and the gate that holds them."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable


class Traffic:
    """Counts requests on the server's loop, and lets other threads wait for the counts.

    The server's loop calls `enter`, `leave`, `disconnected` and `pass_gate`; any thread the rest.
    """

    def __init__(self) -> None:
        self.received = 0
        self.peak = 0
        self._working = 0
        self._disconnects = 0
        self._held: deque[asyncio.Future[None]] = deque()
        self._open = False
        self._changed = threading.Condition()

    def enter(self) -> int:
        """Count a request in; returns how many came before it."""
        with self._changed:
            index = self.received
            self.received += 1
            self._working += 1
            self.peak = max(self.peak, self._working)
            self._changed.notify_all()
            return index

    def leave(self) -> None:
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def disconnected(self) -> None:
        """Count a client that left before its answer was complete."""
        with self._changed:
            self._disconnects += 1
            self._changed.notify_all()

    async def pass_gate(self) -> None:
        """Wait until the gate is opened, or lets this one through."""
        ticket = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._open:
                return
            self._held.append(ticket)
            self._changed.notify_all()
        await ticket

    def close(self) -> None:
        with self._changed:
            self._open = False

    def release(self, count: int | None) -> None:
        """Let the `count` longest held ones go; None: all, and open the gate."""
        with self._changed:
            if count is None:
                self._open = True
            let_go = [ticket for ticket in self._pop(count) if not ticket.done()]
        for ticket in let_go:
            ticket.get_loop().call_soon_threadsafe(_resolve, ticket)

    def wait_until_held(self, count: int, timeout: float) -> None:
        self._wait(
            lambda: len(self._held) >= count,
            timeout,
            lambda: f"{count} requests to be held; {len(self._held)} are",
        )

    def wait_until_disconnected(self, count: int, timeout: float) -> None:
        self._wait(
            lambda: self._disconnects >= count,
            timeout,
            lambda: f"{count} clients to leave; {self._disconnects} did",
        )

    def wait_until_idle(self, timeout: float, requests: int) -> None:
        self._wait(
            lambda: self._working == 0 and self.received >= requests,
            timeout,
            lambda: (
                f"all work to end: {self._working} requests are being worked on, "
                f"{len(self._held)} of them held; {self.received} were received"
            ),
        )

    def clear(self) -> None:
        """Forget what was; the requests under way stay."""
        with self._changed:
            self.received = self._disconnects = 0
            self.peak = self._working
            self._open = False

    def _pop(self, count: int | None) -> list[asyncio.Future[None]]:
        number = len(self._held) if count is None else min(count, len(self._held))
        return [self._held.popleft() for _ in range(number)]

    def _wait(
        self, reached: Callable[[], bool], timeout: float, waited_for: Callable[[], str]
    ) -> None:
        with self._changed:
            if not self._changed.wait_for(reached, timeout):
                raise TimeoutError(f"Waited {timeout:g} s for {waited_for()}.")


def _resolve(ticket: "asyncio.Future[None]") -> None:
    if not ticket.done():
        ticket.set_result(None)

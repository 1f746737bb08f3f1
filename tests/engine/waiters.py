"""Tasks and threads that wait, and how a test knows that they do."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.engine.helpers import reserve
from tokenfence_integrations import Budget
from tokenfence_integrations.engine import waiting


async def idle() -> None:
    """Let every task of this loop run until it waits."""
    for _ in range(200):
        await asyncio.sleep(0)


async def ask(budget: Budget, size: int | None, name: Any = None, **options: Any) -> Any:
    """Reserve, and give what was reserved back at once."""
    async with reserve(budget, size, **options) as call:
        await call.arelease()
    return name


class Asleep:
    """Counts the threads that go to sleep in a line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = threading.Semaphore(0)
        self._asleep: set[threading.Thread] = set()
        sleep = waiting.SyncWaiter.sleep

        def counted(waiter: waiting.SyncWaiter, seconds: float) -> None:
            self._asleep.add(threading.current_thread())
            self._count.release()
            sleep(waiter, seconds)

        monkeypatch.setattr(waiting.SyncWaiter, "sleep", counted)

    def wait(self, thread: threading.Thread | None = None) -> None:
        """Until one more thread sleeps (what wakes it from then on is not lost).

        Those that slept before may have looked again, and be counted again: say which one it has
        to be if there are several.
        """
        assert self._count.acquire(timeout=20)
        while thread is not None and thread not in self._asleep:
            assert self._count.acquire(timeout=20)


class Worker(threading.Thread):
    """A thread whose result, or exception, is fetched with `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it waits for ever"
        if self._error is not None:
            raise self._error
        return self._result


def in_loop(work: Callable[[], Coroutine[Any, Any, Any]]) -> Worker:
    """A thread with an event loop of its own."""
    return Worker(lambda: asyncio.run(work()))

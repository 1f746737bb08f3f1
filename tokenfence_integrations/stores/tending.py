"""A thread of a store's own, for what cannot be done in anybody's call."""

from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Protocol
from weakref import finalize, ref

from tokenfence_integrations.log import logger

__all__ = ["Tended", "Tender"]


class Tended(Protocol):
    """A store that has to be looked after."""

    def tend(self) -> float | None:
        """Do what is due; the seconds until it has to be called again, None: not by itself."""


class Tender:
    """Calls a store's `tend` in a daemon thread, which begins at need and ends with the store.

    Args:
        store: What is looked after; the thread does not keep it alive.
    """

    def __init__(self, store: Tended) -> None:
        self._store = ref(store)
        # SimpleQueue.put is documented to be reentrant: safe in finalizers.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._begun = False
        self._beginning = Lock()
        self.asleep = True
        """Whether `tend` will not be called again by itself; the store clears and sets it."""
        finalize(store, self._calls.put, False).atexit = False

    def call(self) -> None:
        """Have the store tended now; from any thread, and from finalizers once it has begun."""
        self._calls.put(True)
        if not self._begun and self._beginning.acquire(blocking=False):
            try:
                if not self._begun:
                    arguments = self._store, self._calls
                    Thread(target=_tend, args=arguments, name="tokenfence", daemon=True).start()
                    self._begun = True
            except RuntimeError:  # the interpreter is about to end: what is left is done by that
                return
            finally:
                self._beginning.release()


def _tend(store: "ref[Tended]", calls: "SimpleQueue[bool]") -> None:
    pause: float | None = None
    while True:
        try:
            goes_on = calls.get(timeout=pause)
            while goes_on:
                goes_on = calls.get_nowait()
            return
        except Empty:
            tended = store()
        if tended is None:
            return
        try:
            pause = tended.tend()
        except Exception:
            logger().exception("%r could not be tended; trying again", tended)
            pause = 1.0
        del tended

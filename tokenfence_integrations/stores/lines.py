"""The lines in which calls wait for room, as far as a store is to look out for it."""

from threading import Lock
from typing import Any
from weakref import WeakSet

from tokenfence_integrations.stores.base import Waiting

__all__ = ["Lines"]


class Lines:
    """Lines that a store was told of by `Store.watch`, for as long as anybody waits in them.

    Attributes:
        several: Whether they are more than one.
    """

    def __init__(self) -> None:
        self.several = False
        self._lock = Lock()
        self._lines: WeakSet[Any] = WeakSet()

    def add(self, line: Waiting) -> None:
        """Take note of a line."""
        with self._lock:
            self._lines.add(line)
            self.several = len(self._lines) > 1

    def waiting(self) -> list[Waiting]:
        """Those in which anybody waits; others are forgotten, until somebody comes to wait."""
        with self._lock:
            for line in list(self._lines):
                if not line:
                    self._lines.discard(line)
            self.several = len(self._lines) > 1
            return list(self._lines)

    def tell(self) -> None:
        """Have those who wait look again."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.freed()

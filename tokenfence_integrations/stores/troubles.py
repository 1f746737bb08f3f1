"""Whether a store can be used, told to those who want to know when that changes."""

from collections.abc import Callable
from typing import Literal, TypeAlias
from weakref import WeakMethod

from tokenfence_integrations.errors import StoreError

__all__ = ["OnStoreError", "TroubleListener", "Troubles"]

OnStoreError: TypeAlias = Literal["raise", "local"]
"""What is done while a store does not answer: see `SlicedStore`."""

TroubleListener: TypeAlias = Callable[[StoreError | None], object]
"""Called with what is wrong, and with None once nothing is any more."""


class Troubles:
    """What is wrong with a store, if anything is known to be.

    Example:
        >>> troubles = Troubles()
        >>> troubles.are(StoreError("redis://host", "it does not answer")), troubles.are(None)
        (True, True)
    """

    def __init__(self) -> None:
        self.now: StoreError | None = None
        self._listeners: list[WeakMethod[TroubleListener]] = []

    def listen(self, listener: TroubleListener) -> None:
        """Have a bound method called when this changes, for as long as its object lives."""
        self._listeners = [each for each in self._listeners if each() is not None]
        self._listeners.append(WeakMethod(listener))

    def are(self, trouble: StoreError | None) -> bool:
        """Take note of what is wrong now; whether it has begun, or ended, by that."""
        before, self.now = self.now, trouble
        if (before is None) == (trouble is None):
            return False
        for each in self._listeners.copy():
            listener = each()
            if listener is not None:
                listener(trouble)
        return True

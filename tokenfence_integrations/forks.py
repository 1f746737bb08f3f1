"""What has to begin anew in a forked process."""

import os
from threading import RLock
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["Forked", "OwnLock", "begin_anew_in_children"]


class Forked(Protocol):
    """What a fork copies although it is its parent's: locks, threads, connections, calls."""

    def begin_life(self) -> None:
        """Have nothing that a process must not share with the one that it was forked from."""


def begin_anew_in_children(thing: Forked) -> None:
    """Have something begin anew in each process that is forked from this one, if it is there then.

    They begin in no order: none may need another.
    """
    _forked.add(thing)


class OwnLock:
    """A reentrant lock of this process alone.

    A process that is forked has but one thread. A lock that another one held at that moment is
    held there for ever; this one is free.

    Example:
        >>> lock = OwnLock()
        >>> with lock, lock:
        ...     pass
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def begin_life(self) -> None:
        """Be free, unless the thread that forked holds it."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = RLock()


_locks: "WeakSet[OwnLock]" = WeakSet()
_forked: "WeakSet[Any]" = WeakSet()


def _after_fork_in_child() -> None:
    for thing in [*_locks, *_forked]:  # the locks first, which others may take
        thing.begin_life()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Locks that nobody holds in a forked process."""

import os
from threading import RLock
from weakref import WeakSet

__all__ = ["OwnLock"]


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

    def _begin_life(self) -> None:
        if self._lock.acquire(blocking=False):  # nobody held it, or the thread that forked
            self._lock.release()
        else:
            self._lock = RLock()


_locks: "WeakSet[OwnLock]" = WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock._begin_life()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

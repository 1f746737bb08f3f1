"""What has to begin anew in a forked process."""

import os
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["Forked", "begin_anew_in_children"]


class Forked(Protocol):
    """What a fork copies although it is its parent's: locks, threads, connections, calls."""

    def begin_life(self) -> None:
        """Have nothing that a process must not share with the one that it was forked from."""


_forked: "WeakSet[Any]" = WeakSet()


def begin_anew_in_children(thing: Forked) -> None:
    """Have something begin anew in each process that is forked from this one, if it is there then.

    They begin in no order: none may need another.
    """
    _forked.add(thing)


def _after_fork_in_child() -> None:
    for thing in list(_forked):
        thing.begin_life()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Having something done when this process ends, also if it is a child of multiprocessing."""

import atexit
import os
import sys
from collections.abc import Callable

__all__ = ["at_exit"]

_registered: set[Callable[[], object]] = set()
"""By this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_registered.clear)


def at_exit(work: Callable[[], object]) -> None:
    """Have this process call a function as it ends, once however often that is asked for.

    To be asked for again in a forked process, when there is something to be done.

    Args:
        work: Called without arguments, before daemon threads are gone.
    """
    if work in _registered:
        return
    _registered.add(work)
    atexit.register(work)
    # The children that multiprocessing makes do not run atexit's functions.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, work, exitpriority=1)

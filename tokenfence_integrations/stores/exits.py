"""Having something done when this process ends, also if it is a child of multiprocessing."""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

__all__ = ["at_exit"]

_closing: dict[Callable[[], object], None] = {}
_giving_back: dict[Callable[[], object], None] = {}
"""Asked for in this process, in this order: the last one is done first."""

_told_of_children = False
"""Whether multiprocessing says when a child begins its own work; a fork copies that."""


def at_exit(work: Callable[[], object], *, needs_stores: bool = False) -> None:
    """Have this process call a function as it ends, once however often that is asked for.

    To be asked for again in a forked process, when there is something to be done.

    Args:
        work: Called without arguments, before daemon threads are gone.
        needs_stores: Whether it is to be done while all stores are still there.
    """
    global _told_of_children
    asked = _giving_back if needs_stores else _closing
    if work in asked:
        return
    is_first = not (_closing or _giving_back)
    asked[work] = None
    if not is_first:
        return
    atexit.register(_do_all)
    # The children that multiprocessing makes do not run atexit's functions. And what they are asked
    # for while they import the main module they forget, before they begin their own work.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        _finalize_children()
        if not _told_of_children:
            _told_of_children = True
            util.register_after_fork(_do_all, _finalize_children)


def _finalize_children(*_: object) -> None:
    if _closing or _giving_back:
        sys.modules["multiprocessing.util"].Finalize(None, _do_all, exitpriority=1)


def _do_all() -> None:
    works = *_closing, *_giving_back
    _forget()  # a child of multiprocessing may do it at both of its ends
    with ExitStack() as all_of_it:
        for work in works:
            all_of_it.callback(work)


def _forget() -> None:
    _closing.clear()
    _giving_back.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

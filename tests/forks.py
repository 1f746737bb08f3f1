"""Work in a forked process, while other threads of its parent are in the midst of theirs."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

forking = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
"""Marks of tests that fork."""


def in_a_fork(work: Callable[[], None]) -> int | None:
    """Run it in a forked process, and return its exit code; None if it has not ended."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


@contextmanager
def held_elsewhere(*locks: AbstractContextManager[object]) -> Iterator[None]:
    """Another thread holds these locks meanwhile."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()

"""Ctrl-C at every line of an admission."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import FrameType
from typing import Any

from tests.engine.helpers import charged, reserve, small


@contextmanager
def interrupted_at(line: int) -> Iterator[None]:
    """Ctrl-C before the n-th line of the engine that runs in the block."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if f"{os.sep}engine{os.sep}" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()  # a debugger's, perhaps
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_an_interrupt_in_the_midst_of_admission_leaves_nothing_held() -> None:
    for line in count(1):
        budget = small(100)
        call = reserve(budget, 20)
        with suppress(KeyboardInterrupt), interrupted_at(line):
            call.admit()
            break
        del call  # as it is where nobody has got it
        assert charged(budget)[1] == 0, f"before line {line}"
    assert line > 30
    assert charged(budget) == (0, 20, 0)

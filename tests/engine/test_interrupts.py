"""Ctrl-C at every line of an admission, and of an end."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import FrameType
from typing import Any

import pytest

from tests.engine.helpers import charged, outcomes, reserve, small
from tests.engine.waiters import idle
from tokenfence_integrations import Call, Usage


@contextmanager
def interrupted_at(line: int, within: str = f"{os.sep}engine{os.sep}") -> Iterator[None]:
    """Ctrl-C before the n-th line of the engine, or of a part of it, that runs in the block."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if within not in frame.f_code.co_filename:
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


@pytest.mark.parametrize(
    ("end", "done", "given_up"),
    [
        (lambda call: call.settle(Usage(0, 15)), ("settled", 15, 0), ("uncertain", 0, 20)),
        (lambda call: call.lose(), ("uncertain", 0, 20), ("uncertain", 0, 20)),
        (lambda call: call.release(), ("released", 0, 0), ("uncertain", 0, 20)),
    ],
)
def test_an_interrupt_in_the_midst_of_an_end_leaves_all_of_it_or_nothing(
    end: Callable[[Call], None], done: tuple[str, int, int], given_up: tuple[str, int, int]
) -> None:
    seen = set()
    for line in count(1):
        budget = small(100)
        call = reserve(budget, 20).admit()
        with suppress(KeyboardInterrupt), interrupted_at(line):
            end(call)
            break
        key = call._key
        del call  # as it is where a `with` is left by it
        [ended] = outcomes(budget)
        assert ended in (done, given_up), f"before line {line}"
        assert charged(budget) == (ended[1], 0, ended[2]), f"before line {line}"
        assert key not in budget._tree.live
        seen.add(ended)
    assert seen == {done, given_up}
    assert line > 10


async def test_who_waits_hears_of_an_end_that_is_interrupted() -> None:
    for line in count(1):
        budget = small(100)
        call = reserve(budget, 60, on_unknown="release").admit()
        waiting = asyncio.create_task(reserve(budget, 60).aadmit())
        await idle()
        with suppress(KeyboardInterrupt), interrupted_at(line, "meter.py"):
            call.release()
            break
        del call
        async with asyncio.timeout(10):
            (await waiting).release()
        assert charged(budget)[1] == 0, f"before line {line}"
    (await waiting).release()
    assert line > 10

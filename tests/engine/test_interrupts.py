"""Ctrl-C at every line of an admission, and of an end."""

import asyncio
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from types import FrameType
from typing import Any

import pytest

from tests.engine.helpers import charged, outcomes, reserve, small
from tests.engine.waiters import idle
from tokenfence_integrations import Call, Usage
from tokenfence_integrations.stores.base import NOTHING, Amount, Limits, Open
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.sqlite import SQLiteStore


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


def test_the_same_where_a_store_has_to_be_waited_for(tmp_path: pathlib.Path) -> None:
    with closing(SQLiteStore(tmp_path / "budgets.db")) as store:
        budget = small(10_000, store=store)
        for line in count(1):
            call = reserve(budget, 20)
            with suppress(KeyboardInterrupt), interrupted_at(line, "meter.py"):
                call.admit()
                break
            del call
            assert charged(budget)[1] == 0, f"before line {line}"
        assert line > 20
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


class Interrupted(tuple[str, ...]):
    """A path at whose n-th step, in all, Ctrl-C comes: where Python looks for it in a loop."""

    left: int

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            yield name
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


PATH = ("team/writer/run", "team/writer", "team")


def opened() -> MemoryStore:
    store = MemoryStore()
    for account in PATH:
        store.execute(Open(account, Limits(usd=100)))
    return store


def test_an_interrupt_between_two_accounts_reserves_in_none_of_them() -> None:
    for step in count(1):
        store, path = opened(), Interrupted(PATH)
        path.left = step
        with suppress(KeyboardInterrupt):
            assert store.reserve(path, 1, Amount(20, 1, 5, 15)).done
            break
        assert [state.reserved_usd for state in store.peek(PATH)] == [0, 0, 0]
    assert step > 3
    assert [state.reserved_usd for state in store.peek(PATH)] == [20, 20, 20]


@pytest.mark.parametrize(
    ("spent", "uncertain"), [(Amount(15, 1, 5, 10), NOTHING), (NOTHING, Amount(20, 1, 5, 15))]
)
def test_an_interrupt_between_two_accounts_ends_in_all_of_them(
    spent: Amount, uncertain: Amount
) -> None:
    for step in count(1):
        store, path = opened(), Interrupted(PATH)
        path.left = step
        store.reserve(PATH, 1, Amount(20, 1, 5, 15))
        with suppress(KeyboardInterrupt):
            assert store.end(path, 1, spent, uncertain).done
            break
        assert not store.end(PATH, 1, spent, uncertain).done
        for state in store.peek(PATH):
            assert (state.spent, state.reserved_usd, state.uncertain) == (spent, 0, uncertain)
        assert len(store.charges()) == bool(uncertain.usd)
    assert step > 3

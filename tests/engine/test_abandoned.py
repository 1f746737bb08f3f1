"""Calls that are forgotten: each ends once, whichever thread or lock the collector meets."""

import gc
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.helpers import charged, outcomes, reserve, small, spend
from tokenfence_integrations import (
    Budget,
    Call,
    Usage,
)
from tokenfence_integrations.stores.memory import MemoryStore


def test_a_forgotten_call_becomes_uncertain_once() -> None:
    budget = small(100)
    reserve(budget, 20).admit()
    gc.collect()
    assert outcomes(budget) == [("uncertain", 0, 20)]
    assert charged(budget) == (0, 0, 20)


def test_a_call_forgotten_in_a_cycle_becomes_uncertain_once() -> None:
    class Stream:
        def __init__(self, call: Call) -> None:
            self.call, self.me = call, self

    budget = small(100)
    Stream(reserve(budget, 20).admit())
    assert charged(budget) == (0, 20, 0)
    gc.collect()
    assert charged(budget) == (0, 0, 20)
    assert outcomes(budget) == [("uncertain", 0, 20)]


def test_a_forgotten_generator_ends_its_call() -> None:
    def answer(budget: Budget) -> Iterator[str]:
        with reserve(budget, 20) as call:
            yield "Once"
            call.settle(Usage(0, 20))

    budget = small(100)
    words = answer(budget)
    assert next(words) == "Once"
    assert charged(budget) == (0, 20, 0)
    del words
    gc.collect()
    assert outcomes(budget) == [("uncertain", 0, 20)]


def test_an_ended_call_leaves_nothing_to_its_finalizer() -> None:
    budget = small(100)
    spend(budget, 5)
    gc.collect()
    assert outcomes(budget) == [("settled", 5, 0)]


class CollectingStore(MemoryStore):
    """Runs a garbage collection in the middle of every look at the accounts, under the lock."""

    collecting = False

    def _states(self, path: tuple[str, ...]) -> Any:
        if self.collecting:
            gc.collect()
        return super()._states(path)


@pytest.mark.parametrize("ending", ["__del__", "settle", "lose"])
def test_a_finalizer_that_runs_while_the_store_is_locked_does_not_wait_for_it(ending: str) -> None:
    class Stream:
        """Settles its call as it is collected, as the streams of an SDK do."""

        def __init__(self, call: Call) -> None:
            self.call, self.me = call, self

        def __del__(self) -> None:
            if ending == "settle":
                self.call.settle(Usage(0, 7))
            elif ending == "lose":
                self.call.lose()

    store = CollectingStore()
    budget = small(100, store=store)
    seen: list[float] = []
    budget.on_event(lambda event: seen.append(budget.spent))
    Stream(reserve(budget, 20).admit())
    done = threading.Event()

    def look() -> None:
        store.collecting = True
        spend(budget, 5)
        assert budget.remaining
        done.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    assert done.wait(20), "the finalizer waits for a lock that its own thread holds"
    store.collecting = False
    expected = {"settle": (12, 0, 0)}.get(ending, (5, 0, 20))
    assert charged(budget) == expected
    assert len(budget.ledger) == 2
    assert len(seen) >= 3


@pytest.mark.usefixtures("threads_take_turns_often")
def test_threads_that_find_abandoned_calls_together_end_each_once() -> None:
    budget = small(1_000_000)
    together = threading.Barrier(4)

    def forget_and_look() -> None:
        together.wait()
        for _ in range(300):
            reserve(budget, 20).admit()
            assert budget.spent == 0

    threads = [threading.Thread(target=forget_and_look, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert charged(budget) == (0, 0, 1_200 * 20)
    assert len(budget.ledger) == 1_200


class Contested(deque[Any]):
    """Notes that another thread has always just taken."""

    def __bool__(self) -> bool:
        return True


def test_a_thread_that_finds_no_note_any_more_goes_on() -> None:
    budget = small(100)
    budget._tree.orphans = Contested()
    assert budget.spent == 0

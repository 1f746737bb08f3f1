"""A budget in memory in a forked process: a copy that works, and says that it is one."""

import logging
from typing import Any

import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.forks import forking, held_elsewhere, in_a_fork
from tokenfence_integrations import Budget, Usage
from tokenfence_integrations.stores.base import Path, Reply
from tokenfence_integrations.stores.memory import MemoryStore

pytestmark = forking


def test_it_works_although_another_thread_held_every_lock() -> None:
    budget = small(200)
    tree, store = budget._tree, budget._tree.store
    assert isinstance(store, MemoryStore)
    locks: Any = [store._lock, tree.line._lock, tree.moving, tree.making, tree.changing]
    locks += [tree.correcting, tree.ledger._counting, tree.ledger._leaving]
    with held_elsewhere(*locks):
        assert in_a_fork(lambda: use(budget)) == 0


def use(budget: Budget) -> None:
    spend(budget, 20)
    with budget.child("a").reserve(model="gpt-4o", input_tokens=0, max_output_tokens=0) as call:
        call.settle(Usage(0, 0))
    budget.top_up("$1")
    budget.reset()


def test_calls_in_flight_are_the_parents() -> None:
    budget = small(100)
    mine = reserve(budget, 60).admit()

    def child() -> None:
        assert charged(budget) == (0, 0, 0)
        spend(budget, 100)  # it need not wait for what nobody here will end
        mine.settle(Usage(0, 60))
        assert charged(budget) == (100, 0, 0)

    assert in_a_fork(child) == 0
    assert charged(budget) == (0, 60, 0)
    mine.settle(Usage(0, 50))
    assert charged(budget) == (50, 0, 0)


def test_it_says_once_that_it_is_a_copy(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget("$1", name="acme")

    def child() -> None:
        assert not caplog.records  # who makes no calls is not told
        with caplog.at_level(logging.WARNING, "tokenfence"):
            for _ in range(2):
                with budget.child("a").reserve(model="gpt-4o", input_tokens=1) as call:
                    call.release()
        [record] = caplog.records
        assert "'acme' is kept in memory" in record.getMessage()

    assert in_a_fork(child) == 0
    with budget.reserve(model="gpt-4o", input_tokens=1) as call:
        call.release()
    assert not caplog.records


def test_a_store_of_ones_own_still_reserves_its_own_way() -> None:
    class Counting(MemoryStore):
        reserved = 0

        def reserve(self, path: Path, *wanted: Any, **named: Any) -> Reply:
            self.reserved += 1
            return super().reserve(path, *wanted, **named)

    store = Counting()
    budget = small(100, store=store)

    def child() -> None:
        spend(budget, 20)
        spend(budget, 20)
        assert store.reserved == 2

    assert in_a_fork(child) == 0

"""Budgets of files and servers in forked processes: the same budget, and nothing else shared."""

import gc
import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import charged, nano, reserve, spend
from tests.forks import forking, held_elsewhere, in_a_fork
from tests.stores.places import PLACES, Place, later
from tokenfence_integrations import Budget, Usage
from tokenfence_integrations.stores import urls
from tokenfence_integrations.stores.base import NOTHING
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.slices import SlicedStore
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.stores.sqlite import books as sqlite_books
from tokenfence_integrations.stores.sqlite import keeper as sqlite_keeper

pytestmark = forking

LIMIT = 1_000_000


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


@pytest.fixture(params=[None, "2%"], ids=["plain", "sliced"])
def budget(request: pytest.FixtureRequest, place: Place) -> Iterator[Budget]:
    budget = Budget(nano(LIMIT), name=place.name, store=place.url, slice=request.param)
    yield budget
    budget._tree.store.close()  # type: ignore[attr-defined]


def now(place: Place) -> Any:
    """The budget as another process sees it."""
    return Budget(name=place.name, store=place.store()).snapshot()


def locks_of(store: Any) -> list[Any]:
    """All that a thread may hold; SQLite's own two are waited for before a fork."""
    if isinstance(store, SlicedStore):
        return [store._tender._beginning, store._held.lock, *locks_of(store._store)]
    if isinstance(store, SQLiteStore):
        return [store._keeper.tender._beginning, store._keeper.lines._lock]
    courier, listener = store._courier, store._listener
    return [courier._tender._beginning, courier.sending, listener._lock, listener._lines._lock]


def test_it_works_although_another_thread_held_every_lock(place: Place, budget: Budget) -> None:
    spend(budget, 10)
    spend(budget, 10)
    tree = budget._tree

    def child() -> None:
        spend(budget, 20)
        spend(budget.child("a"), 20)
        spend(Budget(name=place.name, store=place.url), 20)
        budget._tree.store.close()  # type: ignore[attr-defined]

    with held_elsewhere(urls._opening, tree.making, tree.moving, *locks_of(tree.store)):
        assert in_a_fork(child) == 0
    spend(budget, 1)
    budget._tree.store.close()  # type: ignore[attr-defined]
    assert now(place).spent.usd == 81
    assert now(place).reserved == NOTHING


def test_calls_of_many_threads_and_children_add_up(place: Place, budget: Budget) -> None:
    over, made = threading.Event(), [0, 0, 0]

    def work(number: int) -> None:
        while not over.is_set():
            spend(budget, 1)
            made[number] += 1

    def child() -> None:
        for _ in range(20):
            spend(budget, 1)
        budget._tree.store.close()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(made))]
    for thread in threads:
        thread.start()
    try:
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=child) for _ in range(3)]
        for process in children:
            process.start()
        for process in children:
            process.join(60)
        assert [process.exitcode for process in children] == [0, 0, 0]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    while True:  # a thread may be about to borrow more
        budget._tree.store.close()  # type: ignore[attr-defined]
        state = now(place)
        if state.reserved == NOTHING:
            break
    assert state.spent.usd == state.spent.calls == 60 + sum(made)
    assert state.uncertain == NOTHING


def test_calls_in_flight_are_those_of_the_process_that_made_them(place: Place) -> None:
    budget = Budget(nano(LIMIT), name=place.name, store=place.store())
    mine = [reserve(budget, 100).admit() for _ in range(4)]

    def child() -> None:
        mine[0].settle(Usage(0, 50))
        mine[1].lose()
        mine.clear()  # and so the others are garbage here
        gc.collect()
        theirs = reserve(budget, 30).admit()
        assert charged(budget) == (0, 430, 0)
        theirs.__class__.__del__ = lambda call: None  # type: ignore[attr-defined]
        # It ends without a word: what it has in flight turns uncertain, and nothing else.

    assert in_a_fork(child) == 0
    assert charged(budget) == (0, 430, 0)
    for call in mine:
        call.settle(Usage(0, 10))
    assert charged(budget) == (40, 30, 0)
    assert charged(later(place)) == (40, 0, 30)


def test_a_passing_budget_that_is_garbage_in_the_child_keeps_its_account(place: Place) -> None:
    team = Budget(nano(LIMIT), name=place.name, store=place.store())
    work = [Budget(nano(100), parent=team, kept=False)]
    spend(work[0], 10)

    def child() -> None:
        work.clear()
        gc.collect()
        spend(team, 20)
        own = Budget(nano(100), parent=team, kept=False)
        spend(own, 20)
        name = own.name
        del own
        assert charged(team) == (50, 0, 0)
        assert name not in team._tree.store.accounts(team.name)

    assert in_a_fork(child) == 0
    spend(work[0], 30)
    assert charged(work[0]) == (40, 0, 0)
    assert charged(team) == (80, 0, 0)


def test_an_account_that_the_parent_has_still_to_open_is_there(place: Place) -> None:
    store: Any = place.store()
    carrier = store._keeper if isinstance(store, SQLiteStore) else store._courier
    carrier.tend = lambda: None  # what is noted waits for a command
    assert charged(Budget(name=f"{place.name}-other", store=store)) == (0, 0, 0)  # connected
    with held_elsewhere(*([carrier.lock] if isinstance(store, SQLiteStore) else ())):
        budget = Budget(nano(100), name=place.name, store=store)
        child = budget.child("a", nano(30))
        Budget(parent=budget, name="gone", kept=False)

    assert in_a_fork(lambda: spend(child, 20)) == 0
    spend(child, 10)
    assert charged(child) == (30, 0, 0)
    assert charged(budget) == (30, 0, 0)
    assert budget.snapshot().limits.usd == 100


def test_a_file_that_is_being_opened_is_known_to_who_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, known = sqlite_books.opened, []

    def opening(path: str, *, make: bool) -> sqlite3.Connection:
        known.append(path in {keeper.path for keeper in sqlite_keeper._keepers})
        return opened(path, make=make)

    monkeypatch.setattr(sqlite_books, "opened", opening)
    SQLiteStore(tmp_path / "budgets.db")
    assert known == [True]


@pytest.mark.parametrize("kind", ["servers", "files"])
def test_children_do_not_all_try_again_at_the_same_moments(kind: str) -> None:
    server = RedisStore("redis://nowhere.invalid")

    def chance() -> random.Random:
        return sqlite_keeper._chance if kind == "files" else server._courier._back_off._chance

    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    for _ in range(2):
        assert in_a_fork(lambda: told.put(chance().random())) == 0
    assert told.get() != told.get()

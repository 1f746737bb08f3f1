"""Budgets in a file: durable, leased, never in the way of an event loop, and closed when broken."""

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, charged, nano, outcomes, reserve, small, spend
from tests.stores.heartbeat import PATIENCE, beating
from tests.stores.sqlite_files import ROOT, locked, opened
from tests.stores.test_contract import parts, read
from tokenfence_integrations import Budget, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Anchor,
    Book,
    Drop,
    End,
    Limits,
    Open,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
)
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.stores.sqlite import file as sqlite_file
from tokenfence_integrations.stores.sqlite import keeper as sqlite_keeper
from tokenfence_integrations.stores.sqlite.keeper import Keeper

# Kept


def test_what_was_spent_is_there_again(file: Path) -> None:
    store = SQLiteStore(file)
    first = small(1_000, name="acme", store=store)
    spend(first.child("writer", nano(500)), 20)
    reserve(first, 30).admit().lose()
    store.close()

    again = small(1_000, name="acme", store=SQLiteStore(file))
    assert charged(again) == (20, 0, 30)
    assert charged(again.child("writer", nano(500))) == (20, 0, 0)


def test_other_limits_count_from_now_on_and_what_was_added_stays(file: Path) -> None:
    budget = small(100, name="acme", store=SQLiteStore(file))
    spend(budget, 20)
    budget.top_up(nano(50))

    def limit(usd: int | None) -> int | None:
        given = None if usd is None else nano(usd)
        return Budget(given, name="acme", store=SQLiteStore(file)).snapshot().limits.usd

    assert limit(100) == 150
    assert limit(None) == 150
    assert limit(200) == 200
    assert charged(budget) == (20, 0, 0)
    assert budget.snapshot().limits.usd == 200


def test_a_closed_file_opens_again(file: Path) -> None:
    store = opened(file)
    store.execute(Reserve(ROOT, 1, Amount(40)))
    store.close()
    assert parts(read(store, "root")) == (NOTHING, Amount(40), NOTHING)
    store.execute(End(ROOT, 1, Amount(10), NOTHING))
    assert parts(read(store, "root")) == (Amount(10), NOTHING, NOTHING)


def test_two_stores_on_one_file_are_as_two_processes(file: Path) -> None:
    one, other = opened(file), opened(file)
    assert one.execute(Reserve(ROOT, 1, Amount(60))).done
    assert not other.execute(Reserve(ROOT, 1, Amount(60))).done
    assert other.execute(Reserve(ROOT, 1, Amount(40))).done  # its own number 1
    one.execute(End(ROOT, 1, Amount(5), NOTHING))
    assert parts(read(other, "root")) == (Amount(5), Amount(40), NOTHING)


def test_a_command_that_fails_in_its_midst_changes_nothing(file: Path) -> None:
    store = opened(file)
    with pytest.raises(KeyError, match="leaf"):
        store.execute(Book(("root", "leaf"), Amount(5)))
    assert parts(read(store, "root")) == (NOTHING, NOTHING, NOTHING)


@pytest.mark.parametrize("path", [("a",), ("a/b", "a")])
def test_what_was_committed_as_ctrl_c_came_is_not_written_again(
    file: Path, path: tuple[str, ...]
) -> None:
    store = SQLiteStore(file)
    for account in path:
        store.execute(Open(account, Limits(usd=100)))
    store.execute(Reserve(path, 1, Amount(20, 1)))
    books: Any = store._keeper.books
    commit = books.commit

    def interrupted() -> None:
        commit()
        books.commit = commit
        raise KeyboardInterrupt

    books.commit = interrupted
    with pytest.raises(KeyboardInterrupt):
        store.end(path, 1, Amount(15, 1), NOTHING)
    for state in store.execute(Read(path)).states:
        assert (state.spent.usd, state.reserved_usd) == (15, 0)
    store.close()


def test_numbers_beyond_those_of_sqlite_are_refused(file: Path) -> None:
    store = opened(file, None)
    with pytest.raises(ValueError, match="holds numbers below"):
        Budget("$5000000000", name="acme", store=store)
    assert store.execute(Reserve(ROOT, 1, Amount(1 << 60), times=128)).done  # no limit
    store.execute(Open("rich", Limits(usd=(1 << 62) - 1)))
    assert not store.execute(Reserve(("rich",), 2, Amount(1 << 60), times=128)).done


@pytest.mark.parametrize("options", [{"lease": 0.5}, {"timeout": -1}, {"poll": 0}])
def test_numbers_that_nobody_could_mean_are_refused(file: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="lease must be 1 second or more"):
        SQLiteStore(file, **options)


# Leases


def test_what_a_silent_process_holds_turns_uncertain_when_its_lease_is_over(file: Path) -> None:
    clock = FakeClock()
    silent, other = opened(file, clock=clock, lease=60), opened(file, clock=clock, lease=60)
    silent.execute(Reserve(ROOT, 1, Amount(60, 1, 2, 3)))
    clock.advance(59)
    other.execute(Book(ROOT, Amount(1)))  # a sign of life, of the other one alone
    assert parts(read(other, "root")) == (Amount(1), Amount(60, 1, 2, 3), NOTHING)
    clock.advance(1)
    assert parts(read(other, "root")) == (Amount(1), NOTHING, Amount(60, 1, 2, 3))


def test_a_refused_reservation_tells_of_what_has_expired(file: Path) -> None:
    clock = FakeClock()
    silent, other = opened(file, clock=clock), opened(file, clock=clock)
    silent.execute(Reserve(ROOT, 1, Amount(60)))
    clock.advance(60)
    reply = other.execute(Reserve(ROOT, 1, Amount(60)))
    assert not reply.done
    assert parts(reply.states[0]) == (NOTHING, NOTHING, Amount(60))


def test_the_true_end_of_an_expired_reservation_corrects_it_once(file: Path) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    begun = clock()
    stopped.execute(Reserve(ROOT, 1, Amount(60, 1, 5, 5), what="model"))
    stopped.execute(Reserve(ROOT, 2, Amount(10), what="mini"))
    clock.advance(60)
    assert read(other, "root").uncertain == Amount(70, 1, 5, 5)
    first, second = other.charges()
    assert first[1:] == (ROOT, Amount(60, 1, 5, 5), begun, "model")
    assert second[1:] == (ROOT, Amount(10), begun, "mini")
    assert stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert not stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(13))
    assert not other.execute(Resolve(first.id, Amount(9))).done
    stopped.execute(End(ROOT, 2, NOTHING, NOTHING))
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(3))
    [left] = other.charges()
    assert left[1:] == (ROOT, Amount(3), begun, "model")


def test_a_charge_that_was_settled_by_hand_stays_so_whatever_its_call_says_later(
    file: Path,
) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    stopped.execute(Reserve(ROOT, 1, Amount(60)))
    clock.advance(60)
    [charge] = other.charges()
    assert other.execute(Resolve(charge.id, Amount(25))).done
    stopped.execute(End(ROOT, 1, Amount(20), Amount(3)))
    assert parts(read(other, "root")) == (Amount(25), NOTHING, NOTHING)
    assert other.charges() == ()


def test_what_is_asked_for_the_charges_ends_leases_that_are_over(file: Path) -> None:
    clock = FakeClock()
    silent, other = opened(file, clock=clock), opened(file, clock=clock)
    silent.execute(Reserve(ROOT, 1, NOTHING))  # of which nothing can be charged
    silent.execute(Reserve(ROOT, 2, Amount(5)))
    clock.advance(59)
    assert other.charges() == ()
    clock.advance(1)
    assert [charge.amount for charge in other.charges()] == [Amount(5)]


def test_a_call_that_ends_late_is_charged_to_the_accounts_that_are_left(file: Path) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    stopped.execute(Open("root/leaf", Limits()))
    stopped.execute(Reserve(("root/leaf", "root"), 1, Amount(60)))
    clock.advance(60)
    other.charges()
    assert other.execute(Drop("root/leaf")).done
    stopped.execute(End(("root/leaf", "root"), 1, Amount(2), Amount(3)))
    assert [charge[1:3] for charge in other.charges()] == [(ROOT, Amount(3))]
    assert parts(read(other, "root")) == (Amount(2), NOTHING, Amount(3))


def test_charges_and_anchors_are_there_again_and_an_id_is_given_once(file: Path) -> None:
    store = opened(file)
    for key in (1, 2):
        store.execute(Reserve(ROOT, key, Amount(key)))
        store.execute(End(ROOT, key, NOTHING, Amount(key)))
    store.execute(Anchor("root", 17.5))
    [_, last] = store.charges()
    store.execute(Resolve(last.id, NOTHING))
    store.close()

    again = SQLiteStore(file)
    assert again.execute(Anchor("root", 99.0)) == Reply(False, at=17.5)
    again.execute(Reserve(ROOT, 3, Amount(3)))
    again.execute(End(ROOT, 3, NOTHING, Amount(3)))
    assert [charge.amount.usd for charge in again.charges()] == [1, 3]
    assert last.id not in {charge.id for charge in again.charges()}
    assert not again.execute(Resolve(last.id, Amount(9))).done


def test_the_charge_of_an_end_that_is_only_noted_is_among_the_charges(file: Path) -> None:
    store = opened(file, clock=FakeClock())
    store.execute(Reserve(ROOT, 1, Amount(7), what="model"))
    with locked(file):
        store.end(ROOT, 1, Amount(2), Amount(5))
    assert [(charge.amount, charge.what) for charge in store.charges()] == [(Amount(5), "model")]


def test_what_a_reset_forgot_is_not_subtracted_again(file: Path) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    stopped.execute(Open("root/leaf", Limits()))
    stopped.execute(Reserve(("root/leaf", "root"), 1, Amount(60)))
    clock.advance(60)
    other.execute(Read(ROOT))
    other.execute(Reset(("root/leaf",)))
    stopped.execute(End(("root/leaf", "root"), 1, Amount(20), NOTHING))
    assert parts(read(other, "root/leaf")) == (Amount(20), NOTHING, NOTHING)
    assert parts(read(other, "root")) == (Amount(20), NOTHING, NOTHING)
    assert other.charges() == ()


def test_a_call_that_ends_late_is_booked_although_all_was_reset(file: Path) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    stopped.execute(Reserve(ROOT, 1, Amount(60)))
    clock.advance(60)
    [charge] = other.charges()
    other.execute(Reset(ROOT))
    assert other.charges() == ()
    assert not other.execute(Resolve(charge.id, Amount(9))).done
    stopped.execute(End(ROOT, 1, Amount(20), NOTHING))
    assert parts(read(other, "root")) == (Amount(20), NOTHING, NOTHING)


def test_a_process_that_was_stopped_reserves_under_a_lease_of_its_own_again(file: Path) -> None:
    clock = FakeClock()
    stopped, other = opened(file, clock=clock), opened(file, clock=clock)
    stopped.execute(Reserve(ROOT, 1, Amount(10)))
    clock.advance(100)
    other.execute(Read(ROOT))
    stopped.execute(Reserve(ROOT, 2, Amount(20)))
    assert parts(read(other, "root")) == (NOTHING, Amount(20), Amount(10))


def test_a_process_does_not_give_up_its_own_calls(file: Path) -> None:
    clock = FakeClock()
    store = opened(file, clock=clock)
    store.execute(Reserve(ROOT, 1, Amount(10)))
    clock.advance(1_000)
    assert read(store, "root").reserved == Amount(10)


def test_the_thread_of_a_process_renews_its_lease_while_calls_are_in_flight(file: Path) -> None:
    clock = FakeClock()
    alive, other = opened(file, clock=clock), opened(file, clock=clock)
    alive.execute(Reserve(ROOT, 1, Amount(10)))
    for _ in range(5):
        clock.advance(30)
        assert (
            alive._keeper.tend() == 20.0
        )  # seconds to the next sign of life: a third of the lease
    assert parts(read(other, "root")) == (NOTHING, Amount(10), NOTHING)
    alive.execute(End(ROOT, 1, NOTHING, NOTHING))
    alive._keeper.tend()
    assert alive._keeper.tend() is None


# Locked by others


def test_a_command_waits_for_a_locked_file(file: Path) -> None:
    store = opened(file)
    replies: list[Any] = []
    with locked(file):
        thread = threading.Thread(
            target=lambda: replies.append(store.execute(Reserve(ROOT, 1, Amount(5))))
        )
        thread.start()
        assert read(store, "root").reserved == NOTHING  # whoever reads does not wait
    thread.join(20)
    assert replies[0].done


def test_a_file_that_stays_locked_is_an_error_that_says_so(file: Path) -> None:
    store = opened(file, timeout=0)
    with (
        locked(file),
        pytest.raises(StoreError, match=r"budgets.db.*others have locked it for 0 s"),
    ):
        store.execute(Reserve(ROOT, 1, Amount(5)))
    assert store.execute(Reserve(ROOT, 1, Amount(5))).done


async def test_an_event_loop_goes_on_while_the_file_is_locked(file: Path) -> None:
    budget = small(100, store=SQLiteStore(file))

    async def ask() -> None:
        async with reserve(budget, 20) as call:
            await call.asettle(Usage(0, 7))

    held = reserve(budget, 30).admit()
    async with beating() as heart:
        with locked(file):
            asking = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0.02)
            held.settle(Usage(0, 5))  # nor does an end wait
            budget.record(nano(2))
            budget.child("late", nano(9))
            assert charged(budget) == (7, 0, 0)  # and yet it counts
            assert charged(budget.child("late")) == (0, 0, 0)
            assert not any(task.done() for task in asking)
        await asyncio.gather(*asking)
    assert charged(budget) == (28, 0, 0)
    assert heart.longest_pause < PATIENCE


async def test_a_task_that_is_cancelled_while_it_reserves_leaves_nothing_reserved(
    file: Path,
) -> None:
    budget = small(100, store=SQLiteStore(file))
    with locked(file):
        asking = asyncio.create_task(reserve(budget, 20).aadmit())
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert charged(budget) == (0, 0, 0)
    assert not budget._tree.live


async def test_a_reservation_that_was_made_for_a_cancelled_task_is_given_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has committed it already, and the task has not heard of it yet."""
    store = SQLiteStore(file)
    budget = small(100, store=store)
    committed, go_on = threading.Event(), threading.Event()
    insist = Keeper.insist

    def slow(*arguments: Any) -> Any:
        result = insist(*arguments)
        if threading.current_thread() is not threading.main_thread():
            committed.set()
            assert go_on.wait(20)
        return result

    with locked(file):
        monkeypatch.setattr(Keeper, "insist", slow)
        asking = asyncio.create_task(reserve(budget, 20).aadmit())
        await asyncio.sleep(0)
    await asyncio.to_thread(committed.wait, 20)
    assert charged(budget) == (0, 20, 0)
    asking.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    monkeypatch.undo()
    assert charged(budget) == (0, 0, 0)


async def test_the_end_of_a_cancelled_task_is_not_lost(file: Path) -> None:
    budget = small(100, store=SQLiteStore(file))

    async def ask() -> None:
        async with reserve(budget, 20) as call:
            with locked(file):
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await call.asettle(Usage(0, 7))
                await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(ask())
    assert outcomes(budget) == [("settled", 7, 0)]
    assert charged(budget) == (7, 0, 0)


def test_what_has_ended_while_the_file_was_locked_is_written_by_the_thread(file: Path) -> None:
    store, other = opened(file), opened(file)
    store.execute(Reserve(ROOT, 1, Amount(50)))
    with locked(file):
        store.end(ROOT, 1, Amount(20), NOTHING)
        assert parts(read(other, "root")) == (NOTHING, Amount(50), NOTHING)
        assert parts(read(store, "root")) == (Amount(20), NOTHING, NOTHING)
    until = time.monotonic() + 20
    while parts(read(other, "root")) != (Amount(20), NOTHING, NOTHING):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_finalizer_in_the_midst_of_a_command_ends_its_call(file: Path) -> None:
    store = opened(file)
    store.execute(Reserve(ROOT, 1, Amount(50)))
    with store._keeper.lock:
        store._keeper.depth += 1
        store.end(ROOT, 1, Amount(20), NOTHING)
        assert parts(read(store, "root")) == (Amount(20), NOTHING, NOTHING)
        with pytest.raises(StoreError, match="in the midst of another command"):
            store.execute(Reserve(ROOT, 2, Amount(1)))
        store._keeper.depth -= 1
    store.close()
    assert parts(read(opened(file), "root")) == (Amount(20), NOTHING, NOTHING)


# Processes


def in_child(file: Path) -> None:
    budget = Budget(name="acme", store=f"sqlite:///{file}")
    spend(budget, 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_file_and_reservations_of_its_own(file: Path) -> None:
    store = SQLiteStore(file)
    budget = small(200, name="acme", store=store)
    mine = reserve(budget, 50).admit()

    def child() -> None:
        assert store._keeper.books is None, "a connection must not be used after a fork"
        mine.settle(Usage(0, 50))  # not this process's to end
        spend(budget, 20)
        reserve(budget, 30).admit().lose()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert charged(budget) == (20, 50, 30)
    mine.settle(Usage(0, 10))
    assert charged(budget) == (30, 0, 30)


def test_what_is_kept_is_written_as_the_process_ends(file: Path) -> None:
    opened(file, None)
    script = f"""
import sqlite3
from tokenfence_integrations.stores.base import *
from tokenfence_integrations.stores.base import Amount, Book, End, Reserve
from tokenfence_integrations.stores.sqlite import SQLiteStore
store = SQLiteStore({str(file)!r})
store._keeper.tend = lambda: None
store.execute(Reserve(("root",), 1, Amount(9)))
other = sqlite3.connect({str(file)!r}, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
store.end(("root",), 1, Amount(4), Amount(1))
store.note(Book(("root",), Amount(2)))
other.execute("ROLLBACK")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert parts(read(SQLiteStore(file), "root")) == (Amount(6), NOTHING, Amount(1))


def test_a_store_that_nobody_uses_any_more_leaves_nothing_behind(file: Path) -> None:
    store = opened(file)
    store.execute(Reserve(ROOT, 1, Amount(5)))
    [thread] = [t for t in threading.enumerate() if t.name == "tokenfence" and t.is_alive()][-1:]
    del store
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_call_that_is_garbage_together_with_its_store_is_ended(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = small(100, name="acme", store=SQLiteStore(file))
    store = SQLiteStore(file)
    ring: list[Any] = [reserve(small(100, name="acme", store=store), 10).admit(), store]
    ring.append(ring)  # so that they go at the same time
    del ring, store
    gc.collect()
    assert charged(other) == (0, 0, 10)
    assert str(file) not in caplog.text


def test_a_store_is_kept_until_what_it_has_noted_is_written(file: Path) -> None:
    store, other = opened(file), opened(file)
    store.execute(Reserve(ROOT, 1, Amount(5)))
    with locked(file):
        store.end(ROOT, 1, Amount(3), NOTHING)
        del store
        gc.collect()
    until = time.monotonic() + 20
    while parts(read(other, "root")) != (Amount(3), NOTHING, NOTHING):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_second_tree_on_the_same_store_is_woken(file: Path) -> None:
    store = SQLiteStore(file, poll=30)
    one, other = (small(100, name="acme", store=store) for _ in range(2))
    call = reserve(one, 80).admit()
    waiting = [
        threading.Thread(target=lambda budget=budget: spend(budget, 40)) for budget in (one, other)
    ]
    for thread in waiting:
        thread.start()
    while not (one._tree.line and other._tree.line):
        time.sleep(0.001)
    store._keeper.tend()
    call.settle(Usage(0, 20))
    for thread in waiting:
        thread.join(20)
    assert charged(one) == (100, 0, 0)


def test_checkpoints_are_made_by_the_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_keeper, "CHECKPOINT_EVERY", 10)
    monkeypatch.setattr(sqlite_file, "LONG_WAL", 0)
    store = opened(file, None)
    made: list[str] = []
    checkpoint = store._keeper._checkpoint

    def noted() -> None:
        made.append(threading.current_thread().name)
        checkpoint()

    monkeypatch.setattr(store._keeper, "_checkpoint", noted)
    for key in range(200):
        store.reserve(ROOT, key, Amount(1))
        store.end(ROOT, key, Amount(1), NOTHING)
    until = time.monotonic() + 20
    while not made:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert set(made) == {"tokenfence"}
    assert read(store, "root").spent == Amount(200)

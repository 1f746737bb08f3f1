"""Budgets in a file: durable, leased, never in the way of an event loop, and closed when broken."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, charged, nano, outcomes, reserve, small, spend
from tests.stores.heartbeat import PATIENCE, beating
from tests.stores.test_contract import parts, read
from tokenfence_integrations import Budget, StoreError, Usage
from tokenfence_integrations.stores import sqlite
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Anchor,
    Book,
    Draw,
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
from tokenfence_integrations.stores.sqlite_books import Books

ROOT = ("root",)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "budgets.db"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """The file as it is while another program writes to it."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def opened(file: Path, usd: int | None = 100, **options: Any) -> SQLiteStore:
    store = SQLiteStore(file, **options)
    store.execute(Open("root", Limits(usd=usd)))
    return store


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


# Calls in flight: the first few in their account's row, all others in rows of their own

PATH = ("root/leaf", "root")


def nothing_is_held(file: Path) -> bool:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        [calls] = connection.execute("SELECT count(*) FROM reservations").fetchone()
        [accounts] = connection.execute("SELECT count(*) FROM accounts WHERE held != ''").fetchone()
    return not calls and not accounts


@pytest.mark.parametrize("path", [ROOT, PATH])
@pytest.mark.parametrize("last_first", [False, True])
def test_many_calls_in_flight_end_one_by_one(
    file: Path, path: tuple[str, ...], last_first: bool
) -> None:
    store = opened(file, 10_000)
    store.execute(Open("root/leaf", Limits()))
    keys = range(1, 101)  # of any two of 1, 11, 111, .. one begins the other
    for key in keys:
        assert store.execute(Reserve(path, key, Amount(key, 1, 2, 3), what=f"m{key}")).done
    assert not nothing_is_held(file)
    left = Amount(sum(keys), 100, 200, 300)
    for account in path:
        assert parts(read(store, account)) == (NOTHING, left, NOTHING)
    for ended, key in enumerate(reversed(keys) if last_first else keys, 1):
        assert store.execute(End(path, key, Amount(1), NOTHING)).done
        assert not store.execute(End(path, key, Amount(1), NOTHING)).done
        left = Amount(*[a - b for a, b in zip(left, (key, 1, 2, 3), strict=True)])
        for account in path:
            assert parts(read(store, account)) == (Amount(ended), left, NOTHING)
    assert nothing_is_held(file)


def test_a_crowded_account_has_room_to_the_last_of_it(file: Path) -> None:
    store = opened(file, 50)
    for key in range(50):
        assert store.execute(Reserve(ROOT, key, Amount(1))).done
    assert not store.execute(Reserve(ROOT, 50, Amount(1))).done
    assert store.execute(Reserve(ROOT, 51, Amount(1), force=True)).done
    assert read(store, "root").reserved == Amount(51)


def test_a_parent_without_room_leaves_nothing_in_its_child(file: Path) -> None:
    store = opened(file, 10)
    store.execute(Open("root/leaf", Limits()))
    assert not store.execute(Reserve(PATH, 1, Amount(11))).done
    assert parts(read(store, "root/leaf")) == (NOTHING, NOTHING, NOTHING)
    assert nothing_is_held(file)


@pytest.mark.parametrize("what", ["", "a model", "two\nlines", "\nfirst", "\n1 2 3", "e\u0301"])
def test_who_is_charged_for_a_call_is_known_whatever_its_model_is_called(
    file: Path, what: str
) -> None:
    clock = FakeClock(1_700_000_000.123457)
    died, other = opened(file, None, clock=clock), opened(file, None, clock=clock)
    died.execute(Open("root/leaf", Limits()))
    for key in range(20):
        died.execute(Reserve(PATH, key, Amount(key + 1, 1, 2, 3), what=what))
        other.execute(Reserve(ROOT, key, Amount(1)))
    reserved_at = clock()
    clock.advance(40)
    other.tend()  # a sign of life
    clock.advance(20)
    charges = {charge.amount.usd: charge for charge in other.charges()}
    assert sorted(charges) == list(range(1, 21))
    for usd, charge in charges.items():
        assert charge[1:] == (PATH, Amount(usd, 1, 2, 3), reserved_at, what)
    assert parts(read(other, "root")) == (NOTHING, Amount(20), Amount(210, 20, 40, 60))
    for key in range(20):  # those of whoever lives are as they were
        assert other.execute(End(ROOT, key, Amount(1), NOTHING)).done
    assert died.execute(End(PATH, 3, Amount(2), NOTHING)).done
    assert parts(read(other, "root")) == (Amount(22), NOTHING, Amount(206, 19, 38, 57))
    assert nothing_is_held(file)


def test_an_account_may_be_dropped_while_a_call_that_costs_nothing_is_in_flight(
    file: Path,
) -> None:
    store = opened(file)
    store.execute(Open("root/leaf", Limits()))
    store.execute(Reserve(PATH, 1, NOTHING))
    assert store.execute(Drop("root/leaf")).done
    assert store.execute(End(PATH, 1, Amount(4), NOTHING)).done
    assert parts(read(store, "root")) == (Amount(4), NOTHING, NOTHING)
    assert nothing_is_held(file)


def test_a_command_that_cannot_be_said_holds_nothing(file: Path) -> None:
    store = opened(file, None)
    with pytest.raises(KeyError):
        store.execute(Reserve(("nobody",), 1, Amount(1)))
    with pytest.raises(OverflowError):
        store.execute(Reserve(ROOT, 2, Amount(1 << 70)))
    with pytest.raises(UnicodeEncodeError):
        store.execute(Reserve(ROOT, 3, Amount(1), what="\ud800"))
    assert not store._held
    assert parts(read(store, "root")) == (NOTHING, NOTHING, NOTHING)


def seen_by_others(file: Path) -> tuple[object, ...]:
    columns = [f"{part}_usd" for part in ("limit", "spent", "reserved", "uncertain")]
    with contextlib.closing(sqlite3.connect(file)) as connection:
        accounts = f"SELECT name, {', '.join(columns)} FROM accounts ORDER BY name"
        calls = (
            "SELECT (SELECT count(*) FROM accounts WHERE held != '') + count(*) FROM reservations"
        )
        charges = "SELECT usd FROM charges"
        return tuple(
            [tuple(connection.execute(query).fetchall()) for query in (accounts, calls, charges)]
        )


class Interrupted:
    """A store on which one call is in flight, and whose next transaction SQLite gives up.

    Args:
        file: The file.
        path: Of the call.
        step: After how many of SQLite's steps.
    """

    def __init__(self, file: Path, path: tuple[str, ...], step: int) -> None:
        self.store = opened(file)
        self.store.execute(Open("root/leaf", Limits()))
        self.store.execute(Reserve(path, 1, Amount(60)))
        self.store.tend = lambda: None  # type: ignore[method-assign]
        assert self.store._books is not None
        self._left = step
        self._books = self.store._books
        self._books.connection.set_progress_handler(self._stops, 1)

    def _stops(self) -> bool:
        self._left -= 1
        return self._left == 0

    @property
    def is_over(self) -> bool:
        """Whether that many steps were taken."""
        return self._left <= 0

    def write(self) -> None:
        """Write what could not be."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed by now
            self._books.connection.set_progress_handler(None, 1)
        self.store.close()


@pytest.mark.parametrize("path", [ROOT, PATH])
@pytest.mark.parametrize("kind", ["reserve", "end", "lose", "draw", "book", "open"])
def test_what_is_interrupted_at_any_step_is_written_whole_or_not_at_all(
    tmp_path: Path, path: tuple[str, ...], kind: str
) -> None:
    commands: dict[str, Any] = {
        "reserve": Reserve(path, 2, Amount(7)),
        "end": End(path, 1, Amount(20), NOTHING),
        "lose": End(path, 1, Amount(20), Amount(5)),
        "draw": Draw(path, 1, Amount(20), Amount(5), Amount(35), "model"),
        "book": Book(path, Amount(3)),
        "open": Open("root", Limits(usd=500)),
    }
    command = commands[kind]

    def strike(step: int) -> tuple[bool, tuple[object, ...], tuple[object, ...]]:
        file = tmp_path / f"{step}.db"
        interrupted = Interrupted(file, path, step)
        if kind == "reserve":
            with contextlib.suppress(StoreError):
                interrupted.store.execute(command)
        else:
            interrupted.store.note(command)
        seen = seen_by_others(file)
        interrupted.write()
        return interrupted.is_over, seen, seen_by_others(file)

    is_over, after, _ = strike(1_000_000)
    assert not is_over
    before = None
    for step in range(1, 1_000, 6):
        is_over, seen, written = strike(step)
        if not is_over:
            break
        before = before or seen
        assert before != after
        assert seen in (before, after)
        # It may be right after a commit, too: then only an end is known not to count twice.
        if kind in ("end", "lose", "open") or (seen == before and kind != "reserve"):
            assert written == after
    assert step > 12


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
        assert alive.tend() == 20.0  # seconds to the next sign of life: a third of the lease
    assert parts(read(other, "root")) == (NOTHING, Amount(10), NOTHING)
    alive.execute(End(ROOT, 1, NOTHING, NOTHING))
    alive.tend()
    assert alive.tend() is None


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
    insist = SQLiteStore._insist

    def slow(*arguments: Any) -> Any:
        result = insist(*arguments)
        if threading.current_thread() is not threading.main_thread():
            committed.set()
            assert go_on.wait(20)
        return result

    with locked(file):
        monkeypatch.setattr(SQLiteStore, "_insist", slow)
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
    with store._lock:
        store._depth += 1
        store.end(ROOT, 1, Amount(20), NOTHING)
        assert parts(read(store, "root")) == (Amount(20), NOTHING, NOTHING)
        with pytest.raises(StoreError, match="in the midst of another command"):
            store.execute(Reserve(ROOT, 2, Amount(1)))
        store._depth -= 1
    store.close()
    assert parts(read(opened(file), "root")) == (Amount(20), NOTHING, NOTHING)


# Broken


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"not a database, but as long as the head of one would be" * 30,
            "damaged, or no database",
        ),
        (None, "a database of something else"),
        (b"", None),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    file: Path, content: bytes | None, reason: str | None
) -> None:
    if content is None:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE guests (name TEXT)")
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    if reason is None:  # an empty file is a new one
        SQLiteStore(file)
        return
    with pytest.raises(StoreError, match=f"{file.name} cannot be used: .*{reason}"):
        SQLiteStore(file)
    if content is not None:
        assert file.read_bytes() == before


def test_a_file_of_a_later_version_is_not_touched(file: Path) -> None:
    SQLiteStore(file).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="its format is 7, known here is 4"):
        SQLiteStore(file)


VERSION_3 = """
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    given TEXT NOT NULL,
    limit_usd INTEGER, limit_calls INTEGER, limit_tokens INTEGER,
    limit_input INTEGER, limit_output INTEGER,
    spent_usd INTEGER NOT NULL DEFAULT 0, spent_calls INTEGER NOT NULL DEFAULT 0,
    spent_input INTEGER NOT NULL DEFAULT 0, spent_output INTEGER NOT NULL DEFAULT 0,
    reserved_usd INTEGER NOT NULL DEFAULT 0, reserved_calls INTEGER NOT NULL DEFAULT 0,
    reserved_input INTEGER NOT NULL DEFAULT 0, reserved_output INTEGER NOT NULL DEFAULT 0,
    uncertain_usd INTEGER NOT NULL DEFAULT 0, uncertain_calls INTEGER NOT NULL DEFAULT 0,
    uncertain_input INTEGER NOT NULL DEFAULT 0, uncertain_output INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE owners (id INTEGER PRIMARY KEY, lease REAL NOT NULL);
CREATE TABLE reservations (
    owner INTEGER NOT NULL, key INTEGER NOT NULL, accounts TEXT NOT NULL,
    usd INTEGER NOT NULL, calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
    at REAL NOT NULL, what TEXT NOT NULL, idle INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE TABLE charges (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner INTEGER, key INTEGER, accounts TEXT NOT NULL,
    usd INTEGER NOT NULL, calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
    at REAL NOT NULL, what TEXT NOT NULL,
    UNIQUE (owner, key)
);
CREATE TABLE anchors (account TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 3;
"""
"""What the version before made of a new file."""

CONTENT_3 = """
INSERT INTO accounts (name, given, limit_usd, spent_usd, reserved_usd, uncertain_usd)
    VALUES ('root', '100,,,,', 100, 20, 35, 5), ('root/leaf', ',,,,', NULL, 0, 5, 0);
INSERT INTO owners VALUES (77, 1000060.0), (88, 1000090.0);
INSERT INTO reservations VALUES (77, 1, '1', 30, 0, 0, 0, 999000.5, 'model', 0);
INSERT INTO reservations VALUES (88, 1, '2,1', 5, 0, 0, 0, 999000.5, 'mini', 0);
INSERT INTO charges VALUES (NULL, NULL, NULL, '1', 5, 0, 0, 0, 999000.0, 'model');
INSERT INTO anchors VALUES ('root', 17.5);
"""
"""A process with a call on the root, and another with one on its child."""


def made_by_version_3(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(VERSION_3 + CONTENT_3)


def test_a_file_of_the_version_before_is_gone_on_with(file: Path) -> None:
    made_by_version_3(file)
    clock = FakeClock(1_000_059.0)
    store = SQLiteStore(file, clock=clock)
    assert parts(read(store, "root")) == (Amount(20), Amount(35), Amount(5))
    assert not store.execute(Reserve(ROOT, 1, Amount(41))).done
    assert store.execute(Reserve(PATH, 1, Amount(40))).done
    clock.advance(1)  # the lease of the first one is over
    assert parts(read(store, "root")) == (Amount(20), Amount(45), Amount(35))
    assert parts(read(store, "root/leaf")) == (NOTHING, Amount(45), NOTHING)
    assert [(charge.path, charge.amount.usd) for charge in store.charges()] == [
        (ROOT, 5),
        (ROOT, 30),
    ]
    assert store.execute(Anchor("root", 99.0)) == Reply(False, at=17.5)
    store.execute(End(PATH, 1, Amount(2), NOTHING))
    store.close()
    clock.advance(30)
    again = SQLiteStore(file, clock=clock)
    assert parts(read(again, "root")) == (Amount(22), NOTHING, Amount(40))


def test_a_process_that_still_runs_the_version_before_cannot_end_the_leases_of_others(
    file: Path,
) -> None:
    """It has the file open while another one migrates it, and knows nothing of the new place."""
    made_by_version_3(file)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as before:
        before.execute("SELECT * FROM owners").fetchall()
        clock = FakeClock(1_000_000.0)
        store = SQLiteStore(file, clock=clock)
        store.execute(Reserve(ROOT, 1, Amount(7)))
        with pytest.raises(sqlite3.OperationalError, match="no such table: owners"):
            before.execute("SELECT id FROM owners WHERE lease <= ?", (clock() + 1_000,))
        # An end that it still has to write counts, and so does what its checkpoint writes.
        before.execute("DELETE FROM reservations WHERE owner = 77")
        before.execute("UPDATE accounts SET reserved_usd = reserved_usd - 30 WHERE id = 1")
        before.execute("PRAGMA user_version = 3")
    other = SQLiteStore(file, clock=clock)
    assert parts(read(other, "root")) == (Amount(20), Amount(12), Amount(5))
    clock.advance(60)
    assert parts(read(other, "root")) == (Amount(20), Amount(5), Amount(12))


def test_a_checkpoint_leaves_the_number_of_the_version_as_it_is(file: Path) -> None:
    store = opened(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 7")  # another process has just migrated it
        store._checkpoint()
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its folder must exist"):
        Budget("$1", name="acme", store=f"sqlite:///{tmp_path}/no/budgets.db")


def test_a_file_that_is_truncated_admits_nothing_more(file: Path) -> None:
    store = SQLiteStore(file)
    budget = small(100, store=store)
    spend(budget, 90)
    store.close()
    os.truncate(file, 0)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"budgets.db.*tables have disappeared"):
            reserve(budget, 50).admit()


@pytest.mark.parametrize("heir", [None, b"", "anew"])
def test_a_file_that_is_deleted_or_replaced_in_use_admits_nothing_more(
    file: Path, heir: bytes | str | None
) -> None:
    """SQLite goes on in the file that is gone, and two processes would spend twice as much."""
    store = SQLiteStore(file)
    budget = small(100, store=store)
    spend(budget, 90)
    held = reserve(budget, 10).admit()
    for name in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        name.rename(name.with_name(f"old-{name.name}"))
    if heir == "anew":
        SQLiteStore(file).close()
    elif isinstance(heir, bytes):
        file.write_bytes(heir)
    held.release()
    with pytest.raises(StoreError, match=r"disappeared|emptied or replaced|not there any more"):
        reserve(budget, 10).admit()
    if heir is None:
        assert not file.exists()


def test_a_file_whose_middle_is_torn_out_admits_nothing_more(file: Path) -> None:
    store = SQLiteStore(file)
    budget = small(100, store=store)
    spend(budget, 90)
    store.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:1024] + b"\xff" * (len(whole) - 1024))
    with pytest.raises(StoreError, match=r"budgets.db.*damaged"):
        reserve(budget, 50).admit()
    file.write_bytes(whole)  # a copy is restored: it goes on by itself
    assert charged(budget) == (90, 0, 0)
    spend(budget, 10)


def full(store: SQLiteStore) -> None:
    """As on a full disk: not one page more."""
    assert store._books is not None
    [pages] = store._books.execute("PRAGMA page_count").fetchone()
    store._books.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_admits_nothing_and_loses_no_end(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    budget = small(100, store=SQLiteStore(file))
    call = reserve(budget, 60).admit()
    with monkeypatch.context() as patch:
        for first in ("begin", "reserve", "end"):  # of a transaction
            patch.setattr(Books, first, full_disk)
        call.settle(Usage(0, 10))
        assert "the disk is full" in caplog.text
        assert charged(budget) == (10, 0, 0)
        with pytest.raises(StoreError, match="the disk is full"):
            reserve(budget, 20).admit()
    spend(budget, 20)
    assert charged(budget) == (30, 0, 0)


def test_a_disk_that_is_really_full(file: Path) -> None:
    """SQLite's own error, at a limit of pages."""
    store = opened(file)
    full(store)

    def fill() -> None:
        for number in range(200):
            store.execute(Open(f"root/{number}" * 20, Limits()))

    with pytest.raises(StoreError, match=r"budgets.db.*the disk is full"):
        fill()
    assert store.execute(Reserve(ROOT, 1, Amount(5))).done  # opened again, without the limit


def test_a_command_that_can_never_be_written_is_told_and_left_out(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(file)
    store.note(Book(("nobody",), Amount(5)))
    store.note(Book(ROOT, Amount(5)))
    assert read(store, "root").spent == Amount(5)
    assert "nobody" in caplog.text


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
        assert store._books is None, "a connection must not be used after a fork"
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
store.tend = lambda: None
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
    assert not caplog.records


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
    store.tend()
    call.settle(Usage(0, 20))
    for thread in waiting:
        thread.join(20)
    assert charged(one) == (100, 0, 0)


def test_checkpoints_are_made_by_the_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_EVERY", 10)
    monkeypatch.setattr(sqlite, "LONG_WAL", 0)
    store = opened(file, None)
    made: list[str] = []
    checkpoint = store._checkpoint

    def noted() -> None:
        made.append(threading.current_thread().name)
        checkpoint()

    monkeypatch.setattr(store, "_checkpoint", noted)
    for key in range(200):
        store.reserve(ROOT, key, Amount(1))
        store.end(ROOT, key, Amount(1), NOTHING)
    until = time.monotonic() + 20
    while not made:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert set(made) == {"tokenfence"}
    assert read(store, "root").spent == Amount(200)

"""Calls in flight in a file: the first few in their account's row, all others in their own."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import FakeClock
from tests.stores.sqlite_files import PATH, ROOT, opened
from tests.stores.test_contract import parts, read
from tokenfence_integrations import StoreError
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Book,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Reserve,
)


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
    other._keeper.tend()  # a sign of life
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
    assert not store._keeper.held
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
        self.store._keeper.tend = lambda: None  # type: ignore[method-assign]
        assert self.store._keeper.books is not None
        self._left = step
        self._books = self.store._keeper.books
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

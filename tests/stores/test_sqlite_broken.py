"""Files of something else, of another version, damaged, or on a full disk."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from tests.engine.helpers import FakeClock, charged, reserve, small, spend
from tests.stores.sqlite_files import PATH, ROOT, opened
from tests.stores.test_contract import parts, read
from tokenfence_integrations import Budget, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Anchor,
    Book,
    End,
    Limits,
    Open,
    Reply,
    Reserve,
)
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.stores.sqlite.books import Books


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"not a database, but as long as the head of one would be" * 30,
            "damaged, or not a database",
        ),
        (None, "a database of another application"),
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
        store._keeper._checkpoint()
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
    with pytest.raises(
        StoreError,
        match=r"disappeared|emptied or replaced|not there any more|missing or incomplete",
    ):
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
    assert store._keeper.books is not None
    [pages] = store._keeper.books.execute("PRAGMA page_count").fetchone()
    store._keeper.books.execute(f"PRAGMA max_page_count = {pages}")


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

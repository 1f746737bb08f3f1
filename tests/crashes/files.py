"""Budgets in a file, and what may befall a file."""

import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, NamedTuple

from tests.crashes.disks import mount_small_disk
from tests.crashes.faults import Fault, killed
from tests.crashes.points import POINTS, Held, Point
from tests.crashes.worker import Stop, Worker
from tests.stores import sqlite_files
from tokenfence_integrations.stores.base import Read
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.stores.sqlite.books import Books

__all__ = ["FILE_FAULTS"]

LEASE = 60.0

WITHIN_TRANSACTIONS = (
    Point("reserved, not committed"),
    Point("settled, not committed", sent=True, reserved=True),
)


class Opening(NamedTuple):
    """How a worker opens its file."""

    path: Path
    on_small_disk: bool
    begins: bool

    def __call__(self, stop: Stop) -> SQLiteStore:
        if self.on_small_disk:
            mount_small_disk(self.path.parent)
        store = SQLiteStore(self.path, lease=LEASE, timeout=0.1)
        begin, reserve, end, commit = Books.begin, Books.reserve, Books.end, Books.commit

        def stopping_begin(books: Books) -> None:
            stop("settle under way" if store._keeper.noted else "reserve under way")
            begin(books)

        def stopping_reserve(books: Books, *arguments: Any) -> bool:
            return within(books, "reserve", "reserved", lambda: reserve(books, *arguments))

        def stopping_end(books: Books, *arguments: Any) -> bool:
            return within(books, "settle", "settled", lambda: end(books, *arguments))

        def within(books: Books, doing: str, done: str, work: Callable[[], bool]) -> bool:
            """What is a transaction by itself has not begun, and commits before it returns."""
            if books.connection.in_transaction:
                return work()
            stop(f"{doing} under way")
            books.connection.set_progress_handler(lambda: stop(f"{done}, not committed"), 1)
            try:
                return work()
            finally:
                books.connection.set_progress_handler(None, 1)

        def stopping_commit(books: Books) -> None:
            done = "settled" if store._keeper.noted else "reserved"
            if books.connection.in_transaction:
                stop(f"{done}, not committed")
            commit(books)
            stop(f"{done}, not told")

        Books.begin, Books.commit = stopping_begin, stopping_commit  # type: ignore[method-assign]
        Books.reserve, Books.end = stopping_reserve, stopping_end  # type: ignore[method-assign]
        if self.begins:
            begin_transaction = store._keeper.begin
            store._keeper.begin = lambda books, *_: begin_transaction(books)  # type: ignore[method-assign]
        return store


class Files:
    """Files of budgets, one for each account.

    Args:
        folder: Where they are.
        on_small_disk: Whether each is on a small disk, which its worker alone sees.
        begins: Whether all transactions are begun, as those of several statements are; else those
            of a call in one account are of one, and begun by it.
    """

    def __init__(self, folder: Path, *, on_small_disk: bool = False, begins: bool = False) -> None:
        self._folder = folder
        self._on_small_disk = on_small_disk
        self._begins = begins

    def opening(self, account: str) -> Opening:
        self.path(account).parent.mkdir(exist_ok=True)
        return Opening(self.path(account), self._on_small_disk, self._begins)

    def path(self, account: str) -> Path:
        """The file of a budget."""
        return self._folder / account / "budgets.db"

    def seen_by(self, worker: Worker) -> Path:
        """The file of a worker's budget, wherever that sees it."""
        return Path(f"/proc/{worker.pid}/root{self.path(worker.account)}")

    def bring(self, worker: Worker, point: Point) -> Callable[[], None]:
        worker.ask(point.name)
        assert worker.said() == point.name
        return worker.go_on

    def held(self, worker: Worker) -> Held:
        path = self.path(worker.account)
        if self._on_small_disk:  # SQLite does not find its way to it
            for part in ("budgets.db", "budgets.db-wal"):
                shutil.copy(self.seen_by(worker).with_name(part), path.with_name(part))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            columns = "spent_usd, reserved_usd, uncertain_usd"
            return Held(*file.execute(f"SELECT {columns} FROM accounts").fetchone())

    def expire(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            path = self.path(worker.account)
            store = SQLiteStore(path, clock=lambda: time() + LEASE + 1)
            store.execute(Read((worker.account,)))
            store.close()

    def deliver(self) -> None:
        """What is written to a file is there."""

    def close(self) -> None:
        """Nothing runs."""


@contextmanager
def locked(files: Files, workers: Sequence[Worker]) -> Iterator[None]:
    """Another program writes to it, and does not end."""
    [worker] = workers
    with sqlite_files.locked(files.path(worker.account)):
        yield


@contextmanager
def full(files: Files, workers: Sequence[Worker]) -> Iterator[None]:
    """Its disk is full, to the last byte."""
    [worker] = workers
    waste = files.seen_by(worker).with_name("waste")
    if waste.parent.stat().st_dev == files.path(worker.account).parent.stat().st_dev:
        with may_not_grow(files, workers):  # no disk of its own can be made here
            yield
        return
    with waste.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
    yield
    waste.unlink()


@contextmanager
def may_not_grow(_: Files, workers: Sequence[Worker]) -> Iterator[None]:
    """The system allows its process to write to no file (RLIMIT_FSIZE)."""
    [worker] = workers
    limits = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    yield
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def truncated(files: Files, workers: Sequence[Worker]) -> Iterator[None]:
    """Somebody empties it, and later puts back what was in it."""
    [worker] = workers
    path = files.path(worker.account)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint")
    whole = path.read_bytes()
    os.truncate(path, 0)
    yield
    with path.open("r+b") as file:
        file.write(whole)


def on_small_disks(folder: Path) -> Files:
    return Files(folder, on_small_disk=True)


def begun(folder: Path) -> Files:
    return Files(folder, begins=True)


def begun_on_small_disks(folder: Path) -> Files:
    return Files(folder, on_small_disk=True, begins=True)


ALL = (*POINTS, *WITHIN_TRANSACTIONS)

FILE_FAULTS = (
    Fault("file", "worker killed", Files, killed, ALL),
    # Nobody can lock it within a transaction of the worker's, who has locked it then.
    Fault("file", "locked", Files, locked, POINTS, bites=True, on_loops=(False, True)),
    Fault("file", "disk full", on_small_disks, full, ALL, bites=True),
    Fault("file", "must not grow", Files, may_not_grow, ALL, bites=True),
    Fault("file", "truncated", Files, truncated, ALL, bites=True),
    Fault("file, begun", "worker killed", begun, killed, ALL),
    Fault("file, begun", "locked", begun, locked, POINTS, bites=True, on_loops=(False, True)),
    Fault("file, begun", "disk full", begun_on_small_disks, full, ALL, bites=True),
    Fault("file, begun", "must not grow", begun, may_not_grow, ALL, bites=True),
    Fault("file, begun", "truncated", begun, truncated, ALL, bites=True),
)

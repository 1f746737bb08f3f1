"""Whoever keeps the books in a file: transactions, what is noted for them, and a thread."""

import os
import random
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Lock, RLock
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet, ref

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.base import (
    AccountState,
    Book,
    Command,
    Draw,
    Drop,
    End,
    Open,
    Path,
    Reply,
)
from tokenfence_integrations.stores.exits import at_exit
from tokenfence_integrations.stores.lines import Lines
from tokenfence_integrations.stores.noting import Held, Note, say_lost, to_open, with_notes
from tokenfence_integrations.stores.sqlite.books import Books
from tokenfence_integrations.stores.sqlite.errors import Damaged, is_busy, reason
from tokenfence_integrations.stores.sqlite.file import checkpoint
from tokenfence_integrations.stores.tending import Tender

__all__ = ["SEVERAL", "Keeper", "Way"]

LOCK_WAIT = 0.001
"""Seconds that an event loop may wait for another thread of this process to finish a command."""

RETRY = 0.001, 0.004
"""Seconds between two tries while others have locked the file: from, to, by chance."""

CHECKPOINT_EVERY = 8000
"""Commits of this process after which what is in the WAL is moved to the file itself: 8 to 16 MB.

Those who write meanwhile take two or three times as long, so it is not to be one call in a hundred.
"""

SEVERAL = 2
"""Statements of a transaction: it has to be begun. One is a transaction by itself."""

_chance = random.Random()  # the module's own is the user's: seeded, perhaps

T = TypeVar("T")
A = TypeVar("A")
Way: TypeAlias = Callable[["Keeper", Books, Any], Any]
"""What does with the books what a command says."""


class Left(Exception):
    """Whoever waited for a command has been cancelled."""


class Keeper:
    """The way to the books in a file: for one thread at a time, and what is noted goes first.

    A command is tried at once. If others have locked the file, it is tried again, by whoever can
    wait: see `insist` and `in_thread`.

    Args:
        store: Whose books they are; it is kept alive until what is noted is written.
        path: The file.
        lease: As for `SQLiteStore`.
        timeout: As for `SQLiteStore`.
        poll: As for `SQLiteStore`.
        clock: As for `SQLiteStore`.

    Attributes:
        lock: Held by whoever uses the books. Reentrant: a finalizer may end a call in the midst.
        books: The open file; None: it is opened by the next command.
        depth: How many commands of this thread are under way, one in the midst of the other.
        now: When the transaction was begun.
        held: The reservations that have no end yet.
        active: Whether anything was reserved since the thread looked.
        noted: What is still to be written.
        asked: What an end came to, where somebody waits for it.
        made_room: Whether those who wait are to look again.
        lines: Those who wait.
        tender: The thread.
    """

    def __init__(
        self,
        store: object,
        path: str,
        *,
        lease: float,
        timeout: float,
        poll: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = ref(store)
        self.path = path
        self.timeout = timeout
        self.clock = clock
        self._lease = lease
        self._poll = poll
        self._was_open = False
        self.begin_life()

    def begin_life(self) -> None:
        """Have nothing that a process must not share with the one that it was forked from."""
        self.lock = RLock()
        self._checkpointing = Lock()
        self.books: Books | None = None
        self.depth = 0
        self._owner = secrets.randbits(62)
        self._renew_at = 0.0
        self.now = 0.0  # when the transaction was begun
        self.held: dict[int, Held] = {}
        self.active = False  # whether anything was reserved since the thread looked
        self.noted: deque[Note] = deque()
        self._to_tell: list[tuple[Callable[[bool], object], bool]] = []
        self.asked: dict[int, bool] = {}  # what an end came to, where somebody waits for it
        self._failing = False
        self._unsayable: list[str] = []
        self.lines = Lines()
        self._version: int | None = None
        self.made_room = False
        self._written = 0
        self._commits = 0
        self._executor: ThreadPoolExecutor | None = None
        self.tender = Tender(self)

    def go_on_in_child(self) -> None:
        """Begin anew in a forked process, with the accounts that its budgets have."""
        opened = to_open([note.command for note in self.noted])
        self.begin_life()
        self.noted.extend(map(Note, opened))

    def close(self) -> None:
        """As `SQLiteStore.close`."""
        try:
            if self.noted:
                self.insist(_write)
            if self.books is not None and not self.held:
                self.attempt(Keeper._leave)
        finally:
            with self.lock:
                self._disconnect()

    # What is noted

    def drawn(self, books: Books, command: Draw) -> bool:
        """Draw from a reservation, in a transaction; whether there was one."""
        done = books.draw(command, self.now)
        if done:
            self.made_room = True  # perhaps
        else:
            self.held.pop(command.id, None)
        return done

    def write(self, books: Books, what: object = None) -> bool:
        """Write what is noted, or at least a sign of life; False in the midst of a command."""
        if self.depth > 1:
            return False
        self.begin(books, 0)
        try:
            self.commit(books)
        except BaseException:
            self.roll_back(books)
            raise
        return True

    def _leave(self, books: Books, what: object = None) -> bool:
        self._renew_at = 0.0
        books.begin()
        books.leave()
        books.commit()
        return True

    def states(self, books: Books, path: Path) -> tuple[AccountState, ...]:
        """The states of a path, as they are once all that is noted is written."""
        # By index: a finalizer may append to it at any moment.
        noted = [self.noted[index] for index in range(len(self.noted))]
        if not noted:
            return books.states(path)
        return tuple([self._state_with(noted, books, account) for account in path])

    @staticmethod
    def _state_with(noted: list[Note], books: Books, account: str) -> AccountState:
        try:
            written: AccountState | None = books.states((account,))[0]
        except KeyError:
            written = None
        state = with_notes(account, written, noted)
        if state is None:
            raise KeyError(account)
        return state

    def write_soon(self) -> None:
        """Write what is noted now if that can be without waiting, else have the thread do it."""
        try:
            if self.attempt(_write, None, False):
                return
        except StoreError as error:
            self._tell_failure(error)
        _unwritten[self] = self._store()
        _keepers.add(self)
        at_exit(_close_all)  # a process may end before its thread has opened the file
        self.tender.asleep = False
        self.tender.call()

    def _write_noted(self, books: Books, many: int) -> None:
        for index in range(many):
            command, reserved, told = self.noted[index]
            try:
                if type(command) is End:
                    done = books.end(command, reserved)
                    if command.id in self.asked:
                        self.asked[command.id] = done
                    self.made_room = True
                elif type(command) is Draw:
                    done = self.drawn(books, command)
                    if told is not None:
                        self._to_tell.append((told, done))
                elif type(command) is Open:
                    books.open(command)
                    self.made_room = True
                elif type(command) is Book:
                    books.book(command)
                elif type(command) is Drop:
                    books.drop(command)
            except (KeyError, OverflowError) as error:  # it would fail again for ever
                self._unsayable.append(f"{command} cannot be written to {self.path}: {error!r}")
            self._written += 1

    def _tell_failure(self, error: StoreError) -> None:
        if not self._failing:
            self._failing = True
            logger().error("%s; what has ended is kept, and tried again until it works", error)

    # The books

    def begin(self, books: Books, statements: int = SEVERAL) -> None:
        """Begin a transaction, with all that is noted and a sign of life if that is due.

        Args:
            books: The books.
            statements: How many are to follow, at best.
        """
        if self.depth > 1:
            raise StoreError(self.path, "this thread is in the midst of another command")
        now = self.now = self.clock()
        noted = len(self.noted)  # not what a finalizer appends meanwhile
        is_due = now >= self._renew_at
        self._written = 0
        self._to_tell.clear()
        try:
            if noted + is_due + statements > 1 or (noted and not self._is_short(self.noted[0])):
                books.begin()
            if noted:
                self._write_noted(books, noted)
            if is_due:
                books.renew(now + self._lease)
                self._renew_at = now + self._lease / 3
        except BaseException:
            self.roll_back(books)
            raise

    @staticmethod
    def _is_short(note: Note) -> bool:
        """Whether it takes one statement, at best."""
        return type(note[0]) is End and len(note[0][0]) == 1

    def commit(self, books: Books) -> None:
        """End the transaction; what was noted is written by it."""
        try:
            books.commit()
            if not books.is_current():  # it may be gone with the file, and can be written again
                raise Damaged("it was emptied or replaced while it was written to; restore a copy")
            self._forget_written()
        except (sqlite3.Error, Damaged):
            raise
        except BaseException:  # Ctrl-C: what was committed before it came is not written again
            if not books.in_transaction:
                self._forget_written()
            raise
        if self._to_tell:
            tell, self._to_tell = self._to_tell, []
            for told, done in tell:
                told(done)
        self._failing = False
        self._commits = commits = self._commits + 1
        if commits == CHECKPOINT_EVERY:
            self.tender.call()

    def _forget_written(self) -> None:
        while self._written:
            self._written -= 1  # first: no Ctrl-C comes between this and the next line
            self.noted.popleft()

    def roll_back(self, books: Books) -> None:
        """Undo the transaction; what was noted still is."""
        self._renew_at = 0.0  # a sign of life may have been part of it
        books.roll_back()

    def transact(self, books: Books, work: Callable[[Books, A], T], what: A) -> T:
        """Do something in one transaction."""
        self.begin(books)
        try:
            result = work(books, what)
            self.commit(books)
        except BaseException:
            self.roll_back(books)
            raise
        return result

    def attempt(self, way: Way, what: Any = None, connect: bool = True) -> Any:
        """Do something with the books; None if others have locked them.

        Args:
            way: The method that does it.
            what: Its argument.
            connect: Whether to open the file if it is not; that may take some milliseconds.
        """
        lock = self.lock
        if not (lock.acquire(False) or lock.acquire(timeout=LOCK_WAIT)):
            return None
        self.depth += 1
        try:
            books = self.books
            if books is None or books.closed:
                # Closed by a garbage collection: a call that went with its store is ended there.
                if books is None and not connect:
                    return None
                books = self._connect()
            return way(self, books, what)
        except sqlite3.Error as error:
            if is_busy(error):
                return None
            self._disconnect()
            raise StoreError(self.path, reason(error)) from error
        except Damaged as error:
            self._disconnect()
            raise StoreError(self.path, str(error)) from error
        finally:
            self.depth -= 1
            lock.release()
            if self.made_room or self._unsayable:
                self._let_go()

    def _let_go(self) -> None:
        """What must not be done while the lock is held."""
        self.made_room = False
        if self.lines.several:  # a tree tells its own line itself
            self.lines.tell()
        while self._unsayable:
            logger().error(self._unsayable.pop())

    def look(self, way: Way, what: Any) -> Any:
        """Read something; None if that cannot be without waiting, or not at all."""
        try:
            return self.attempt(way, what, False)
        except StoreError:  # who has to know it is told why
            return None

    def insist(self, way: Way, what: Any = None, left: Callable[[], bool] = lambda: False) -> Any:
        """Do something with the books, however often others have locked them meanwhile.

        Args:
            way: The method that does it.
            what: Its argument.
            left: Whether nobody waits for it any more.
        """
        until: float | None = None
        while True:
            result = self.attempt(way, what)
            if result is not None:
                return result
            now = time.monotonic()
            until = now + self.timeout if until is None else until
            if left():
                raise Left
            if now >= until:
                raise StoreError(
                    self.path,
                    f"others have locked it for {self.timeout:g} s; find who has it open (a "
                    f"shell, a backup?), or give SQLiteStore a longer timeout",
                )
            time.sleep(_chance.uniform(*RETRY))

    async def in_thread(self, way: Way, what: Command) -> Reply:
        """As `_insist`, in a thread; whoever is cancelled meanwhile learns it at its end."""
        import asyncio

        from tokenfence_integrations.stores.awaiting import to_its_end

        if self._executor is None:
            # One thread: the file takes one writer at a time, and so the first to come is the
            # first to be served.
            self._executor = ThreadPoolExecutor(1, "tokenfence")
        left = Event()
        loop = asyncio.get_running_loop()
        trying = loop.run_in_executor(self._executor, self.insist, way, what, left.is_set)
        reply: Reply = await to_its_end(trying, left.set)
        return reply

    def _connect(self) -> Books:
        _keepers.add(self)  # before it is opened: another thread may fork just then
        # A file that has lost its tables meanwhile is not made again: that would forget what was
        # spent.
        books = self.books = Books(self.path, self._owner, make=not self._was_open)
        self._was_open = True
        self._renew_at = 0.0
        at_exit(_close_all)
        return books

    def _disconnect(self) -> None:
        if self.books is not None:
            with suppress(sqlite3.Error):
                self.books.close()
            self.books = None

    # What is done by the thread

    def tend(self) -> float | None:
        """Do what is due; how long to wait before the next time."""
        self.tender.asleep = False
        due: list[float] = []
        try:
            if self.noted and not self.attempt(_write):
                due.append(_chance.uniform(*RETRY))
            if not self.noted:
                _unwritten.pop(self, None)
            if self.held or self.active:
                self.active = False  # so it is not woken by every call that is alone
                if self.clock() >= self._renew_at and not self.attempt(_write):
                    due.append(_chance.uniform(*RETRY))
                due.append(self._lease / 3)
            if self._commits >= CHECKPOINT_EVERY:
                self._checkpoint()
            if self.lines.waiting():
                self._look_around()
                due.append(self._poll)
            else:
                self._version = None
        except StoreError as error:
            self._tell_failure(error)
            due.append(1.0)
        if not due:
            self.tender.asleep = True
            if self.held or self.noted:  # since we looked
                self.tender.asleep = False
                due.append(0.0)
        return min(due, default=None)

    def _look_around(self) -> None:
        """Wake those who wait if another process has changed anything, or has died."""
        version = self.attempt(Keeper._look_at_version)
        if version is not None and version != self._version:
            self._version = version
            self.lines.tell()

    def _look_at_version(self, books: Books, what: object) -> int:
        now = self.clock()
        if books.any_expired(now):
            self.transact(books, Books.expire, now)
            self._version = None
        return books.version()

    def _checkpoint(self) -> None:
        self._commits = 0
        with self._checkpointing, suppress(sqlite3.Error):
            checkpoint(self.path)


_write = Keeper.write
"""By a name of its own: it is looked up for every call."""


# Forks and the end of a process

_keepers: "WeakSet[Keeper]" = WeakSet()
_unwritten: dict[Keeper, object] = {}
"""Those who have something to write, and the stores that they keep alive until it is written."""
_forking: list[Keeper] = []


def _before_fork() -> None:
    """Close all files: SQLite forbids that a connection is there in two processes."""
    for keeper in list(_keepers):
        keeper.lock.acquire()
        keeper._checkpointing.acquire()
        keeper._disconnect()
        _forking.append(keeper)


def _after_fork() -> None:
    while _forking:
        keeper = _forking.pop()
        keeper._checkpointing.release()
        keeper.lock.release()


def _after_fork_in_child() -> None:
    _chance.seed()  # else all children would wait alike
    while _forking:
        _forking.pop().go_on_in_child()
    _unwritten.clear()


def _close_all() -> None:
    for keeper in list(_keepers):
        keeper.timeout = min(keeper.timeout, 2.0)
        try:
            keeper.close()
        except StoreError as error:
            say_lost(error, [note.command for note in keeper.noted])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )

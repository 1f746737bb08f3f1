"""Accounts in a file: exact among all processes of one machine, and there again after a restart."""

import os
import random
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock, RLock
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.base import (
    AccountState,
    Adjust,
    Amount,
    Anchor,
    Book,
    Charge,
    Command,
    Draw,
    Drop,
    End,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
    Store,
    Waiting,
)
from tokenfence_integrations.stores.exits import at_exit
from tokenfence_integrations.stores.noting import Held, Note, sayable, to_open, with_notes
from tokenfence_integrations.stores.sqlite_books import (
    MOST,
    Books,
    Damaged,
    is_busy,
    is_unwritten,
    reason,
)
from tokenfence_integrations.stores.tending import Tender

__all__ = ["SQLiteStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)

LOCK_WAIT = 0.001
"""Seconds that an event loop may wait for another thread of this process to finish a command."""

RETRY = 0.001, 0.004
"""Seconds between two tries while others have locked the file: from, to, by chance."""

CHECKPOINT_EVERY = 500
"""Commits of this process after which what is in the WAL is moved to the file itself."""

LONG_WAL = 20_000
"""Pages in the WAL from which a checkpoint makes writers wait, so that it ends some time."""

SEVERAL = 2
"""Statements of a transaction: it has to be begun. One is a transaction by itself."""

_chance = random.Random()  # the module's own is the user's: seeded, perhaps

T = TypeVar("T")
A = TypeVar("A")
Way: TypeAlias = Callable[["SQLiteStore", Books, Any], Any]
"""A method that does with the books what a command says."""

new = tuple.__new__
"""Makes a named tuple in a third of the time; used for those that every call makes."""


class Left(Exception):
    """Whoever waited for a command has been cancelled."""


class SQLiteStore(Store):
    """Accounts in a SQLite file (WAL), for any number of processes on one machine.

    Each command is one transaction over the whole path (``BEGIN IMMEDIATE``, or one statement), in
    integers.
    A commit waits for no disk: it survives the death of the process, but after a power cut the last
    moments may be missing.

    **An event loop is not blocked** for longer than such a commit takes (some 50 µs), plus at most
    a millisecond for another thread of this process: a command is tried at once, and if the file is
    locked it goes to a thread, which waits for at most ``timeout``. Checkpoints, which do wait for
    the disk, are made by a thread. Charging what a process that died has held takes a look at all
    accounts (30 ms for 100,000). The end of a call is never waited for: what cannot be written at
    once is kept, counts for whatever this process reads or reserves from then on, and is written by
    its next command or by a thread. Only ``top_up()``, ``reset()``, ``charges()`` and ``resolve()``
    wait where they are called.

    **Leases.** A process that has calls in flight renews its lease. If it dies they turn uncertain
    when that is over: charged, shown, and never free. Whoever reads or is refused next does that.
    If the process was only stopped, the true end of such a call replaces what was charged for it.

    Args:
        path: The file; it is made if there is none. Not on a network share.
        lease: Seconds after which a process that gives no sign of life counts as dead; 1 or more.
            Default 60.
        timeout: Seconds to wait while others have locked the file. Default 30.
        poll: Seconds between two looks for room that another process made, while calls wait for
            it. Default 0.03.
        clock: Unix time, the same in all processes; for tests.

    Raises:
        ValueError: A number is out of its range.
        StoreError: The file cannot be opened, or is no file of budgets.

    Example:
        >>> budget = Budget("$5", store=SQLiteStore("budgets.db", lease=10))  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease: float = 60.0,
        timeout: float = 30.0,
        poll: float = 0.03,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not lease >= 1 or not timeout >= 0 or not poll > 0:
            raise ValueError(
                f"lease must be 1 second or more, timeout 0 or more and poll above 0, "
                f"got {lease!r}, {timeout!r} and {poll!r}"
            )
        self.path = os.path.abspath(path)
        self._lease = lease
        self._timeout = timeout
        self._poll = poll
        self._clock = clock
        self._was_open = False
        self._begin_life()
        self._insist(SQLiteStore._write)

    def _begin_life(self) -> None:
        """All that a process must not share with the one that it was forked from."""
        self._lock = RLock()
        self._checkpointing = Lock()
        self._books: Books | None = None
        self._depth = 0
        self._owner = secrets.randbits(62)
        self._renew_at = 0.0
        self._now = 0.0  # when the transaction was begun
        self._held: dict[int, Held] = {}
        self._active = False  # whether anything was reserved since the thread looked
        self._noted: deque[Note] = deque()
        self._to_tell: list[tuple[Callable[[bool], object], bool]] = []
        self._asked: dict[int, bool] = {}  # what an end came to, where somebody waits for it
        self._failing = False
        self._unsayable: list[str] = []
        self._lines: WeakSet[Any] = WeakSet()
        self._watching = Lock()
        self._several_lines = False
        self._version: int | None = None
        self._made_room = False
        self._written = 0
        self._commits = 0
        self._executor: ThreadPoolExecutor | None = None
        self._tender = Tender(self)

    def _go_on_in_child(self) -> None:
        """Begin anew in a forked process, with the accounts that its budgets have."""
        opened = to_open([note.command for note in self._noted])
        self._begin_life()
        self._noted.extend(map(Note, opened))

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.path}>"

    def close(self) -> None:
        """Write what is still to be written, and close the file; the next command opens it again.

        What is reserved stays so until its call ends, or the lease is over.
        """
        try:
            if self._noted:
                self._insist(SQLiteStore._write)
            if self._books is not None and not self._held:
                self._try(SQLiteStore._leave)
        finally:
            with self._lock:
                self._disconnect()

    # Commands

    def execute(self, command: Command) -> Reply:
        if type(command) is End:
            held = self._held.pop(command.id, None)
            if held is None:
                return NOT_DONE
            self._asked[command.id] = True
            self._noted.append(Note(command, held.amount))
            try:
                self._insist(SQLiteStore._write)
            finally:
                done = self._asked.pop(command.id)
            return Reply(done)
        reply: Reply = self._insist(_WAYS[type(command)], command)
        return reply

    async def aexecute(self, command: Command) -> Reply:
        if type(command) is End:
            return self.end(*command)
        way = _WAYS[type(command)]
        reply: Reply | None = self._try(way, command, False)
        return await self._in_thread(way, command) if reply is None else reply

    def reserve(
        self,
        path: Path,
        key: int,
        amount: Amount,
        force: bool = False,
        times: int = 1,
        what: str = "",
        idle: bool = False,
    ) -> Reply:
        command = new(Reserve, (path, key, amount, force, times, what, idle))
        reply: Reply | None = self._try(SQLiteStore._reserve, command)
        return self.execute(command) if reply is None else reply

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        # The gate of "a second end changes nothing": pop is atomic.
        held = self._held.pop(key, None)
        if held is None:
            return NOT_DONE
        self._noted.append(new(Note, (new(End, (path, key, spent, uncertain)), held.amount, None)))
        self._write_soon()
        return DONE

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        if type(command) is End:
            self.end(*command)
            return
        if type(command) is Draw:
            self.draw(command, None)
            return
        if type(command) is Open:
            _check(command)
            if self._look(SQLiteStore._is_open, command):
                return
        self._noted.append(Note(command))
        self._write_soon()

    def draw(self, command: Draw, told: Callable[[bool], object] | None) -> None:
        held = self._held.get(command.id)
        if held is not None:
            self._noted.append(Note(sayable(command), held.draw(command.kept), told))
            self._write_soon()
        elif told is not None:
            told(False)

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        states: tuple[AccountState, ...] | None = self._look(SQLiteStore._states, path)
        return states

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        charges: tuple[Charge, ...] = self._insist(SQLiteStore._charges)
        return tuple([c for c in charges if account is None or account in c.path])

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        names: tuple[str, ...] = self._insist(SQLiteStore._accounts, budget)
        return names

    def watch(self, line: Waiting) -> None:
        with self._watching:
            self._lines.add(line)
            self._several_lines = len(self._lines) > 1
        self._tender.call()

    # What commands do with the books

    def _is_open(self, books: Books, command: Open) -> bool:
        return books.is_open(command)

    def _read(self, books: Books, command: Read) -> Reply:
        # Whose lease is over changes no sum, so a file that is locked can be read all the same.
        if self._depth == 1 and books.any_expired(self._clock()):
            try:
                self._transact(books, Books.expire, self._clock())
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise
        return Reply(True, self._states(books, command.path))

    def _reserve(self, books: Books, command: Reserve) -> Reply:
        path, key, amount, *_ = command
        self._begin(books, 1 if len(path) == 1 else SEVERAL)
        try:
            # Before it is written: should that fail half-way, its end is written all the same.
            self._held[key] = Held(path, amount)
            if books.reserve(command, self._now):
                self._commit(books)
                self._active = True
                if self._tender.asleep:
                    self._tender.asleep = False
                    self._tender.call()
                return DONE
        except BaseException as error:
            if books.connection.in_transaction or is_unwritten(error):
                self._held.pop(key, None)
            self._roll_back(books)
            raise
        self._held.pop(key, None)
        self._roll_back(books)
        return self._transact(books, self._settled, path)

    def _settled(self, books: Books, path: Path) -> Reply:
        books.expire(self._clock())
        return Reply(False, books.states(path))

    def _draw(self, books: Books, command: Draw) -> Reply:
        held = self._held.get(command.id)
        if held is None:
            return NOT_DONE
        # Before it is written: a finalizer may end it in the midst of that.
        before = held.draw(command.kept)
        try:
            return Reply(self._transact(books, self._drawn, sayable(command)))
        except BaseException:
            held.draw(before)
            raise

    def _drawn(self, books: Books, command: Draw) -> bool:
        done = books.draw(command, self._now)
        if done:
            self._made_room = True  # perhaps
        else:
            self._held.pop(command.id, None)
        return done

    def _open(self, books: Books, command: Open) -> Reply:
        _check(command)
        self._made_room = True  # perhaps: other limits may be higher ones
        return Reply(self._transact(books, Books.open, command))

    def _book(self, books: Books, command: Book) -> Reply:
        self._transact(books, Books.book, command)
        return DONE

    def _adjust(self, books: Books, command: Adjust) -> Reply:
        self._transact(books, Books.adjust, command)
        self._made_room = True
        return Reply(True, books.states(command.path))

    def _set_limits(self, books: Books, command: SetLimits) -> Reply:
        _check(command)
        self._transact(books, Books.set_limits, command)
        self._made_room = True
        return Reply(True, books.states(command.path))

    def _reset(self, books: Books, command: Reset) -> Reply:
        self._made_room = True
        return Reply(True, self._transact(books, Books.reset, command.accounts))

    def _drop(self, books: Books, command: Drop) -> Reply:
        return Reply(self._transact(books, Books.drop, command))

    def _resolve(self, books: Books, command: Resolve) -> Reply:
        done = self._transact(books, Books.resolve, command)
        self._made_room = done
        return Reply(done)

    def _anchor(self, books: Books, command: Anchor) -> Reply:
        first, at = self._transact(books, Books.anchor, command)
        return Reply(first, at=at)

    def _accounts(self, books: Books, budget: str | None) -> tuple[str, ...]:
        return self._transact(books, Books.accounts, budget)

    def _charges(self, books: Books, what: object) -> tuple[Charge, ...]:
        return self._transact(books, self._charged, None)

    def _charged(self, books: Books, what: object) -> tuple[Charge, ...]:
        books.expire(self._now)
        return books.charges()

    def _write(self, books: Books, what: object = None) -> bool:
        """Write what is noted, or at least a sign of life; False in the midst of a command."""
        if self._depth > 1:
            return False
        self._begin(books, 0)
        try:
            self._commit(books)
        except BaseException:
            self._roll_back(books)
            raise
        return True

    def _leave(self, books: Books, what: object = None) -> bool:
        self._renew_at = 0.0
        books.begin()
        books.leave()
        books.commit()
        return True

    def _states(self, books: Books, path: Path) -> tuple[AccountState, ...]:
        """The states of a path, as they are once all that is noted is written."""
        # By index: a finalizer may append to it at any moment.
        noted = [self._noted[index] for index in range(len(self._noted))]
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

    # Notes

    def _write_soon(self) -> None:
        """Write what is noted now if that can be without waiting, else have the thread do it."""
        try:
            if self._try(SQLiteStore._write, None, False):
                return
        except StoreError as error:
            self._tell_failure(error)
        _unwritten.add(self)
        self._tender.asleep = False
        self._tender.call()

    def _write_noted(self, books: Books, many: int) -> None:
        for index in range(many):
            command, reserved, told = self._noted[index]
            try:
                if type(command) is End:
                    done = books.end(command, reserved)
                    if command.id in self._asked:
                        self._asked[command.id] = done
                    self._made_room = True
                elif type(command) is Draw:
                    done = self._drawn(books, command)
                    if told is not None:
                        self._to_tell.append((told, done))
                elif type(command) is Open:
                    books.open(command)
                    self._made_room = True
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

    # The file

    def _begin(self, books: Books, statements: int = SEVERAL) -> None:
        """Begin a transaction, with all that is noted and a sign of life if that is due.

        Args:
            books: The books.
            statements: How many are to follow, at best.
        """
        if self._depth > 1:
            raise StoreError(self.path, "this thread is in the midst of another command")
        now = self._now = self._clock()
        noted = len(self._noted)  # not what a finalizer appends meanwhile
        is_due = now >= self._renew_at
        self._written = 0
        self._to_tell.clear()
        try:
            if noted + is_due + statements > 1 or (noted and not self._is_short(self._noted[0])):
                books.begin()
            if noted:
                self._write_noted(books, noted)
            if is_due:
                books.renew(now + self._lease)
                self._renew_at = now + self._lease / 3
        except BaseException:
            self._roll_back(books)
            raise

    @staticmethod
    def _is_short(note: Note) -> bool:
        """Whether it takes one statement, at best."""
        return type(note[0]) is End and len(note[0][0]) == 1

    def _commit(self, books: Books) -> None:
        books.commit()
        if not books.is_current():  # it may be gone with the file, and can be written again
            raise Damaged("it was emptied or replaced while it was written to; restore a copy")
        while self._written:
            self._noted.popleft()
            self._written -= 1
        if self._to_tell:
            tell, self._to_tell = self._to_tell, []
            for told, done in tell:
                told(done)
        self._failing = False
        self._commits += 1
        if self._commits == CHECKPOINT_EVERY:
            self._tender.call()

    def _roll_back(self, books: Books) -> None:
        self._renew_at = 0.0  # a sign of life may have been part of it
        books.roll_back()

    def _transact(self, books: Books, work: Callable[[Books, A], T], what: A) -> T:
        """Do something in one transaction."""
        self._begin(books)
        try:
            result = work(books, what)
            self._commit(books)
        except BaseException:
            self._roll_back(books)
            raise
        return result

    def _try(self, way: Way, what: Any = None, connect: bool = True) -> Any:
        """Do something with the books; None if others have locked them.

        Args:
            way: The method that does it.
            what: Its argument.
            connect: Whether to open the file if it is not; that may take some milliseconds.
        """
        lock = self._lock
        if not (lock.acquire(False) or lock.acquire(timeout=LOCK_WAIT)):
            return None
        self._depth += 1
        try:
            books = self._books
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
            self._depth -= 1
            self._lock.release()
            if self._made_room or self._unsayable:
                self._let_go()

    def _let_go(self) -> None:
        """What must not be done while the lock is held."""
        self._made_room = False
        if self._several_lines:  # a tree tells its own line itself
            self._tell_lines()
        while self._unsayable:
            logger().error(self._unsayable.pop())

    def _look(self, way: Way, what: Any) -> Any:
        """Read something; None if that cannot be without waiting, or not at all."""
        try:
            return self._try(way, what, False)
        except StoreError:  # who has to know it is told why
            return None

    def _insist(self, way: Way, what: Any = None, left: Callable[[], bool] = lambda: False) -> Any:
        """Do something with the books, however often others have locked them meanwhile.

        Args:
            way: The method that does it.
            what: Its argument.
            left: Whether nobody waits for it any more.
        """
        until: float | None = None
        while True:
            result = self._try(way, what)
            if result is not None:
                return result
            now = time.monotonic()
            until = now + self._timeout if until is None else until
            if left():
                raise Left
            if now >= until:
                raise StoreError(
                    self.path,
                    f"others have locked it for {self._timeout:g} s; find who has it open (a "
                    f"shell, a backup?), or give SQLiteStore a longer timeout",
                )
            time.sleep(_chance.uniform(*RETRY))

    async def _in_thread(self, way: Way, what: Command) -> Reply:
        """As `_insist`, in a thread; whoever is cancelled meanwhile learns it at its end."""
        import asyncio

        cancelled: BaseException | None = None
        if self._executor is None:
            # One thread: the file takes one writer at a time, and so the first to come is the
            # first to be served.
            self._executor = ThreadPoolExecutor(1, "tokenfence")
        future = asyncio.get_running_loop().run_in_executor(
            self._executor, self._insist, way, what, lambda: cancelled is not None
        )
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        reply: Reply = future.result()
        return reply

    def _connect(self) -> Books:
        _stores.add(self)  # before it is opened: another thread may fork just then
        # A file that has lost its tables meanwhile is not made again: that would forget what was
        # spent.
        books = self._books = Books(self.path, self._owner, make=not self._was_open)
        self._was_open = True
        self._renew_at = 0.0
        at_exit(_close_all)
        return books

    def _disconnect(self) -> None:
        if self._books is not None:
            with suppress(sqlite3.Error):
                self._books.close()
            self._books = None

    # What is done by the thread

    def tend(self) -> float | None:
        """Do what is due; how long to wait before the next time."""
        self._tender.asleep = False
        due: list[float] = []
        try:
            if self._noted and not self._try(SQLiteStore._write):
                due.append(_chance.uniform(*RETRY))
            if not self._noted:
                _unwritten.discard(self)
            if self._held or self._active:
                self._active = False  # so it is not woken by every call that is alone
                if self._clock() >= self._renew_at and not self._try(SQLiteStore._write):
                    due.append(_chance.uniform(*RETRY))
                due.append(self._lease / 3)
            if self._commits >= CHECKPOINT_EVERY:
                self._checkpoint()
            if self._somebody_waits():
                self._look_around()
                due.append(self._poll)
        except StoreError as error:
            self._tell_failure(error)
            due.append(1.0)
        if not due:
            self._tender.asleep = True
            if self._held or self._noted:  # since we looked
                self._tender.asleep = False
                due.append(0.0)
        return min(due, default=None)

    def _somebody_waits(self) -> bool:
        with self._watching:
            # Taken out before it is looked at: a call that comes to wait puts it in again.
            for line in list(self._lines):
                if not line:
                    self._lines.discard(line)
            self._several_lines = len(self._lines) > 1
        if not self._lines:
            self._version = None
        return bool(self._lines)

    def _look_around(self) -> None:
        """Wake those who wait if another process has changed anything, or has died."""
        version = self._try(SQLiteStore._look_at_version)
        if version is not None and version != self._version:
            self._version = version
            self._tell_lines()

    def _look_at_version(self, books: Books, what: object) -> int:
        now = self._clock()
        if books.any_expired(now):
            self._transact(books, Books.expire, now)
            self._version = None
        return books.version()

    def _tell_lines(self) -> None:
        with self._watching:
            lines = list(self._lines)
        for line in lines:
            line.freed()

    def _checkpoint(self) -> None:
        """Move what is in the WAL to the file: this waits for the disk, and holds up nobody."""
        self._commits = 0
        with self._checkpointing, suppress(sqlite3.Error):
            connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
            try:
                checkpoint = "PRAGMA wal_checkpoint"
                _, pages, moved = connection.execute(checkpoint).fetchone()
                if pages > LONG_WAL and moved < pages:
                    _, pages, moved = connection.execute(f"{checkpoint}(RESTART)").fetchone()
                if pages == moved:
                    # The first to write now begins the WAL anew, and waits for the disk: we do.
                    # The number that is there, since another process may have just migrated it.
                    connection.execute("BEGIN IMMEDIATE")
                    [version] = connection.execute("PRAGMA user_version").fetchone()
                    connection.execute(f"PRAGMA user_version = {version}")
                    connection.execute("COMMIT")
            finally:
                connection.close()


_WAYS: dict[type[Any], Way] = {
    Open: SQLiteStore._open,
    Read: SQLiteStore._read,
    Reserve: SQLiteStore._reserve,
    Draw: SQLiteStore._draw,
    Book: SQLiteStore._book,
    Adjust: SQLiteStore._adjust,
    SetLimits: SQLiteStore._set_limits,
    Reset: SQLiteStore._reset,
    Drop: SQLiteStore._drop,
    Resolve: SQLiteStore._resolve,
    Anchor: SQLiteStore._anchor,
}


def _check(command: Open | SetLimits) -> None:
    if any(limit is not None and limit >= MOST for limit in command.limits):
        raise ValueError(
            f"a file of budgets holds numbers below {MOST:,} (dollars in billionths: "
            f"${MOST // 10**9:,}), got {command.limits}"
        )


# Forks and the end of a process

_stores: "WeakSet[SQLiteStore]" = WeakSet()
_unwritten: set[SQLiteStore] = set()
"""Kept alive until what they have noted is written."""
_forking: list[SQLiteStore] = []


def _before_fork() -> None:
    """Close all files: SQLite forbids that a connection is there in two processes."""
    for store in list(_stores):
        store._lock.acquire()
        store._checkpointing.acquire()
        store._disconnect()
        _forking.append(store)


def _after_fork() -> None:
    while _forking:
        store = _forking.pop()
        store._checkpointing.release()
        store._lock.release()


def _after_fork_in_child() -> None:
    _unwritten.clear()
    _chance.seed()  # else all children would wait alike
    while _forking:
        _forking.pop()._go_on_in_child()


def _close_all() -> None:
    for store in list(_stores):
        store._timeout = min(store._timeout, 2.0)
        with suppress(StoreError, KeyError):
            store.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )

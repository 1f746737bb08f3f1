"""Accounts in a file: exact among all processes of one machine, and there again after a restart."""

import atexit
import os
import random
import secrets
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock, RLock
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    AccountState,
    Adjust,
    Amount,
    Book,
    Command,
    End,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Store,
    Waiting,
)
from tokenfence_integrations.stores.sqlite_books import MOST, Books, Damaged, is_busy, reason
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

T = TypeVar("T")
Way: TypeAlias = Callable[[Books], Any]
"""What a command does with the books."""


class Note(NamedTuple):
    """A command whose reply nobody waits for, and what an `End` had reserved."""

    command: Open | End | Book
    reserved: Amount = NOTHING


class NoRoom(Exception):
    """A reservation does not fit."""


class Left(Exception):
    """Whoever waited for a command has been cancelled."""


class SQLiteStore(Store):
    """Accounts in a SQLite file (WAL), for any number of processes on one machine.

    Each command is one transaction over the whole path, begun by ``BEGIN IMMEDIATE``, in integers.
    A commit waits for no disk: it survives the death of the process, but after a power cut the last
    moments may be missing.

    **An event loop is not blocked** for longer than such a commit takes (some 50 µs), plus at most
    a millisecond for another thread of this process: a command is tried at once, and if the file is
    locked it goes to a thread, which waits for at most ``timeout``. Checkpoints, which do wait for
    the disk, are made by a thread. The end of a call is never waited for: what cannot be written at
    once is kept, counts for whatever this process reads or reserves from then on, and is written by
    its next command or by a thread. Only ``top_up()`` and ``reset()`` wait where they are called.

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
        self._insist(self._write)
        _stores.add(self)

    def _begin_life(self) -> None:
        """All that a process must not share with the one that it was forked from."""
        self._lock = RLock()
        self._checkpointing = Lock()
        self._books: Books | None = None
        self._depth = 0
        self._owner = secrets.randbits(62)
        self._renew_at = 0.0
        self._held: dict[int, Amount] = {}
        self._noted: deque[Note] = deque()
        self._failing = False
        self._unsayable: list[str] = []
        self._lines: WeakSet[Any] = WeakSet()
        self._watching = Lock()
        self._version: int | None = None
        self._made_room = False
        self._commits = 0
        self._executor: ThreadPoolExecutor | None = None
        self._tender = Tender(self)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.path}>"

    def close(self) -> None:
        """Write what is still to be written, and close the file; the next command opens it again.

        What is reserved stays so until its call ends, or the lease is over.
        """
        try:
            if self._noted:
                self._insist(self._write)
            if self._books is not None and not self._held:
                self._try(self._leave)
        finally:
            with self._lock:
                self._disconnect()

    # Commands

    def execute(self, command: Command) -> Reply:
        if type(command) is End:
            if not self._note_end(command):
                return NOT_DONE
            found: list[bool] = []
            self._insist(lambda books: self._write(books, found))
            return DONE if not found or found[-1] else NOT_DONE
        reply: Reply = self._insist(self._way(command))
        return reply

    async def aexecute(self, command: Command) -> Reply:
        if type(command) is End:
            return self.end(*command)
        way = self._way(command)
        reply: Reply | None = self._try(way, connect=False)
        return await self._in_thread(way) if reply is None else reply

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        if not self._note_end(End(path, key, spent, uncertain)):
            return NOT_DONE
        self._write_soon()
        return DONE

    def note(self, command: Open | End | Book) -> None:
        if type(command) is End:
            self.end(*command)
            return
        if type(command) is Open:
            _check(command)
            if self._look(lambda books: books.is_open(command)):
                return
        self._noted.append(Note(command))
        self._write_soon()

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        states: tuple[AccountState, ...] | None = self._look(lambda b: self._states(b, path))
        return states

    def watch(self, line: Waiting) -> None:
        with self._watching:
            self._lines.add(line)
        self._tender.call()

    def _way(self, command: Command) -> Way:
        kind = type(command)
        if kind is Read:
            return lambda books: self._read(books, command.path)  # type: ignore[union-attr]
        if kind is Reserve:
            return lambda books: self._reserve(books, command)  # type: ignore[arg-type]
        if kind is Open:
            _check(command)  # type: ignore[arg-type]
        return lambda books: self._transact(books, lambda: self._change(books, command))

    def _read(self, books: Books, path: Path) -> Reply:
        # Whose lease is over changes no sum, so a file that is locked can be read all the same.
        if self._depth == 1 and books.any_expired(self._clock()):
            try:
                self._transact(books, lambda: books.expire(self._clock()))
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise
        return Reply(True, self._states(books, path))

    def _reserve(self, books: Books, command: Reserve) -> Reply:
        def reserve() -> Reply:
            if not books.reserve(command):
                raise NoRoom
            # Before it is committed: should that fail half-way, its end is written all the same.
            self._held[command.id] = command.amount
            return DONE

        def look() -> Reply:
            books.expire(self._clock())
            return Reply(False, books.states(command.path))

        try:
            reply = self._transact(books, reserve)
        except NoRoom:
            return self._transact(books, look)
        if self._tender.asleep:
            self._tender.asleep = False
            self._tender.call()
        return reply

    def _change(self, books: Books, command: Command) -> Reply:
        kind = type(command)
        if kind is Open:
            return Reply(books.open(command))  # type: ignore[arg-type]
        if kind is Book:
            books.book(command)  # type: ignore[arg-type]
            return DONE
        self._made_room = True
        if kind is Adjust:
            books.adjust(command)  # type: ignore[arg-type]
            return Reply(True, books.states(command.path))  # type: ignore[union-attr]
        assert type(command) is Reset
        before = books.states(command.accounts)
        books.reset(command.accounts)
        return Reply(True, before)

    def _states(self, books: Books, path: Path) -> tuple[AccountState, ...]:
        """The states of a path, as they are once all that is noted is written."""
        # By index: a finalizer may append to it at any moment.
        noted = [self._noted[index] for index in range(len(self._noted))]
        if not noted:
            return books.states(path)
        return tuple([self._state_with(noted, books, account) for account in path])

    @staticmethod
    def _state_with(noted: list[Note], books: Books, account: str) -> AccountState:
        given = [
            note.command.limits
            for note in noted
            if type(note.command) is Open and note.command.account == account
        ]
        try:
            [state] = books.states((account,))
        except KeyError:
            if not given:
                raise
            state = AccountState(*given[0], *NOTHING, *NOTHING, *NOTHING)
        limits = next((each for each in reversed(given) if each != UNLIMITED), state.limits)
        spent, reserved, uncertain = state.spent, state.reserved, state.uncertain
        for command, amount in noted:
            if type(command) is Open or account not in command.path:  # type: ignore[union-attr]
                continue
            spent = spent.plus(command.spent)  # type: ignore[union-attr]
            if type(command) is End:
                reserved = reserved.plus(Amount(*[-part for part in amount]))
                uncertain = uncertain.plus(command.uncertain)
        return AccountState(*limits, *spent, *reserved, *uncertain)

    # Notes

    def _note_end(self, command: End) -> bool:
        # The gate of "a second end changes nothing": pop is atomic.
        reserved = self._held.pop(command.id, None)
        if reserved is None:
            return False
        self._noted.append(Note(command, reserved))
        return True

    def _write_soon(self) -> None:
        """Write what is noted now if that can be without waiting, else have the thread do it."""
        try:
            if self._try(self._write, connect=False):
                return
        except StoreError as error:
            self._tell_failure(error)
        self._tender.asleep = False
        self._tender.call()

    def _write(self, books: Books, found: list[bool] | None = None) -> bool:
        """Write what is noted, or at least a sign of life; False in the midst of a command."""
        if self._depth > 1:
            return False
        self._transact(books, lambda: None, found)
        return True

    def _write_noted(self, books: Books, found: list[bool] | None) -> int:
        count = len(self._noted)
        for index in range(count):
            command, reserved = self._noted[index]
            try:
                if type(command) is End:
                    ended = books.end(command, reserved)
                    self._made_room = True
                    if found is not None:
                        found.append(ended)
                else:
                    self._change(books, command)
            except (KeyError, OverflowError) as error:  # it would fail again for ever
                self._unsayable.append(f"{command} cannot be written to {self.path}: {error!r}")
        return count

    def _tell_failure(self, error: StoreError) -> None:
        if not self._failing:
            self._failing = True
            logger().error("%s; what has ended is kept, and tried again until it works", error)

    # The file

    def _transact(self, books: Books, work: Callable[[], T], found: list[bool] | None = None) -> T:
        """Do something in one transaction, together with all that is noted."""
        if self._depth > 1:
            raise StoreError(self.path, "this thread is in the midst of another command")
        now = self._clock()
        books.begin()
        try:
            written = self._write_noted(books, found) if self._noted else 0
            if now >= self._renew_at:
                books.renew(now + self._lease)
            result = work()
            books.commit()
        except BaseException:
            books.roll_back()
            raise
        if now >= self._renew_at:
            self._renew_at = now + self._lease / 3
        for _ in range(written):
            self._noted.popleft()
        self._failing = False
        self._commits += 1
        if self._commits == CHECKPOINT_EVERY:
            self._tender.call()
        return result

    def _try(self, way: Way, *, connect: bool = True) -> Any:
        """Do something with the books; None if others have locked them.

        Args:
            way: What to do.
            connect: Whether to open the file if it is not; that may take some milliseconds.
        """
        if not self._lock.acquire(timeout=LOCK_WAIT):
            return None
        try:
            self._depth += 1
            if self._books is None:
                if not connect:
                    return None
                self._connect()
            return way(self._books)  # type: ignore[arg-type]
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
        if len(self._lines) > 1:  # a tree tells its own line itself
            self._tell_lines()
        while self._unsayable:
            logger().error(self._unsayable.pop())

    def _look(self, way: Way) -> Any:
        """Read something; None if that cannot be without waiting, or not at all."""
        try:
            return self._try(way, connect=False)
        except StoreError:  # who has to know it is told why
            return None

    def _insist(self, way: Way, left: Callable[[], bool] = lambda: False) -> Any:
        """Do something with the books, however often others have locked them meanwhile.

        Args:
            way: What to do.
            left: Whether nobody waits for it any more.
        """
        until: float | None = None
        while True:
            result = self._try(way)
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
            time.sleep(random.uniform(*RETRY))

    async def _in_thread(self, way: Way) -> Reply:
        """As `_insist`, in a thread; whoever is cancelled meanwhile learns it at its end."""
        import asyncio

        cancelled: BaseException | None = None
        if self._executor is None:
            # One thread: the file takes one writer at a time, and so the first to come is the
            # first to be served.
            self._executor = ThreadPoolExecutor(1, "tokenfence")
        future = asyncio.get_running_loop().run_in_executor(
            self._executor, self._insist, way, lambda: cancelled is not None
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

    def _connect(self) -> None:
        # A file that has lost its tables meanwhile is not made again: that would forget what was
        # spent.
        self._books = Books(self.path, self._owner, make=not self._was_open)
        self._was_open = True
        self._renew_at = 0.0
        _close_at_exit()

    def _disconnect(self) -> None:
        if self._books is not None:
            with suppress(sqlite3.Error):
                self._books.close()
            self._books = None

    def _leave(self, books: Books) -> bool:
        self._renew_at = 0.0
        books.begin()
        books.leave()
        books.commit()
        return True

    # What is done by the thread

    def tend(self) -> float | None:
        """Do what is due; how long to wait before the next time."""
        self._tender.asleep = False
        due: list[float] = []
        try:
            if self._noted and not self._try(self._write):
                due.append(random.uniform(*RETRY))
            if self._held:
                if self._clock() >= self._renew_at and not self._try(self._write):
                    due.append(random.uniform(*RETRY))
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
        if not self._lines:
            self._version = None
        return bool(self._lines)

    def _look_around(self) -> None:
        """Wake those who wait if another process has changed anything, or has died."""

        def look(books: Books) -> int:
            now = self._clock()
            if books.any_expired(now):
                self._transact(books, lambda: books.expire(now))
                self._version = None
            return books.version()

        version = self._try(look)
        if version is not None and version != self._version:
            self._version = version
            self._tell_lines()

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
                    connection.execute(f"{checkpoint}(RESTART)")
            finally:
                connection.close()
        # The first to write after that begins the WAL anew, and waits for the disk: better we do.
        self._renew_at = 0.0
        self._try(self._write)


def _check(command: Open) -> None:
    if any(limit is not None and limit > MOST for limit in command.limits):
        raise ValueError(
            f"a file of budgets holds numbers up to {MOST:,} (dollars in billionths: "
            f"${MOST // 10**9:,}), got {command.limits}"
        )


# Forks and the end of a process

_stores: "WeakSet[SQLiteStore]" = WeakSet()
_forking: list[SQLiteStore] = []
_closing_in: set[int] = set()


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
    while _forking:
        _forking.pop()._begin_life()


def _close_at_exit() -> None:
    """Have what is noted written when this process ends."""
    pid = os.getpid()
    if pid in _closing_in:
        return
    _closing_in.clear()
    _closing_in.add(pid)
    atexit.register(_close_all)
    # The children that multiprocessing makes do not run atexit's functions.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _close_all, exitpriority=1)


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

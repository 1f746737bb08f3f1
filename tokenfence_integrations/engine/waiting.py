"""The line of calls that wait for room in a budget tree: fair, and woken without polling.

One waiter at a time has the *turn*: it looks at the budget again, and takes what it needs or keeps
its place; then the next in line has the turn, so small calls may pass a large one that still does
not fit. A waiter that has been passed `PATIENCE` times closes the line behind it: from then on what
is freed gathers for it. Calls that arrive while others wait queue behind them.

All that holds only between calls that *compete*: a waiter is passed by, and ahead of, those calls
alone that would take from the accounts in which it is `short`. A user who has used up a budget of
their own, and waits for what is in flight there, holds up nobody else below the same parent. Nor is
a waiter woken for room that was made where it is not short, or for the leaving of somebody whom it
did not compete with: below one parent thousands may wait, each for a budget of its own.

`freed` and `leave` may run inside a finalizer while this very thread holds the lock, so neither
ever waits for it: they leave a note that its holder acts on as it lets go.
"""

import itertools
import sys
import time
from collections.abc import Callable, Collection
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from threading import Lock, local
from typing import Any, TypeAlias
from weakref import ref

from tokenfence_integrations.stores.base import Path

__all__ = [
    "STALLED_AFTER",
    "AsyncWaiter",
    "Owner",
    "SyncWaiter",
    "Waiter",
    "WaitingLine",
    "current_owner",
    "new_owner",
    "parents",
    "waited_for",
]

PATIENCE = 16
"""How often a waiter may be passed before the line closes behind it."""

STALLED_AFTER = 0.05
"""Seconds after which a waiter that does not use its turn (its event loop is blocked) loses it."""


Owner: TypeAlias = tuple[int, "ref[Any] | None"]
"""Who makes a call: a thread, and the asyncio task that runs in it (None: none)."""


class _Thread(local):
    # Not get_ident() and not id(task): what a stream's maker leaves behind may outlive it, and the
    # next thread or task would get the same number.
    def __init__(self) -> None:
        self.owner: Owner = next(_numbers), None


_numbers = itertools.count(1)
_thread = _Thread()
_asyncio: Any = None


def current_owner() -> Owner:
    """The owner of a call made here and now."""
    asyncio = _asyncio or _imported_asyncio()
    if asyncio is None:
        return _thread.owner
    loop = asyncio._get_running_loop()
    if loop is None:
        return _thread.owner
    task = asyncio.current_task(loop)
    thread = _thread.owner
    return thread if task is None else (thread[0], ref(task))


def new_owner() -> Owner:
    """An owner that is neither a thread nor a task: several of them together, in turn."""
    return next(_numbers), None


def _imported_asyncio() -> Any:
    """It takes 30 ms to import: a program that runs no loop never pays for that."""
    global _asyncio
    _asyncio = sys.modules.get("asyncio")
    return _asyncio


parents: "ContextVar[tuple[Owner, ...]]" = ContextVar("tokenfence_parents", default=())
"""Owners that wait for whoever calls in this context: none of their own calls can end meanwhile."""


class waited_for:  # no generator, which would take twice the steps
    """Have calls that are made for the block in other tasks or threads know that it waits.

    Args:
        owner: Who waits for them; default: whoever enters the block.

    Example:
        >>> with waited_for():  # doctest: +SKIP
        ...     answers = await gather(*asked)
    """

    __slots__ = ("_owner", "_token")

    def __init__(self, owner: Owner | None = None) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._token = parents.set((*parents.get(), self._owner or current_owner()))

    def __exit__(self, *_: object) -> None:
        parents.reset(self._token)


class Waiter:
    """One call in the line; the subclasses know how it sleeps and is woken."""

    __slots__ = (
        "awaits_window",
        "blocked",
        "blocks_thread",
        "due",
        "looking",
        "owner",
        "parents",
        "passed",
        "path",
        "short",
        "turn_since",
    )

    def __init__(self, owner: Owner, path: Path, *, blocks_thread: bool) -> None:
        self.owner = owner
        self.path = path
        self.short = path  # the accounts without room for it; until it has looked, any may be
        self.parents = parents.get()
        self.blocks_thread = blocks_thread
        self.blocked = False  # has looked, and found that it has to wait
        self.looking = True  # `short` is of an earlier look
        self.due = False  # what its last look came to may be otherwise by now
        self.awaits_window = False  # it needs nobody else's end: time alone gives it room
        self.passed = 0
        self.turn_since: float | None = None

    def wake(self) -> None:
        """Have it look again; callable from any thread and from finalizers."""
        raise NotImplementedError

    def competes(self, path: Path) -> bool:
        """Whether a call on this path would take what this waiter waits for.

        Nobody can take what is in a window that is not open yet.
        """
        if self.awaits_window:
            return False
        short = self.short
        # Most often there is one account alone, or it is the root that has no room.
        return short[-1] == path[-1] or any(account in path for account in short)

    def may_use(self, freed: Collection[str] | None) -> bool:
        """Whether it may have room by now, if some was made in these accounts; None: in any."""
        if self.due or self.looking or freed is None:
            return True
        return not set(self.short).isdisjoint(freed)

    def looks(self) -> None:
        """It is about to look."""
        self.looking = True
        self.due = False

    def is_stuck(self, owner: Owner) -> bool:
        """Whether calls of ``owner`` cannot go on while this waiter sleeps."""
        if owner in self.parents:
            return True
        return owner[0] == self.owner[0] if self.blocks_thread else owner == self.owner


class SyncWaiter(Waiter):
    """A thread that waits."""

    __slots__ = ("_wakes",)

    def __init__(self, owner: Owner, path: Path) -> None:
        super().__init__(owner, path, blocks_thread=True)
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        # SimpleQueue.put is documented to be reentrant: safe in destructors and weakref callbacks.
        self._wakes.put(None)

    def sleep(self, seconds: float) -> None:
        """Block until woken, at most this long."""
        try:
            self._wakes.get(timeout=seconds)
            while True:
                self._wakes.get_nowait()
        except Empty:
            return


class AsyncWaiter(Waiter):
    """An asyncio task that waits."""

    __slots__ = ("_future", "_loop", "_woken")

    def __init__(self, owner: Owner, path: Path) -> None:
        import asyncio

        super().__init__(owner, path, blocks_thread=False)
        self._loop = asyncio.get_running_loop()
        self._future: Any = None
        self._woken = False

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Suspend the task until woken, at most this long."""
        import asyncio

        if not self._woken:
            self._future = self._loop.create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._future
            except TimeoutError:
                pass
            finally:
                self._future = None
        self._woken = False


class WaitingLine:
    """The waiters of one budget tree, in order of arrival.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self.waiting: list[Waiter] = []  # read it at will, from any thread; change it only here
        self._turn: Waiter | None = None
        self._news: SimpleQueue[Collection[str] | None] = SimpleQueue()  # where room was made
        self._round: Collection[str] | None = ()  # that for which turns are given
        self._gone: SimpleQueue[Waiter] = SimpleQueue()

    def __len__(self) -> int:
        return len(self.waiting)

    def __bool__(self) -> bool:
        return bool(self.waiting)

    @property
    def paths(self) -> list[Path]:
        """The accounts that they wait for."""
        return [waiter.path for waiter in self.waiting.copy()]

    def join(self, waiter: Waiter) -> None:
        """Take a place at the end; the waiter should look at the budget once before it sleeps."""
        with self._lock:
            self.waiting.append(waiter)
        self._act()

    def freed(self, accounts: Collection[str] | None = None) -> None:
        """Room may have been made: give turns from the head of the line on.

        Args:
            accounts: Where; None: anywhere.
        """
        if self.waiting:
            self._news.put(accounts)
            self._act()

    def opened(self, budget: str) -> None:
        """A budget has a new window: those who waited for it come first there, in their order."""
        awaited = [w for w in self.waiting.copy() if w.awaits_window and budget in w.path]
        for waiter in awaited:
            waiter.awaits_window = waiter.blocked = False
        if awaited:
            self.freed()

    def is_short(self, waiter: Waiter, accounts: Path) -> None:
        """The waiter has looked, and has no room in these accounts."""
        if not set(waiter.short).issubset(accounts):
            with self._lock:
                self._let_look(waiter)
            self._news.put(())
        waiter.short = accounts

    def pass_on(self, waiter: Waiter) -> None:
        """The waiter has looked and found no room: it keeps its place, the next has the turn."""
        with self._lock:
            waiter.turn_since = None
            waiter.looking = False
            if waiter.due:  # something has changed while it looked
                self._news.put(())
            if self._turn is waiter:
                self._turn = None
                if not self._freed():  # else the turns begin again at the head
                    self._give_turn_after(waiter)
        self._act()

    def leave(self, waiter: Waiter, *, admitted: bool = False) -> None:
        """The waiter was admitted, gave up, or was cancelled: the next has the turn."""
        if admitted:
            for ahead in self.waiting.copy():
                if ahead is waiter:
                    break
                ahead.passed += ahead.competes(waiter.path)
        self._gone.put(waiter)
        self._news.put(())
        self._act()

    def arrived(self, path: Path) -> None:
        """A call that never queued was admitted: it has passed everybody whom it competes with."""
        for waiter in self.waiting.copy():
            waiter.passed += waiter.competes(path)

    def rivals(self, path: Path, waiter: Waiter | None) -> int:
        """How many others wait for what a call on this path would take; ``waiter`` is its own."""
        waiting = self.waiting.copy()
        return sum(other is not waiter and other.competes(path) for other in waiting)

    def must_queue(self, path: Path) -> bool:
        """Whether a new call has to take a place in line before it looks at the budget."""
        first = self._first(path, None)
        return first is not None and (
            self._freed() or self._turn is not None or self._closed(first)
        )

    def may_look(self, waiter: Waiter) -> bool:
        """Whether a waiter may take room now, or has to leave it to those ahead of it.

        It is theirs if the line is closed, and if it was freed after they had looked.
        """
        first = self._first(waiter.path, waiter)
        if first is None or not (self._freed() or self._closed(first)):
            return True
        waiter.due = True  # they may leave it
        return False

    def is_behind_closed(self, waiter: Waiter) -> bool:
        """Whether a waiter will not have a turn before one that is ahead of it has left."""
        first = self._first(waiter.path, waiter)
        return first is not None and self._closed(first)

    def has_turn_ahead_of(self, waiter: Waiter) -> bool:
        """Whether a rival ahead of the waiter has the turn, and has not lost it."""
        turn = self._turn
        for ahead in self.waiting.copy():
            if ahead is waiter:
                return False
            if ahead is turn:
                return self._turn_in_use() and ahead.competes(waiter.path)
        return False

    def _first(self, path: Path, waiter: Waiter | None) -> Waiter | None:
        """The first in line, ahead of the waiter, that a call on this path competes with."""
        for ahead in self.waiting.copy():
            if ahead is waiter:
                return None
            if ahead.competes(path):
                return ahead
        return None

    @staticmethod
    def _closed(first: Waiter) -> bool:
        return first.passed >= PATIENCE

    def _act(self) -> None:
        while self._pending() and self._lock.acquire(blocking=False):
            try:
                while not self._gone.empty():
                    self._remove(self._gone.get())
                if self._freed() and not self._turn_in_use():
                    self._turn = None
                    self._round = self._freed_since()
                    self._give_turn_from(0)
            finally:
                self._lock.release()

    def _pending(self) -> bool:
        return not self._gone.empty() or (self._freed() and not self._turn_in_use())

    def _freed(self) -> bool:
        """Whether room was made since turns were last given from the head of the line on."""
        return not self._news.empty()

    def _freed_since(self) -> Collection[str] | None:
        """Where, or where it was before and not all have had their turn for it; None: anywhere."""
        rooms = [self._round]
        while not self._news.empty():
            rooms.append(self._news.get())
        if None in rooms:
            return None
        return {account for room in rooms for account in room or ()}

    def _turn_in_use(self) -> bool:
        turn = self._turn
        if turn is None:
            return False
        if turn.turn_since is not None and self._clock() - turn.turn_since >= STALLED_AFTER:
            return False
        return turn.blocks_thread or turn.owner[0] not in self._asleep()

    def _asleep(self) -> set[int]:
        """The threads that a waiter blocks, so that no event loop of theirs goes on."""
        return {waiter.owner[0] for waiter in self.waiting.copy() if waiter.blocks_thread}

    def _remove(self, waiter: Waiter) -> None:
        if waiter in self.waiting:
            self.waiting.remove(waiter)
            self._let_look(waiter)
        if self._turn is waiter:
            self._turn = None

    def _let_look(self, waiter: Waiter) -> None:
        """Those whom it competes with may have a larger share without it, or an open line."""
        for other in self.waiting:
            if other is not waiter and waiter.competes(other.path):
                other.due = True

    def _give_turn_after(self, waiter: Waiter) -> None:
        if waiter in self.waiting:
            self._give_turn_from(self.waiting.index(waiter) + 1)

    def _give_turn_from(self, index: int) -> None:
        asleep = self._asleep()
        while index < len(self.waiting):
            waiter = self.waiting[index]
            if not waiter.may_use(self._round):
                index += 1
                continue
            waiter.due = True
            cannot_run = not waiter.blocks_thread and waiter.owner[0] in asleep
            woken = waiter.turn_since is not None  # and will look anyway
            if cannot_run or woken or self.is_behind_closed(waiter):
                index += 1
                continue
            waiter.turn_since = self._clock()
            self._turn = waiter
            try:
                waiter.wake()
            except RuntimeError:  # its event loop is closed: nobody is there any more
                self._turn = None
                del self.waiting[index]
                continue
            return
        self._round = ()

"""Accounts in a file: exact among all processes of one machine, and there again after a restart."""

import os
import time
from collections.abc import Callable

from tokenfence_integrations.stores.base import (
    AccountState,
    Amount,
    Book,
    Charge,
    Command,
    Draw,
    Drop,
    End,
    Open,
    Path,
    Reply,
    Reserve,
    Store,
    Waiting,
)
from tokenfence_integrations.stores.noting import Note, sayable
from tokenfence_integrations.stores.numbers import check_numbers
from tokenfence_integrations.stores.sqlite.commands import WAYS, accounts, charges, is_open, reserve
from tokenfence_integrations.stores.sqlite.keeper import Keeper

__all__ = ["SQLiteStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)

new = tuple.__new__
"""Makes a named tuple in a third of the time; used for those that every call makes."""


class SQLiteStore(Store):
    """Accounts in a SQLite file (WAL), for any number of processes on one machine.

    Each command is one transaction over the whole path (``BEGIN IMMEDIATE``, or one statement), in
    integers. A commit does not wait for the disk: it survives the death of the process, but after a
    power cut the last moments may be missing.

    **An event loop is not blocked** for longer than such a commit takes (about 50 µs), plus at most
    a millisecond for another thread of this process: a command is tried at once, and if the file is
    locked it goes to a thread, which waits for at most ``timeout``. Checkpoints, which do wait for
    the disk, are made by a thread. Charging what a dead process held reads all accounts (30 ms for
    100,000). The end of a call never waits: what cannot be written at once is kept, counts towards
    whatever this process reads or reserves from then on, and is written by its next command or by a
    thread. Only ``top_up()``, ``reset()``, ``charges()`` and ``resolve()`` wait where they are
    called.

    **Leases.** A process with calls in flight renews its lease. If it dies, they turn uncertain
    when the lease expires: charged, shown, and never free. The next process that reads or is
    refused does that. If the process was only paused, the real end of such a call replaces what was
    charged for it.

    Args:
        path: The file; created if it does not exist. Not on a network share.
        lease: Seconds after which a process that gives no sign of life counts as dead; 1 or more.
            Default 60.
        timeout: Seconds to wait while others have locked the file. Default 30.
        poll: Seconds between checks for room that another process has made, while calls wait.
            Default 0.03.
        clock: Unix time, the same in all processes; for tests.

    Raises:
        ValueError: A number is out of range.
        StoreError: The file cannot be opened, or is not a file of budgets.

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
        self._keeper = Keeper(self, self.path, lease=lease, timeout=timeout, poll=poll, clock=clock)
        self._keeper.insist(Keeper.write)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.path}>"

    def close(self) -> None:
        """Write what is still pending, and close the file; the next command opens it again.

        What is reserved stays reserved until its call ends, or the lease expires.
        """
        self._keeper.close()

    # Commands

    def execute(self, command: Command) -> Reply:
        keeper = self._keeper
        if type(command) is End:
            held = keeper.held.pop(command.id, None)
            if held is None:
                return NOT_DONE
            keeper.asked[command.id] = True
            keeper.noted.append(Note(command, held.amount))
            try:
                keeper.insist(Keeper.write)
            finally:
                done = keeper.asked.pop(command.id)
            return Reply(done)
        reply: Reply = keeper.insist(WAYS[type(command)], command)
        return reply

    async def aexecute(self, command: Command) -> Reply:
        if type(command) is End:
            return self.end(*command)
        keeper, way = self._keeper, WAYS[type(command)]
        reply: Reply | None = keeper.attempt(way, command, False)
        return await keeper.in_thread(way, command) if reply is None else reply

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
        reply: Reply | None = self._keeper.attempt(reserve, command)
        return self.execute(command) if reply is None else reply

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        # The gate of "a second end changes nothing": pop is atomic.
        keeper = self._keeper
        held = keeper.held.pop(key, None)
        if held is None:
            return NOT_DONE
        command = new(End, (path, key, spent, uncertain))
        keeper.noted.append(new(Note, (command, held.amount, None)))
        keeper.write_soon()
        return DONE

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        if type(command) is End:
            self.end(*command)
            return
        if type(command) is Draw:
            self.draw(command, None)
            return
        if type(command) is Open:
            check_numbers(command)
            if self._keeper.look(is_open, command):
                return
        self._keeper.noted.append(Note(command))
        self._keeper.write_soon()

    def draw(self, command: Draw, told: Callable[[bool], object] | None) -> None:
        keeper = self._keeper
        held = keeper.held.get(command.id)
        if held is not None:
            keeper.noted.append(Note(sayable(command), held.draw(command.kept), told))
            keeper.write_soon()
        elif told is not None:
            told(False)

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        states: tuple[AccountState, ...] | None = self._keeper.look(Keeper.states, path)
        return states

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        found: tuple[Charge, ...] = self._keeper.insist(charges)
        return tuple([c for c in found if account is None or account in c.path])

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        names: tuple[str, ...] = self._keeper.insist(accounts, budget)
        return names

    def watch(self, line: Waiting) -> None:
        self._keeper.lines.add(line)
        self._keeper.tender.call()

"""A store on the other side of a network: what Redis and PostgreSQL have in common.

Commands gather in one outbox while a batch is away, and leave with the next one: one batch at a
time, in the order in which they came. A thread that has to wait for an answer anyway carries the
batch itself; tasks, and what nobody waits for, are carried by the store's own thread, so an event
loop never touches a socket. How a batch gets there is the backend's (`wire`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tokenfence_integrations.stores.awaiting import to_its_end
from tokenfence_integrations.stores.base import (
    AccountState,
    Adjust,
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
    SetLimits,
    Store,
    Waiting,
)
from tokenfence_integrations.stores.noting import with_notes
from tokenfence_integrations.stores.remote.courier import Courier
from tokenfence_integrations.stores.remote.listening import Listener
from tokenfence_integrations.stores.remote.outbox import AT_ONCE
from tokenfence_integrations.stores.remote.wire import Answer, Order, Wire, tree_of
from tokenfence_integrations.stores.troubles import TroubleListener

__all__ = ["RemoteStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)


class RemoteStore(Store):
    """Accounts on a server; a backend brings the `Wire` to it.

    Every command is applied exactly once, however often it has to be sent. What is noted (ends,
    records, new budgets) is never waited for, leaves at once, and is kept while the server is away.

    Args:
        wire: The way to the server.
        lease: Seconds after which a process that gives no sign of life counts as dead; 1 or more.
        timeout: Seconds to try to reach the server before a call fails with `StoreError`; above 0.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, wire: Wire, *, lease: float = 60.0, timeout: float = 30.0) -> None:
        if not lease >= 1 or not timeout > 0:
            raise ValueError(
                f"lease must be 1 second or more and timeout above 0, got {lease!r} and {timeout!r}"
            )
        self._wire = wire
        self._courier = Courier(self, wire, lease=lease, timeout=timeout)
        self._listener = Listener(wire.listen)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._wire.where}>"

    def close(self) -> None:
        """Send what is still to be sent, and close the connection; the next command opens another.

        What is reserved stays so until its call ends, or the lease is over.

        Raises:
            StoreError: The server cannot be reached.
        """
        try:
            self._courier.flush()
        finally:
            with self._courier.sending:
                self._wire.close()

    async def aclose(self) -> None:
        """The same as `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    # Commands

    def execute(self, command: Command) -> Reply:
        courier = self._courier
        if type(command) is End:
            ending = courier.end(command)
            if ending is None:
                return NOT_DONE
            courier.flush()
            return (
                NOT_DONE if isinstance(ending.outcome, Answer) and not ending.outcome.done else DONE
            )
        if type(command) is Draw and command.id not in courier.held:
            return NOT_DONE
        order = courier.place(command, self._until())
        courier.carry(order)
        return self._reply(order)

    def execute_all(self, commands: Sequence[Command]) -> list[Reply]:
        courier, until = self._courier, self._until()
        orders = [courier.place(command, until) for command in commands]
        for order in orders:  # the first one takes the others along
            courier.carry(order)
        return [self._reply(order) for order in orders]

    async def aexecute(self, command: Command) -> Reply:
        courier = self._courier
        if type(command) is End:
            return self.end(*command)
        if type(command) is Draw and command.id not in courier.held:
            return NOT_DONE
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        order = courier.place(command, self._until(), future)
        courier.call()
        if type(command) is not Reserve:
            await to_its_end(future)
            return self._reply(order)
        try:
            await future
        except asyncio.CancelledError:
            courier.withdraw(order)
            raise
        return self._reply(order)

    def end(self, path: Path, key: int, spent: Any, uncertain: Any) -> Reply:
        order = self._courier.end(End(path, key, spent, uncertain))
        return NOT_DONE if order is None else DONE

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        courier = self._courier
        if type(command) is End:
            courier.end(command)
        elif type(command) is not Draw or command.id in courier.held:
            courier.place(command)
            courier.call()

    def draw(self, command: Draw, told: Callable[[bool], object]) -> None:
        courier = self._courier
        if command.id not in courier.held:
            told(False)
            return
        courier.place(command, told=told)
        courier.call()

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        notes, known = self._courier.outbox.notes, self._courier.known
        states = []
        for account in path:
            state = with_notes(account, known.state(account), notes)
            if state is None:
                return None
            states.append(state)
        return tuple(states)

    def refresh(self, path: Path) -> None:
        if len(self._courier.outbox) < AT_ONCE:  # else the server is away, and enough is asked for
            self._courier.place(Read(path))

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        # A lease that is over is ended by whoever looks at its tree.
        names = self.accounts() if account is None else (account,)
        for name in {tree_of(name): name for name in names}.values():
            with suppress(KeyError):  # there is none, or no longer
                self.execute(Read((name,)))
        return self._courier.insist(lambda: self._wire.charges(account))

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        self._courier.flush()
        return tuple(sorted(self._courier.insist(lambda: self._wire.accounts(budget))))

    def watch(self, line: Waiting) -> None:
        self._listener.watch(line)

    def on_trouble(self, listener: TroubleListener) -> None:
        self._courier.troubles.listen(listener)

    def _until(self) -> float:
        """Monotonic time up to which a command that is made now is waited for."""
        return time.monotonic() + self._courier.timeout

    def _reply(self, order: Order) -> Reply:
        """What an order that has ended came to."""
        outcome = order.outcome
        if not isinstance(outcome, Answer):
            assert outcome is not None
            raise outcome
        done, raw, at = outcome
        kind = type(order.command)
        if kind is Reserve and done:
            return DONE
        if kind in (Reserve, Read, Adjust, SetLimits, Reset):
            return Reply(done, tuple(map(self._wire.state, raw)))
        return Reply(done, at=at) if kind is Anchor else DONE if done else NOT_DONE

"""A store on the other side of a network: what Redis and PostgreSQL have in common.

Commands gather in one outbox while a batch is away, and leave with the next one: one batch at a
time, in the order in which they came. A thread that has to wait for an answer anyway carries the
batch itself; tasks, and what nobody waits for, are carried by the store's own thread, so an event
loop never touches a socket. How a batch gets there is the backend's (`wire`).
"""

import asyncio
import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.base import (
    NOTHING,
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
from tokenfence_integrations.stores.listening import Listener
from tokenfence_integrations.stores.noting import (
    NO_CHANGE,
    Change,
    Held,
    Note,
    change_by,
    sayable,
    to_open,
    with_notes,
)
from tokenfence_integrations.stores.tending import Tender
from tokenfence_integrations.stores.troubles import TroubleListener, Troubles
from tokenfence_integrations.stores.wire import (
    MOST,
    Answer,
    Batch,
    Order,
    Outcome,
    Unapplied,
    Unreachable,
    Wire,
    accounts_of,
    tree_of,
)

__all__ = ["RemoteStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)

AT_ONCE = 256
"""Commands in one batch, at most."""

REMEMBERED = 10_000
"""Accounts whose last state is remembered."""

BACK_OFF = 0.02, 1.0
"""Seconds between two tries to reach the server: from, to, each twice the one before."""

AT_EXIT = 2.0
"""Seconds that a process that ends may take to send what is noted."""

_chance = random.Random()  # the module's own is the user's: seeded, perhaps

T = TypeVar("T")


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
        self._lease = lease
        self._timeout = timeout
        self._troubles = Troubles()
        self._begin_life()
        _stores.add(self)

    def _begin_life(self) -> None:
        """All that a process must not share with the one that it was forked from."""
        self._sending = Lock()
        self._outbox: deque[Order] = deque()
        self._owner = secrets.randbits(52)
        self._epoch = 0
        self._numbered = 0
        self._try_at = 0.0
        self._tries = 0
        self._troubles.now = None
        self._held: dict[int, Held] = {}
        self._active = False  # whether anything was reserved since the thread looked
        self._renew_at = 0.0
        self._renewed: dict[str, float] = {}  # when, by tree
        # Raw states as of the last answer that told them, and what was changed here since.
        self._known: dict[str, tuple[Any, Change]] = {}
        self._called = False
        self._tender = Tender(self)
        self._listener = Listener(self._wire.listen)

    def _go_on_in_child(self) -> None:
        """Begin anew in a forked process, with the accounts that its budgets have."""
        opened = to_open([order.command for order in self._outbox])
        self._wire.forget()
        self._begin_life()
        for command in opened:
            self._place(command)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._wire.where}>"

    def close(self) -> None:
        """Send what is still to be sent, and close the connection; the next command opens another.

        What is reserved stays so until its call ends, or the lease is over.

        Raises:
            StoreError: The server cannot be reached.
        """
        try:
            self._flush()
        finally:
            with self._sending:
                self._wire.close()

    async def aclose(self) -> None:
        """The same as `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    # Commands

    def execute(self, command: Command) -> Reply:
        if type(command) is End:
            ending = self._end(command)
            if ending is None:
                return NOT_DONE
            self._flush()
            return (
                NOT_DONE if isinstance(ending.outcome, Answer) and not ending.outcome.done else DONE
            )
        if type(command) is Draw and command.id not in self._held:
            return NOT_DONE
        order = self._place(command, time.monotonic() + self._timeout)
        self._carry(order)
        return self._reply(order)

    def execute_all(self, commands: Sequence[Command]) -> list[Reply]:
        until = time.monotonic() + self._timeout
        orders = [self._place(command, until) for command in commands]
        for order in orders:  # the first one takes the others along
            self._carry(order)
        return [self._reply(order) for order in orders]

    async def aexecute(self, command: Command) -> Reply:
        if type(command) is End:
            return self.end(*command)
        if type(command) is Draw and command.id not in self._held:
            return NOT_DONE
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        order = self._place(command, time.monotonic() + self._timeout, future)
        self._call()
        if type(command) is not Reserve:
            await _to_its_end(future)
            return self._reply(order)
        try:
            await future
        except asyncio.CancelledError:
            self._withdraw(order)
            raise
        return self._reply(order)

    def end(self, path: Path, key: int, spent: Any, uncertain: Any) -> Reply:
        return NOT_DONE if self._end(End(path, key, spent, uncertain)) is None else DONE

    def _end(self, command: End) -> Order | None:
        # The gate of "a second end changes nothing": pop is atomic.
        held = self._held.pop(command.id, None)
        if held is None:
            return None
        order = _OnHeld(command, held.amount)
        self._outbox.append(order)
        self._call()
        return order

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        if type(command) is End:
            self._end(command)
        elif type(command) is not Draw or command.id in self._held:
            self._place(command)
            self._call()

    def draw(self, command: Draw, told: Callable[[bool], object]) -> None:
        if command.id not in self._held:
            told(False)
            return
        self._place(command, told=told)
        self._call()

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        notes = [
            Note(order.command, order.reserved if type(order) is _OnHeld else NOTHING)  # type: ignore[arg-type]
            for order in self._outbox.copy()
            if order.until is None and order.outcome is None  # else it counts in what is known
        ]
        states = []
        for account in path:
            known = self._known.get(account)
            state = None
            if known is not None:
                state = self._wire.state(known[0]).plus(*known[1])
            state = with_notes(account, state, notes)
            if state is None:
                return None
            states.append(state)
        return tuple(states)

    def refresh(self, path: Path) -> None:
        if len(self._outbox) < AT_ONCE:  # else the server is away, and enough is asked for
            self._place(Read(path))

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        # A lease that is over is ended by whoever looks at its tree.
        names = self.accounts() if account is None else (account,)
        for name in {tree_of(name): name for name in names}.values():
            with suppress(KeyError):  # there is none, or no longer
                self.execute(Read((name,)))
        return self._insist(lambda: self._wire.charges(account))

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        self._flush()
        return tuple(sorted(self._insist(lambda: self._wire.accounts(budget))))

    def watch(self, line: Waiting) -> None:
        self._listener.watch(line)

    def on_trouble(self, listener: TroubleListener) -> None:
        self._troubles.listen(listener)

    # Orders

    def _place(
        self,
        command: Command,
        until: float | None = None,
        future: Any = None,
        told: Callable[[bool], object] | None = None,
    ) -> Order:
        _check(command)
        if type(command) is Draw:
            held = self._held.get(command.id)
            before = NOTHING if held is None else held.draw(command.kept)
            order: Order = _OnHeld(sayable(command), before, until, future)
            order.told = told
        else:
            order = Order(command, until, future)
        if type(command) is Reserve:
            # From now on it may be reserved: whoever gives up on it has to end it.
            self._held[command.id] = Held(command.path, command.amount)
            self._active = True
        self._outbox.append(order)
        return order

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

    def _withdraw(self, order: Order) -> None:
        """Nobody waits for it any more: it is not sent again, and what it reserves is given back.

        The end is sent behind it. Should the order come later than the end, its epoch is over.
        """
        order.withdrawn = True
        command = order.command
        if type(command) is Reserve:
            self.end(command.path, command.id, NOTHING, NOTHING)

    def _call(self) -> None:
        """Have the thread carry what is in the outbox."""
        if not self._called:
            self._called = True
            _unsent.add(self)
            self._tender.call()

    # Sending: one batch at a time, by whoever holds the lock

    def _carry(self, order: Order) -> None:
        """Send, or wait while others do, until this order has ended."""
        assert order.until is not None
        while order.outcome is None:
            if not self._sending.acquire(timeout=max(0.0, order.until - time.monotonic())):
                raise self._give_up(order, self._why())
            try:
                if order.outcome is None:
                    self._send()
            finally:
                self._sending.release()
        if self._active and self._tender.asleep:  # from now on a lease has to be renewed
            self._tender.asleep = False
            self._tender.call()

    def _flush(self) -> None:
        """Send all that is noted up to now, and wait for that."""
        last = self._outbox[-1] if self._outbox else None
        until = time.monotonic() + self._timeout
        while last is not None and last in self._outbox.copy():
            if not self._sending.acquire(timeout=max(0.0, until - time.monotonic())):
                raise self._unreached(self._why())
            try:
                error = self._send()
            finally:
                self._sending.release()
            if error is not None and time.monotonic() >= until:
                raise error

    def _insist(self, work: Callable[[], T]) -> T:
        """Use the wire for something that is no command, however often that has to be tried."""
        until = time.monotonic() + self._timeout
        while True:
            with self._sending:
                self._pause()
                try:
                    result = work()
                    self._tries = 0
                    return result
                except Unreachable as error:
                    self._missed()
                    if time.monotonic() >= until:
                        raise self._unreached(error.reason) from error
                except BaseException:
                    self._wire.close()
                    raise

    def _send(self) -> StoreError | None:
        """Exchange what is in the outbox for answers.

        Returns:
            Why nothing, or not all, could be sent.
        """
        self._pause()
        # They stay in the outbox until they are answered: `peek` counts them, and they are sent
        # again.
        taken = self._next()
        orders = [order for order in taken if not order.withdrawn]
        for order in orders:
            if not order.number:
                self._numbered += 1
                order.number = self._numbered
            order.sent = True
        now = time.monotonic()
        due = now >= self._renew_at
        trees = self._trees_to_renew(orders, now, everywhere=due)
        if not orders and not trees:
            self._take_out(taken)
            return None
        at_exit(_close_all)
        try:
            batch = Batch(self._owner, self._epoch, self._lease, trees, orders)
            outcomes = self._wire.exchange(batch)
        except Unreachable as error:
            self._missed()
            return self._failed(self._unreached(error.reason))
        except StoreError as error:
            self._missed()
            for order in orders:
                if order.until is not None:
                    order.until = now
            return self._failed(error)
        except BaseException:  # interrupted: the connection is in the midst of something
            self._wire.close()
            self._missed()
            raise
        self._tries = 0
        if due:
            self._renew_at = now + self._lease / 3
        for tree in trees:
            self._renewed[tree] = now
        return self._sent(taken, orders, outcomes)

    def _sent(
        self, taken: Sequence[Order], orders: Sequence[Order], outcomes: Sequence[Outcome]
    ) -> StoreError | None:
        """Note what became of a batch."""
        failure: StoreError | None = None
        again: list[Order] = []
        for order, outcome in zip(orders, outcomes, strict=True):
            command = order.command
            if isinstance(outcome, Answer):
                self._learn(order, outcome)
                if not outcome.done and isinstance(command, Reserve | Draw):
                    self._held.pop(command.id, None)
                order.outcome = outcome
            elif isinstance(outcome, Unapplied):
                order.number = 0
                again.append(order)
            elif order.until is not None:
                if type(command) is Reserve:
                    self._held.pop(command.id, None)
                order.outcome = outcome
            elif isinstance(outcome, StoreError):
                # It was not applied, and others behind it were: it needs a place behind them.
                failure, order.number = outcome, 0
                again.append(order)
            elif type(command) is Read:  # of what is not there; who asks for more will be told
                order.outcome = outcome
            else:  # it would fail again for ever
                order.outcome = outcome
                logger().error("%s cannot be written to %s: %r", command, self._wire.where, outcome)
        self._take_out(taken)
        if again:
            # What is drawn stays in front of the end of its reservation; see `_next`.
            draws = [order for order in again if type(order.command) is Draw]
            self._outbox.extendleft(reversed(draws))
            self._outbox.extend([order for order in again if order not in draws])
        _tell(orders)
        if failure is not None:
            self._try_at = time.monotonic() + BACK_OFF[1]
            self._tell_failure(failure)
        else:
            self._troubles.are(None)
        return failure

    def _trees_to_renew(
        self, orders: Sequence[Order], now: float, *, everywhere: bool
    ) -> Sequence[str]:
        """Trees whose lease has to be renewed before these orders, or is because it is time to."""
        paths = [order.command.path for order in orders if type(order.command) is Reserve]
        if len(self._renewed) > REMEMBERED:
            self._renewed.clear()
        renewed, before = self._renewed, now - self._lease / 3
        trees = {tree_of(path[-1]) for path in paths}
        due = {tree for tree in trees if renewed.get(tree, before) <= before}
        if everywhere:  # also one that was renewed in between: it is not looked at again until then
            due.update([tree_of(held.path[-1]) for held in self._held.copy().values()])
        return [*due]

    def _next(self) -> Sequence[Order]:
        """The orders of the next batch.

        A draw is its reservation's last order in a batch. One that was by chance not applied is
        sent again, and an end that was behind it in the batch might have been applied by then.
        """
        taken: list[Order] = []
        drawn: set[int] = set()
        for index in range(min(len(self._outbox), AT_ONCE)):
            order = self._outbox[index]
            if type(order) is _OnHeld:
                command = order.command
                if command.id in drawn:
                    break
                if type(command) is Draw:
                    drawn.add(command.id)
            taken.append(order)
        return taken

    def _take_out(self, taken: Sequence[Order]) -> None:
        for _ in taken:
            self._outbox.popleft()

    def _learn(self, order: Order, answer: Answer) -> None:
        """Remember what is known of accounts now."""
        command = order.command
        known, accounts = self._known, accounts_of(command)
        if type(command) is Drop:
            known.pop(command.account, None)
        elif type(command) is Reset:
            for account, raw in zip(accounts, answer.states, strict=True):
                before = self._wire.state(raw)  # all but this is left
                spent, uncertain = before.spent.negative(), before.uncertain.negative()
                known[account] = raw, Change(spent, uncertain=uncertain)
        elif answer.states:
            if len(known) > REMEMBERED:
                known.clear()
            for account, raw in zip(accounts, answer.states, strict=True):
                if raw is None:
                    known.pop(account, None)
                else:
                    known[account] = raw, NO_CHANGE
        elif answer.done:
            change = change_by(command, order.reserved if type(order) is _OnHeld else NOTHING)  # type: ignore[arg-type]
            for account in accounts:
                if account in known:
                    raw, since = known[account]
                    known[account] = raw, since.plus(change)

    def _pause(self) -> None:
        """Wait until it is time for the next try, if the last ones failed."""
        pause = self._try_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def _missed(self) -> None:
        """No answer came: what may still be on its way must not be applied any more, later."""
        self._epoch += 1
        self._renew_at = 0.0
        self._renewed.clear()
        first, most = BACK_OFF
        # Some thousand tries later the power would be too large for a float.
        pause = min(first * 2 ** min(self._tries, 16), most, self._timeout / 4)
        self._tries += 1
        self._try_at = time.monotonic() + _chance.uniform(pause / 2, pause)

    def _failed(self, error: StoreError) -> StoreError:
        """Tell those who have waited long enough."""
        now = time.monotonic()
        waiting = [order for order in self._outbox.copy() if order.until is not None]
        for order in waiting:
            if order.until <= now and not order.withdrawn:  # type: ignore[operator]
                order.outcome = self._give_up(order, error.reason)
        _tell(waiting)
        self._tell_failure(error)
        return error

    def _give_up(self, order: Order, reason: str) -> StoreError:
        if order.sent and type(order.command) in (Draw, Adjust, Reset, Resolve, Book):
            reason += "; it may have been applied all the same: look before you do it again"
        self._withdraw(order)
        return self._unreached(reason)

    def _unreached(self, reason: str) -> StoreError:
        return StoreError(self._wire.where, reason)

    def _why(self) -> str:
        """Why nothing was sent for so long."""
        return (
            self._troubles.now.reason
            if self._troubles.now
            else "it does not answer; another thread waits for it already"
        )

    def _tell_failure(self, error: StoreError) -> None:
        if self._troubles.are(error):
            logger().error("%s; what has ended is kept, and sent once that works again", error)

    # What is done by the thread

    def tend(self) -> float | None:
        """Send what is in the outbox, and signs of life; how long to wait before the next time."""
        self._called = self._tender.asleep = False
        while self._outbox or self._is_renewal_due():
            with self._sending:
                if self._send() is not None:
                    return 0.0  # sending waits for its time
        _unsent.discard(self)
        if self._outbox:  # since we looked
            _unsent.add(self)
        if self._held or self._active:
            self._active = False
            return max(0.0, self._renew_at - time.monotonic())
        self._tender.asleep = True
        if self._active:  # since we looked
            self._tender.asleep = False
            return 0.0
        return None

    def _is_renewal_due(self) -> bool:
        return bool(self._held) and time.monotonic() >= self._renew_at


class _OnHeld(Order):
    """The order of a draw or an end, which knows what was reserved before it."""

    __slots__ = ("reserved",)

    command: Draw | End

    def __init__(
        self, command: Draw | End, reserved: Amount, until: float | None = None, future: Any = None
    ) -> None:
        super().__init__(command, until, future)
        self.reserved = reserved


async def _to_its_end(future: "asyncio.Future[None]") -> None:
    """Wait for it even if cancelled: then it is certain what became of it."""
    cancelled: BaseException | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _tell(orders: Sequence[Order]) -> None:
    """Tell those who wait for orders that have ended; each event loop once."""
    loops: dict[Any, list[Any]] = {}
    for order in orders:
        outcome = order.outcome
        if order.told is not None and outcome is not None:
            order.told(isinstance(outcome, Answer) and outcome.done)
        if order.future is not None and outcome is not None:
            loops.setdefault(order.future.get_loop(), []).append(order.future)
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # it is closed: nobody is there any more
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: "Sequence[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _check(command: Command) -> None:
    """Raise where a number is too large for the servers."""
    kind = type(command)
    if kind is Reserve:
        numbers: Sequence[int | None] = command.amount  # type: ignore[union-attr]
    elif kind in (Open, SetLimits):
        numbers = command.limits  # type: ignore[union-attr]
    elif kind is Book or kind is Resolve:
        numbers = command.spent  # type: ignore[union-attr]
    else:
        return
    if max(filter(None, numbers), default=0) >= MOST:
        raise ValueError(
            f"a store holds numbers below {MOST:,} (dollars in billionths: "
            f"${MOST // 10**9:,}), got {command}"
        )


# Forks and the end of a process

_stores: "WeakSet[RemoteStore]" = WeakSet()
_unsent: set[RemoteStore] = set()
"""Kept alive until what they have noted is sent."""


def _after_fork_in_child() -> None:
    _unsent.clear()
    _chance.seed()  # else all children would wait alike
    for store in list(_stores):
        store._go_on_in_child()


def _close_all() -> None:
    for store in list(_stores):
        store._timeout = min(store._timeout, AT_EXIT)
        if store._outbox:
            with suppress(StoreError):
                store._flush()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

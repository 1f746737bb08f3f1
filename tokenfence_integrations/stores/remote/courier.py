"""Carrying a store's orders to a server: one batch at a time, in the order in which they came.

A thread that has to wait for an answer anyway carries the batch itself; what tasks wait for, and
what nobody waits for, is carried by a thread of the courier's own.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet, ref

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.base import (
    NOTHING,
    Adjust,
    Book,
    Command,
    Draw,
    End,
    Path,
    Read,
    Reserve,
    Reset,
    Resolve,
)
from tokenfence_integrations.stores.exits import at_exit
from tokenfence_integrations.stores.noting import Held, say_lost, sayable, to_open
from tokenfence_integrations.stores.numbers import check_numbers
from tokenfence_integrations.stores.remote.backing_off import BackOff
from tokenfence_integrations.stores.remote.known import Known
from tokenfence_integrations.stores.remote.outbox import Outbox, tell
from tokenfence_integrations.stores.remote.renewals import Renewals
from tokenfence_integrations.stores.remote.wire import (
    Answer,
    Batch,
    Order,
    Outcome,
    Unapplied,
    Unreachable,
    Wire,
)
from tokenfence_integrations.stores.tending import Tender
from tokenfence_integrations.stores.troubles import Troubles

__all__ = ["Courier"]

AT_EXIT = 2.0
"""Seconds that a process that ends may take to send what is noted."""

T = TypeVar("T")


class Courier:
    """The one who carries orders over a wire, each until it is answered.

    Every order is applied exactly once, however often it has to be sent. What nobody waits for
    leaves at once, and is kept while the server is away.

    Args:
        store: Whose orders they are; it is kept alive until what nobody waits for is sent.
        wire: The way to the server.
        lease: Seconds after which a process that gives no sign of life counts as dead.
        timeout: Seconds to try to reach the server before somebody who waits is told.

    Attributes:
        timeout: As given; less once the process ends.
        held: The reservations that have no end yet, also those that may not be made yet.
        outbox: What is not answered yet.
        known: What answers have told of accounts.
        renewals: When the server has to be told that this process lives.
        troubles: Whether the server can be used.
        sending: Held by whoever carries a batch.
    """

    def __init__(self, store: object, wire: Wire, *, lease: float, timeout: float) -> None:
        self._store = ref(store)
        self.wire = wire
        self.timeout = timeout
        self.troubles = Troubles()
        self._lease = lease
        self._begin()
        begin_anew_in_children(self)
        _couriers.add(self)

    def begin_life(self) -> None:
        """As `Forked.begin_life`; the accounts that its budgets have are opened in any case."""
        opened = to_open([order.command for order in self.outbox.all()])
        self.wire.forget()
        self._begin()
        for command in opened:
            self.place(command)
        _unsent.pop(self, None)

    def _begin(self) -> None:
        self.sending = Lock()
        self.outbox = Outbox()
        self.held: dict[int, Held] = {}
        self.known = Known(self.wire.state)
        self.renewals = Renewals(self._lease)
        self.troubles.now = None
        self._back_off = BackOff()
        self._owner = secrets.randbits(52)
        self._epoch = 0
        self._numbered = 0
        self._active = False  # whether anything was reserved since the thread looked
        self._called = False
        self._tender = Tender(self)

    def place(
        self,
        command: Command,
        until: float | None = None,
        future: Any = None,
        told: Callable[[bool], object] | None = None,
    ) -> Order:
        """Put an order for a command in the outbox.

        Args:
            command: What is to be done.
            until: Monotonic time up to which somebody waits for the answer; None: nobody does.
            future: What a task awaits; None: it is a thread that waits, or nobody.
            told: As `Order.told`.

        Raises:
            ValueError: A number is too large for a store.
        """
        check_numbers(command)
        order = Order(command, until, future)
        if type(command) is Draw:
            held = self.held.get(command.id)
            order.command = sayable(command)
            order.reserved = NOTHING if held is None else held.draw(command.kept)
            order.told = told
        elif type(command) is Reserve:
            # From now on it may be reserved: whoever gives up on it has to end it.
            self.held[command.id] = Held(command.path, command.amount)
            self._active = True
        self.outbox.put(order)
        return order

    def end(self, command: End) -> Order | None:
        """Put the end of a reservation in the outbox, if it has none yet, and have it carried."""
        # The gate of "a second end changes nothing": pop is atomic.
        held = self.held.pop(command.id, None)
        if held is None:
            return None
        order = Order(command)
        order.reserved = held.amount
        self.outbox.put(order)
        self.call()
        return order

    def withdraw(self, order: Order) -> None:
        """Nobody waits for it any more: it is not sent again, and what it reserves is given back.

        The end is sent behind it. Should the order come later than the end, its epoch is over.
        """
        order.withdrawn = True
        command = order.command
        if type(command) is Reserve:
            self.end(End(command.path, command.id, NOTHING, NOTHING))

    def call(self) -> None:
        """Have the thread carry what is in the outbox."""
        if not self._called:
            self._called = True
            _unsent[self] = self._store()
            at_exit(_close_all)  # a process may end before its thread has sent anything
            self._tender.call()

    # Sending: one batch at a time, by whoever holds the lock

    def carry(self, order: Order) -> None:
        """Send, or wait while others do, until this order has ended."""
        assert order.until is not None
        while order.outcome is None:
            if not self._may_send(order.until):
                raise self._give_up(order, self._why())
            try:
                if order.outcome is None:
                    self._send()
            finally:
                self.sending.release()
        if self._active and self._tender.asleep:  # from now on a lease has to be renewed
            self._tender.asleep = False
            self._tender.call()

    def flush(self) -> None:
        """Send all that is noted up to now, and wait for that."""
        last = self.outbox.last
        until = time.monotonic() + self.timeout
        while last is not None and last in self.outbox:
            if not self._may_send(until):
                raise self._unreached(self._why())
            try:
                error = self._send()
            finally:
                self.sending.release()
            if error is not None and time.monotonic() >= until:
                raise error

    def insist(self, work: Callable[[], T]) -> T:
        """Use the wire for something that is no command, however often that has to be tried."""
        until = time.monotonic() + self.timeout
        while True:
            with self.sending:
                self._back_off.pause()
                try:
                    result = work()
                    self._back_off.answered()
                    return result
                except Unreachable as error:
                    self._missed()
                    if time.monotonic() >= until:
                        raise self._unreached(error.reason) from error
                except BaseException:
                    self.wire.close()
                    raise

    def _may_send(self, until: float) -> bool:
        """Be the one who carries the next batch; False if others did for too long."""
        sending = self.sending
        return sending.acquire(blocking=False) or sending.acquire(
            timeout=max(0.0, until - time.monotonic())
        )

    def _send(self) -> StoreError | None:
        """Exchange what is in the outbox for answers.

        Returns:
            Why nothing, or not all, could be sent.
        """
        self._back_off.pause()
        taken = self.outbox.next()  # and they stay there until they are answered
        orders: list[Order] = []
        reserving: list[Path] = []
        for order in taken:
            if order.withdrawn:
                continue
            if not order.number:
                self._numbered += 1
                order.number = self._numbered
            order.sent = True
            orders.append(order)
            if type(order.command) is Reserve:
                reserving.append(order.command.path)
        now = time.monotonic()
        trees = self.renewals.due(reserving, self._held_paths, now)
        if not orders and not trees:
            self.outbox.take_out(taken)
            return None
        try:
            batch = Batch(self._owner, self._epoch, self._lease, trees, orders)
            outcomes = self.wire.exchange(batch)
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
            self.wire.close()
            self._missed()
            raise
        self._back_off.answered()
        self.renewals.renewed(trees, now)
        return self._sent(taken, orders, outcomes)

    def _held_paths(self) -> list[Path]:
        return [held.path for held in self.held.copy().values()]

    def _sent(
        self, taken: Sequence[Order], orders: Sequence[Order], outcomes: Sequence[Outcome]
    ) -> StoreError | None:
        """Note what became of a batch."""
        failure: StoreError | None = None
        again: list[Order] = []
        for order, outcome in zip(orders, outcomes, strict=True):
            command = order.command
            if isinstance(outcome, Answer):
                self.known.learn(order, outcome)
                if not outcome.done and isinstance(command, Reserve | Draw):
                    self.held.pop(command.id, None)
                order.outcome = outcome
            elif isinstance(outcome, Unapplied):
                order.number = 0
                again.append(order)
            elif order.until is not None:
                if type(command) is Reserve:
                    self.held.pop(command.id, None)
                order.outcome = outcome
            elif isinstance(outcome, StoreError):
                # It was not applied, and others behind it were: it needs a place behind them.
                failure, order.number = outcome, 0
                again.append(order)
            elif type(command) is Read:  # of what is not there; who asks for more will be told
                order.outcome = outcome
            else:  # it would fail again for ever
                order.outcome = outcome
                logger().error("%s cannot be written to %s: %r", command, self.wire.where, outcome)
        self.outbox.take_out(taken, again)
        tell(orders)
        if failure is not None:
            self._back_off.refused()
            self._tell_failure(failure)
        else:
            self.troubles.are(None)
        return failure

    def _missed(self) -> None:
        """No answer came: what may still be on its way must not be applied any more, later."""
        self._epoch += 1
        self.renewals.doubt()
        self._back_off.failed(self.timeout / 4)

    def _failed(self, error: StoreError) -> StoreError:
        """Tell those who have waited long enough."""
        now = time.monotonic()
        waiting = self.outbox.awaited
        for order in waiting:
            if order.until <= now and not order.withdrawn:  # type: ignore[operator]
                order.outcome = self._give_up(order, error.reason)
        tell(waiting)
        self._tell_failure(error)
        return error

    def _give_up(self, order: Order, reason: str) -> StoreError:
        if order.sent and type(order.command) in (Draw, Adjust, Reset, Resolve, Book):
            reason += "; it may have been applied all the same: look before you do it again"
        self.withdraw(order)
        return self._unreached(reason)

    def _unreached(self, reason: str) -> StoreError:
        return StoreError(self.wire.where, reason)

    def _why(self) -> str:
        """Why nothing was sent for so long."""
        return (
            self.troubles.now.reason
            if self.troubles.now
            else "it does not answer; another thread waits for it already"
        )

    def _tell_failure(self, error: StoreError) -> None:
        if self.troubles.are(error):
            logger().error("%s; what has ended is kept, and sent once that works again", error)

    # What is done by the thread

    def tend(self) -> float | None:
        """Send what is in the outbox, and signs of life; how long to wait before the next time."""
        self._called = self._tender.asleep = False
        while self.outbox or self._is_renewal_due():
            with self.sending:
                if self._send() is not None:
                    return 0.0  # sending waits for its time
        store = _unsent.pop(self, None)
        if self.outbox:  # since we looked
            _unsent[self] = store
        if self.held or self._active:
            self._active = False
            return max(0.0, self.renewals.at - time.monotonic())
        self._tender.asleep = True
        if self._active:  # since we looked
            self._tender.asleep = False
            return 0.0
        return None

    def _is_renewal_due(self) -> bool:
        return bool(self.held) and time.monotonic() >= self.renewals.at


_couriers: "WeakSet[Courier]" = WeakSet()
_unsent: dict[Courier, object] = {}
"""Those who have something to send, and the stores that they keep alive until it is sent."""


def _close_all() -> None:
    for courier in list(_couriers):
        courier.timeout = min(courier.timeout, AT_EXIT)
        if courier.outbox:
            try:
                courier.flush()
            except StoreError as error:
                say_lost(error, [order.command for order in courier.outbox.all()])

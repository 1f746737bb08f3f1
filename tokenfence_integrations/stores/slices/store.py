"""Slices: a process borrows a part of a shared budget, and admits from it at memory speed."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import begin_anew_in_children
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
    Read,
    Reply,
    Reserve,
    Reset,
    Store,
    Waiting,
)
from tokenfence_integrations.stores.exits import at_exit
from tokenfence_integrations.stores.slices.borrowing import SLICE, Borrower, Steps
from tokenfence_integrations.stores.slices.holdings import Holdings
from tokenfence_integrations.stores.slices.purse import Purse
from tokenfence_integrations.stores.slices.slicing import (
    is_near_limit,
    parse_slice,
    slice_of,
    with_room,
)
from tokenfence_integrations.stores.tending import Tender
from tokenfence_integrations.stores.troubles import OnStoreError, TroubleListener, Troubles

__all__ = ["SLICE", "SlicedStore"]

LOOK = 1.0
"""Seconds after which a slice in use is reported, and its accounts are looked at again."""

LOOK_NEAR_LIMIT = 0.25
"""The same where so little is left that slices are smaller by that: others may wait for it soon."""

LINGER = 1.0
"""Seconds after which a slice that is not used is given back."""

LINGER_LOCAL = 60.0
"""The same where slices are kept for the time that the store may be away."""

AGAIN = 10
"""How often a store is asked anew if what this process holds has changed meanwhile."""

DONE = Reply(True)
NOT_DONE = Reply(False)


class SlicedStore(Store):
    """A store from which this process borrows slices, so that most calls need no round trip.

    A slice is a reservation in the store below, so limits hold across all processes as without
    slices. Two calls on the same accounts within a second make the process borrow one; it is
    reported every second while it is used, and given back when it was not used for a second. The
    less is left of a limit, the smaller the slices, until near the limit each call reserves for
    itself. If a call finds no room here, this process first gives back everything that it holds
    unused; other processes give back what they hold unused within a second (near a limit they check
    four times a second), and calls wait for that as for calls in flight. So ``wait=0`` may refuse
    what would have fitted a moment later.

    Slices come in halves. If this process dies, the half that it was drawing on turns uncertain
    when its lease expires (at most three quarters of the slice), and the half in reserve is free
    again.

    Args:
        store: Keeps the accounts.
        slice: The share of a limit that a process may borrow: ``"2%"``; at most 50 %.
        on_store_error: What happens while the store does not answer. ``"raise"``: nothing is
            admitted. ``"local"``: calls continue with what this process holds, which it then
            borrows with the first call and keeps for a minute; the limits still hold.
        clock: Monotonic time; for tests.

    Raises:
        ValueError: An argument is not valid.

    Example:
        >>> from tokenfence_integrations.stores.memory import MemoryStore
        >>> SlicedStore(MemoryStore(), "5%")
        <SlicedStore 5% of <...MemoryStore object at ...>>
    """

    def __init__(
        self,
        store: Store,
        slice: str = "2%",
        *,
        on_store_error: OnStoreError = "raise",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        share = parse_slice(slice)
        if on_store_error not in ("raise", "local"):
            raise ValueError(f"on_store_error must be 'raise' or 'local', got {on_store_error!r}")
        if isinstance(store, SlicedStore):
            raise ValueError(f"{store!r} has slices already")
        self._store = store
        self._slice = slice
        self._local = on_store_error == "local"
        # In one piece where it has to last: of a half in reserve nothing can be used meanwhile.
        self._share = share if self._local else share / 2
        self._linger = LINGER_LOCAL if self._local else LINGER
        self._clock = clock
        self._troubles = Troubles()
        self.begin_life()
        begin_anew_in_children(self)
        store.on_trouble(self._heed)

    def begin_life(self) -> None:
        """As `Forked.begin_life`."""
        _lending.discard(self)
        self._held = Holdings(self._store)
        self._borrower = Borrower(
            self._store,
            self._held,
            self._share,
            linger=self._linger,
            lasting=self._local,
            clock=self._clock,
            lent=self._lend,
        )
        self._look_at = 0.0
        self._troubles.now = None
        self._tender = Tender(self)

    def __repr__(self) -> str:
        return f"<SlicedStore {self._slice} of {self._store!r}>"

    def give_back(self) -> None:
        """Report all that was spent, and give back all that calls in flight do not hold."""
        self._held.empty_all()

    def close(self) -> None:
        """The same, and close the store; the next command opens it again.

        Raises:
            StoreError: The store cannot be reached.
        """
        self.give_back()
        close = getattr(self._store, "close", None)
        if close is not None:
            close()

    # Commands

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
        if not (force or idle) and self._take(path, key, amount, times, what):
            return DONE
        return self._run(self._steps(Reserve(path, key, amount, force, times, what, idle)))

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        return self._held.end(path, key, spent, uncertain)

    def execute(self, command: Command) -> Reply:
        if type(command) is Reserve:
            return self.reserve(*command)
        if type(command) is End:
            return self.end(*command)
        return self._run(self._steps(command))

    async def aexecute(self, command: Command) -> Reply:
        if type(command) is Reserve and not (command.force or command.idle):
            path, key, amount, _, times, what, _ = command
            if self._take(path, key, amount, times, what):
                return DONE
        elif type(command) is End:
            return self.end(*command)
        steps, answer = self._steps(command), None
        try:
            while True:
                step = steps.send(answer)  # type: ignore[arg-type]
                try:
                    answer = await self._store.aexecute(step)
                except BaseException as error:
                    steps.throw(error)
                    raise
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    def _run(self, steps: Steps) -> Reply:
        answer = None
        try:
            while True:
                step = steps.send(answer)  # type: ignore[arg-type]
                try:
                    answer = self._store.execute(step)
                except BaseException as error:
                    steps.throw(error)
                    raise
        except StopIteration as done:
            reply: Reply = done.value
            return reply

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        if type(command) is End:
            self.end(*command)
            return
        self._make_way(command)
        if type(command) is not Draw or not self._held.draw(command):
            self._store.note(command)
        self._doubt(command)

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        held = self._held
        with held.lock:
            if held.mirror.knows(path):
                return self._within_reach(path, held.mirror.states(path))
        states = self._store.peek(path)
        return None if states is None else held.as_they_are(path, states)

    def refresh(self, path: Path) -> None:
        if not self._held.mirror.knows(path):  # else it was looked at a moment ago
            self._store.refresh(path)

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        self._held.report_all()
        return self._store.charges(account)

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        return self._store.accounts(budget)

    def watch(self, line: Waiting) -> None:
        self._store.watch(line)

    def on_trouble(self, listener: TroubleListener) -> None:
        self._troubles.listen(listener)

    # What is asked of the store below

    def _steps(self, command: Command) -> Steps:
        if type(command) is Reserve:
            return (yield from self._reserve_steps(command))
        if type(command) is Read:
            return (yield from self._read_steps(command))
        self._make_way(command)
        if type(command) is Draw and self._held.draw(command):
            return DONE
        reply = yield command
        self._doubt(command)
        if reply.states:
            path = command.accounts if type(command) is Reset else command.path  # type: ignore[union-attr]
            return reply._replace(states=self._held.as_they_are(path, reply.states))
        return reply

    def _read_steps(self, command: Read) -> Steps:
        path, held = command.path, self._held
        for _ in range(AGAIN):
            before = held.changes
            reply = yield command
            with held.lock:
                states = held.as_they_are(path, reply.states)
                held.learn(path, reply.states, before)
                if held.is_as_of(before):
                    break
        return Reply(reply.done, states)

    def _reserve_steps(self, command: Reserve) -> Steps:
        path, key, amount, _, times, what, _ = command
        if times > 1 and self._troubles.now is not None and self._held.mirror.knows(path):
            return Reply(False, self.peek(path) or ())  # that cannot be asked now
        try:
            if not (command.force or command.idle):
                take = partial(self._take, path, key, amount, times, what)
                if (yield from self._borrower.borrow(path, amount, take)).done:
                    return DONE
            reply = yield command
            if not reply.done and self._held.empty_for(path, reply.states, amount):
                reply = yield command
        except StoreError as error:
            if not self._local:
                raise
            less = "; what this process has borrowed has too little left for this call"
            raise StoreError(error.where, error.reason + less) from error
        if reply.done:
            self._held.went_past(command)
            return DONE
        states = self._held.as_they_are(path, reply.states)
        yield from self._borrower.claim(path, amount, reply.states)
        return Reply(False, states)

    # What this process holds

    def _take(self, path: Path, key: int, amount: Amount, times: int, what: str) -> bool:
        """Have a call take what it needs of what this process holds, if it is there."""
        if self._troubles.now is not None and not self._local:
            return False
        purse = self._held.take(path, key, amount, times, what)
        if purse is None:
            return False
        if purse.is_low and not purse.asks:
            purse.asks = True
            self._wake()
        return True

    def _make_way(self, command: Command) -> None:
        """Report what has to be known before a command."""
        accounts = _ends(command)
        if accounts:
            self._held.empty_all(accounts)

    def _doubt(self, command: Command) -> None:
        """Have accounts looked at that a command may have changed."""
        if type(command) is Open or type(command) is Drop:
            accounts: Path | None = (command.account,)
        elif type(command) is Reset:
            accounts = command.accounts
        else:
            accounts = getattr(command, "path", None)
        with self._held.lock:
            self._held.mirror.doubt(accounts)

    def _within_reach(
        self, path: Path, states: tuple[AccountState, ...]
    ) -> tuple[AccountState, ...]:
        """While the store does not answer, no more is left than what this process holds.

        The rest counts as uncertain, not as in flight: it is not to be waited for, so that calls
        are cut short, or go to a fallback.
        """
        purse = self._held.purses.get(path)
        if self._troubles.now is None or purse is None:
            return states
        return tuple([with_room(state, purse.free) for state in states])

    # What is done by the thread

    def _lend(self) -> None:
        """What is held has to be given back some time."""
        at_exit(_give_back_all, needs_stores=True)
        _lending.add(self)
        self._wake()

    def _wake(self) -> None:
        """Have this be tended now."""
        self._tender.call()

    def tend(self) -> float | None:
        """Borrow what is about to run out, report, look; when to be called again."""
        now = self._clock()
        due = now >= self._look_at
        if due:
            self._look_at = now + LOOK
        with self._held.lock:
            for purse in list(self._held.purses.values()):
                if purse.used:
                    purse.used, purse.used_at = False, now
                if now >= max(purse.used_at + self._linger, purse.until):
                    self._held.empty(purse)
                elif due:
                    self._held.report(purse)
            purses = list(self._held.purses.values())
        try:
            if due and purses:
                if self._look(purses, now):
                    self._look_at = now + LOOK_NEAR_LIMIT
                self._heed(None)
            for purse in purses:
                if purse.asks or (due and purse.is_low):
                    purse.asks = False
                    self._run(self._borrower.refill(purse))
        except StoreError as error:
            self._heed(error)
        except KeyError:  # an account is not there any more; calls will be told
            self.give_back()
        if self._held.purses:
            return min(LOOK, max(0.0, self._look_at - now))
        _lending.discard(self)
        if self._held.purses:  # since we looked
            _lending.add(self)
        return None

    def _look(self, purses: Sequence[Purse], now: float) -> bool:
        """See what is left of the accounts, and keep no more of it than is to be borrowed.

        Returns:
            Whether anything is kept of accounts that are near a limit.
        """
        near_limit = False
        before = self._held.changes
        replies = self._store.execute_all([Read(purse.path) for purse in purses])
        with self._held.lock:
            if self._held.is_as_of(before):
                accounts = dict(
                    pair
                    for purse, reply in zip(purses, replies, strict=True)
                    for pair in zip(purse.path, reply.states, strict=True)
                )
                path = tuple(accounts)
                self._held.mirror.learn(path, self._held.as_they_are(path, accounts.values()))
            for purse, reply in zip(purses, replies, strict=True):
                if now < purse.until:
                    continue
                wanted = slice_of(reply.states, purse.asked, self._share)
                if wanted is None:  # others may wait for what is unused here
                    self._held.empty(purse)
                else:
                    self._held.report(purse, wanted)
                    near_limit |= is_near_limit(reply.states, purse.asked, self._share)
        return near_limit

    def _heed(self, trouble: StoreError | None) -> None:
        self._troubles.are(trouble)


def _ends(command: Command) -> Path:
    """The accounts whose books a command ends, which therefore have to be complete."""
    if type(command) is Reset:
        return command.accounts
    return (command.account,) if type(command) is Drop else ()


_lending: set[SlicedStore] = set()
"""Kept alive until they have given back all."""


def _give_back_all() -> None:
    for store in list(_lending):
        store.give_back()

"""What a process holds of accounts in a shared store, and how these are by that."""

from collections.abc import Iterable, Sequence
from functools import partial
from threading import RLock

from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Amount,
    Book,
    Draw,
    Path,
    Reply,
    Reserve,
    Store,
)
from tokenfence_integrations.stores.slices.mirror import Mirror
from tokenfence_integrations.stores.slices.purse import Purse
from tokenfence_integrations.stores.slices.slicing import room_for

__all__ = ["Holdings"]

DONE = Reply(True)


class Holdings:
    """The purses of a process, by path, and the calls that have taken from them.

    It asks the store for nothing; it only tells it, by what `Store.note`, `Store.draw` and
    `Store.end` take, which never wait. So its lock is held for moments, and may be taken anywhere.

    Args:
        store: Where the slices are reserved.

    Attributes:
        lock: Held by whoever changes any of it. Reentrant, as that of the memory store: a finalizer
            may end a call in the midst of this.
        mirror: The accounts as far as they are known.
        purses: What is held, by path.
        changes: How often anything changed that the store counts as reserved for this process.
    """

    def __init__(self, store: Store) -> None:
        self.lock = RLock()
        self.mirror = Mirror()
        self.purses: dict[Path, Purse] = {}
        self.changes = 0
        self._store = store
        self._holders: dict[str, set[Purse]] = {}  # the purses, by account
        self._asked: dict[int, tuple[Path, Amount]] = {}  # slices of which no answer has come yet
        self._calls: dict[int, tuple[Purse, Amount, str]] = {}
        self._direct: dict[int, Amount] = {}  # calls that have reserved in the store itself

    # Calls

    def take(self, path: Path, key: int, amount: Amount, times: int, what: str) -> Purse | None:
        """Have a call take what it needs; the purse that it came from, if it was there."""
        purse = self.purses.get(path)
        if purse is None:
            return None
        with self.lock:
            if not purse.take(amount):
                return None
            mirror = self.mirror
            doubted = mirror.doubtful and not mirror.knows(path)
            if doubted or not mirror.hold(path, amount, times):
                purse.put_back(amount, NOTHING)
                return None
            self._calls[key] = purse, amount, what
            purse.used = True
        return purse

    def went_past(self, command: Reserve) -> None:
        """Take note of what a call has reserved in the store itself."""
        with self.lock:
            self._direct[command.id] = command.amount
            self.mirror.change(command.path, reserved=command.amount)

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        """End a call, wherever it took from."""
        with self.lock:
            call = self._calls.pop(key, None)
            if call is not None:
                purse, amount, what = call
                overdrawn = purse.put_back(amount, spent)
                self.mirror.settle(path, amount, spent)
                if uncertain is not NOTHING and uncertain != NOTHING:
                    overdrawn = purse.lose(uncertain, what)
                    self.mirror.change(path, uncertain=uncertain)
                if overdrawn:
                    self.report(purse)
                elif purse.closed:  # others may wait for what this one leaves
                    self.empty(purse)
                return DONE
            reserved = self._direct.pop(key, None)
            if reserved is not None:
                minus = reserved.negative()
                self.mirror.change(path, spent=spent, reserved=minus, uncertain=uncertain)
        return self._store.end(path, key, spent, uncertain)

    def draw(self, command: Draw) -> bool:
        """As `Draw`, of what a call has taken here; whether it has."""
        path, key, spent, uncertain, kept, what = command
        with self.lock:
            call = self._calls.get(key)
            if call is None:
                if key in self._direct:
                    self._direct[key] = kept
                return False
            purse, _, taken_for = call
            self.end(path, key, spent, NOTHING)
            if uncertain != NOTHING:
                purse.lose(uncertain, what)
            purse.keep(kept)
            self._calls[key] = purse, kept, taken_for
            self.mirror.change(path, reserved=kept, uncertain=uncertain)
        return True

    # Slices

    def asks(self, number: int, path: Path, amount: Amount) -> None:
        """Take note that a slice is about to be asked for, or about to be used."""
        with self.lock:
            self._asked[number] = path, amount
            self.changes += 1

    def is_answered(self, number: int) -> None:
        """Take note that the store has answered, or never will; the lock is held."""
        del self._asked[number]
        self.changes += 1

    def purse(self, path: Path) -> Purse:
        """The purse of a path, made if there is none; the lock is held."""
        purse = self.purses.get(path)
        if purse is None:
            purse = self.purses[path] = Purse(path)
            purse.used = True
            for account in path:
                self._holders.setdefault(account, set()).add(purse)
            self.mirror.doubt([name for name in path if not self.mirror.knows((name,))])
        return purse

    def report(self, purse: Purse, keep: Amount | None = None) -> None:
        """Tell the store what was spent, and give back what is free, but for so much."""
        if purse.reporting:  # a finalizer has ended a call in the midst of it; the next look tells
            return
        purse.reporting = True
        try:
            for command in purse.report(keep=keep):
                self.changes += 1
                if type(command) is Draw:
                    self._store.draw(command, partial(self._told, purse, command))
                else:
                    self._store.note(command)
        finally:
            purse.reporting = False

    def report_all(self) -> None:
        """Tell the store all that was spent."""
        with self.lock:
            for purse in self.purses.values():
                self.report(purse)

    def _told(self, purse: Purse, command: Draw, done: bool) -> None:
        """Whether the store had the slice that was reported.

        If not, somebody took this process for dead, and has resolved what was charged for it. Then
        nothing more is taken from it, and what calls have spent is booked without it.
        """
        if done:
            return
        path, key, spent, uncertain, *_ = command
        with self.lock:
            purse.lose_slice(key)
            self.changes += 1
            self.mirror.doubt(path)
        if spent.plus(uncertain) != NOTHING:
            self._store.note(Book(path, spent.plus(uncertain)))

    def empty(self, purse: Purse) -> None:
        """Give back all that is not held by calls, and what these leave, until there is more."""
        purse.closed = True
        spare, purse.spare = purse.spare, None
        if spare is not None:
            self.changes += 1
            self._store.end(purse.path, spare[0], NOTHING, NOTHING)
        self.report(purse, NOTHING)
        if purse.is_empty and self.purses.get(purse.path) is purse:
            del self.purses[purse.path]
            for account in purse.path:
                self._holders[account].discard(purse)
                if not self._holders[account]:
                    del self._holders[account]
                    self.mirror.forget(account)

    def empty_all(self, accounts: Path | None = None) -> None:
        """Empty all purses; or those that hold anything of some accounts."""
        with self.lock:
            for purse in list(self.purses.values()):
                if accounts is None or not set(accounts).isdisjoint(purse.path):
                    self.empty(purse)

    def empty_for(self, path: Path, states: Sequence[AccountState], asked: Amount) -> bool:
        """Empty the purses that hold anything of accounts that are short, if that is enough.

        Args:
            path: The accounts of a call that was declined.
            states: How they are in the store.
            asked: What the call needs.
        """
        short = {a: s for a, s in zip(path, states, strict=True) if room_for([s], asked) != asked}
        with self.lock:
            holders = [p for p in self.purses.values() if not short.keys().isdisjoint(p.path)]
            for account, state in short.items():
                unused = NOTHING.plus(*[p.unused for p in holders if account in p.path])
                left = state.plus(NOTHING, unused.negative())
                if room_for([left], asked) != asked:
                    return False
            for purse in holders:
                self.empty(purse)
        return bool(holders)

    # Accounts

    def is_as_of(self, change: int) -> bool:
        """Whether nothing that the store counts as reserved has changed since, or is about to."""
        return change == self.changes and not self._asked

    def learn(self, path: Path, states: Sequence[AccountState], since: int) -> None:
        """Take over how accounts are in the store, unless more is known by now.

        Args:
            path: The accounts.
            states: How they are.
            since: The number of changes before the store was asked.
        """
        with self.lock:
            if self.is_as_of(since) and all(account in self._holders for account in path):
                self.mirror.learn(path, self.as_they_are(path, states))

    def as_they_are(self, path: Path, states: Iterable[AccountState]) -> tuple[AccountState, ...]:
        """Accounts with what slices hold counted as what it is, which are so in the store."""
        with self.lock:
            return tuple(
                [self._as_it_is(name, state) for name, state in zip(path, states, strict=True)]
            )

    def _as_it_is(self, account: str, state: AccountState) -> AccountState:
        spent = uncertain = idle = NOTHING
        for purse in self._holders.get(account, ()):
            spent = spent.plus(purse.spent)
            uncertain = uncertain.plus(purse.uncertain)
            idle = idle.plus(purse.idle)
        # As if it were there already: what is known then may lack it, but never counts it as used.
        idle = idle.plus(*[amount for path, amount in self._asked.values() if account in path])
        if idle == spent == uncertain == NOTHING:
            return state
        state = state.plus(spent, idle.plus(spent, uncertain).negative(), uncertain)
        return AccountState._make([*state[:9], *[max(0, n) for n in state[9:13]], *state[13:]])

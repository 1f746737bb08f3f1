"""The interface that every store of budget accounts keeps, in memory or remote.

A store is a set of accounts. Every change is one *command*: a small immutable value that names the
whole path of accounts it touches (leaf first, root last), is applied to all of them or to none, and
takes one round trip. That is all a store does: which call may reserve, and how much, is decided
above it (`engine.calls.admission`) from the states that the store reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeAlias

from tokenfence_integrations.money import format_usd
from tokenfence_integrations.stores.troubles import TroubleListener

__all__ = [
    "LIFTED",
    "NOTHING",
    "UNLIMITED",
    "AccountState",
    "Adjust",
    "Amount",
    "Anchor",
    "Book",
    "Charge",
    "Command",
    "Draw",
    "Drop",
    "End",
    "Limits",
    "Open",
    "Path",
    "Read",
    "Reply",
    "Reserve",
    "Reset",
    "Resolve",
    "SetLimits",
    "Store",
    "Waiting",
    "is_of",
]

Path: TypeAlias = tuple[str, ...]
"""Account names from the leaf to the root."""


class Amount(NamedTuple):
    """How much of each quantity; ``usd`` is in nano-dollars."""

    usd: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def plus(self, *others: "Amount") -> "Amount":
        """The sum of this and others."""
        usd, calls, into, out = self
        for other in others:
            usd += other[0]
            calls += other[1]
            into += other[2]
            out += other[3]
        return Amount(usd, calls, into, out)

    def minus(self, other: "Amount") -> "Amount":
        """This without another; below zero where that is more."""
        return Amount(*[part - less for part, less in zip(self, other, strict=True)])

    def negative(self) -> "Amount":
        """The same with its sign changed."""
        return Amount(*[-part for part in self])


NOTHING = Amount()


class Limits(NamedTuple):
    """The most that an account may hold of each quantity; ``None`` is unlimited."""

    usd: int | None = None
    calls: int | None = None
    tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


UNLIMITED = Limits()

LIFTED = Limits(calls=1 << 60)
"""Limits that stop nothing, for an account that may have some: `Open` without any keeps those."""


class AccountState(NamedTuple):
    """One account at one moment: its limits, and what is spent, reserved and uncertain.

    It is flat (the fields of `Limits`, then of three `Amount`s) because it is made for every call.
    """

    limit_usd: int | None
    limit_calls: int | None
    limit_tokens: int | None
    limit_input: int | None
    limit_output: int | None
    spent_usd: int
    spent_calls: int
    spent_input: int
    spent_output: int
    reserved_usd: int
    reserved_calls: int
    reserved_input: int
    reserved_output: int
    uncertain_usd: int
    uncertain_calls: int
    uncertain_input: int
    uncertain_output: int

    @property
    def limits(self) -> Limits:
        """The limits of this account."""
        return Limits(*self[:5])

    @property
    def spent(self) -> Amount:
        """What calls have surely cost."""
        return Amount(*self[5:9])

    @property
    def reserved(self) -> Amount:
        """What calls in flight hold."""
        return Amount(*self[9:13])

    @property
    def uncertain(self) -> Amount:
        """What is charged for calls of unknown outcome."""
        return Amount(*self[13:17])

    def plus(
        self, spent: Amount, reserved: Amount = NOTHING, uncertain: Amount = NOTHING
    ) -> "AccountState":
        """The state with so much more in its parts."""
        parts = *spent, *reserved, *uncertain
        return AccountState(*self[:5], *map(sum, zip(self[5:], parts, strict=True)))


class Open(NamedTuple):
    """Make the account, or give it other limits; what is spent of it stays.

    An account that exists keeps its limits (with all that `Adjust` made of them) if none are given,
    or the same as the last time. Others replace them. ``done`` tells that it was made.
    """

    account: str
    limits: Limits


class Read(NamedTuple):
    """Report the states of the path."""

    path: Path


class Reserve(NamedTuple):
    """Set an amount aside in every account of the path, or in none.

    ``force`` reserves even where a limit is passed (``on_limit="warn"``). ``times`` reserves only
    where so many of the amount would fit. ``what`` is kept with it, so that a `Charge` tells what
    it was for: the model. ``idle`` says that nothing will be spent of it before a `Draw` was
    answered: should its lease end before, it is not charged but free again.
    """

    path: Path
    id: int
    amount: Amount
    force: bool = False
    times: int = 1
    what: str = ""
    idle: bool = False


class Draw(NamedTuple):
    """Book what was spent, and what is uncertain, of a reservation, and keep so much reserved.

    From then on it is not ``idle``. What is uncertain becomes a `Charge` of its own, for ``what``.
    ``done`` is False if there is no such reservation (any more): then nothing has changed. One
    whose lease was over is there again, and its charge gone, as with its `End`.
    """

    path: Path
    id: int
    spent: Amount
    uncertain: Amount
    kept: Amount
    what: str = ""


class End(NamedTuple):
    """Replace a reservation by what was spent and what is uncertain; both nothing: released.

    Ending a reservation that has ended, or never was, changes nothing.
    """

    path: Path
    id: int
    spent: Amount
    uncertain: Amount


class Book(NamedTuple):
    """Add to what is spent without a reservation; limits do not stop it."""

    path: Path
    spent: Amount


class Adjust(NamedTuple):
    """Raise (or lower) the limits of one account; quantities without a limit stay so."""

    path: Path
    by: Amount
    tokens: int = 0


class SetLimits(NamedTuple):
    """Give the first account of the path these limits instead of those that it has; None is none.

    What it was last opened with stays known, so `Open` with the same again does not undo it.
    Answered with the states after it.
    """

    path: Path
    limits: Limits


class Reset(NamedTuple):
    """Forget what is spent and uncertain in these accounts; reservations stay.

    Answered with the states before.
    """

    accounts: tuple[str, ...]


class Drop(NamedTuple):
    """Forget an account that nobody will name again; its parents keep what was charged.

    While something is reserved in it, or if there is no such account, nothing happens.
    """

    account: str


class Resolve(NamedTuple):
    """Replace an uncertain charge by what the call cost; nothing: it was free.

    ``done`` is False if there is no such charge (any more). A `Reset` forgets the charges of an
    account, and the true end of a call whose lease was over resolves its charge by itself.
    """

    id: str
    spent: Amount


class Anchor(NamedTuple):
    """Keep the moment from which an account's windows are counted: the first that is given stays.

    Answered with it, as ``at``; ``done`` tells that it was the first. The account need not be open.
    """

    account: str
    at: float


Command: TypeAlias = (
    Open | Read | Reserve | Draw | End | Book | Adjust | SetLimits | Reset | Drop | Resolve | Anchor
)


class Reply(NamedTuple):
    """What a store answers: whether the command took effect, and the states after it."""

    done: bool
    states: tuple[AccountState, ...] = ()
    at: float = 0.0


class Charge(NamedTuple):
    """A call that is charged although nobody knows whether it was billed.

    Attributes:
        id: Names it in its store, for `Resolve`; never given to another one.
        path: The accounts that it is charged to, leaf first: those of the call but for any that was
            reset or dropped since.
        amount: What is charged.
        at: Unix time, by the store's clock, at which it was reserved, or turned uncertain.
        what: What it was for: the model.
    """

    id: str
    path: Path
    amount: Amount
    at: float
    what: str

    def __str__(self) -> str:
        """In words, such as ``"7: $0.0042 for gpt-4o on acme/writer, 2026-11-24 09:30:00 UTC"``."""
        moment = datetime.fromtimestamp(self.at, UTC)
        return (
            f"{self.id}: {format_usd(self.amount.usd)} for {self.what or 'an unknown model'} on "
            f"{self.path[0]}, {moment:%Y-%m-%d %H:%M:%S} UTC"
        )


class Waiting(Protocol):
    """Calls that wait for room."""

    def __bool__(self) -> bool:
        """Whether any does."""

    @property
    def paths(self) -> Iterable[Path]:
        """The accounts that they wait for."""

    def freed(self, accounts: Collection[str] | None = None) -> None:
        """There may be room: have them look again. Callable from any thread.

        Args:
            accounts: The budgets in which it is; None: any.
        """


def is_of(account: str, budget: str) -> bool:
    """Whether an account is one of a budget, or of one below it.

    Example:
        >>> [is_of(name, "acme") for name in ("acme", "acme~2026-11-24", "acme/writer", "acme2")]
        [True, True, True, False]
    """
    return account == budget or account.startswith((f"{budget}/", f"{budget}~"))


class Store(ABC):
    """Accounts that change only by whole commands.

    Promise kept by every store: for each account and limited quantity,
    ``spent + reserved + uncertain <= limit`` after every `Reserve` without ``force``.
    """

    instant: bool = False
    """True if `execute` never waits for anything, so that an event loop may call it directly."""

    shared: bool = True
    """False if its accounts live in this object alone, so that no other process can name them."""

    @abstractmethod
    def execute(self, command: Command) -> Reply:
        """Apply one command in one step.

        Args:
            command: Any of the commands of this module.

        Returns:
            For `Reserve`: ``done`` tells whether the amount is now reserved; the states are given
            when it is not. For `Draw` and `End`: ``done`` is False if there was no such
            reservation.

        Raises:
            KeyError: An account of the path was never opened.
            StoreError: The accounts cannot be read or written.
        """

    def execute_all(self, commands: Sequence[Command]) -> list[Reply]:
        """Apply commands one after the other; in one round trip, if the store can.

        Raises:
            Exception: As `execute`, of any of them; those behind it may have been applied.
        """
        return [self.execute(command) for command in commands]

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
        """`Reserve`, without the detour over a command."""
        return self.execute(Reserve(path, key, amount, force, times, what, idle))

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        """`End`, without the detour over a command, and as `note`: it never waits nor fails.

        The reply may be ``done`` before the end is.
        """
        return self.execute(End(path, key, spent, uncertain))

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        """Apply a command whose reply nobody needs: now, or as soon as that can be without waiting.

        It neither waits nor fails, so it may be called on an event loop and from a finalizer, and
        nothing that is cancelled or broken meanwhile loses it. Whatever this process asks the store
        from then on is answered as if it were applied. Right as it is if ``instant``.
        """
        self.execute(command)

    def draw(self, command: Draw, told: Callable[[bool], object]) -> None:
        """Apply a draw as `note` does, and tell whether there was such a reservation.

        Args:
            command: The draw.
            told: Called once it is applied, perhaps much later and by another thread. It neither
                waits nor fails.
        """
        told(self.execute(command).done)

    async def aexecute(self, command: Command) -> Reply:
        """Apply one command without blocking the event loop; right as it is if ``instant``.

        A task that is cancelled meanwhile gets its ``CancelledError`` only once it is certain what
        became of the command: it was applied, or never will be.
        """
        return self.execute(command)

    @abstractmethod
    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        """The uncertain charges of an account and of all below it, oldest first.

        It waits for its answer, so it is not for event loops, unless the store is `instant`.

        Args:
            account: The account that they are charged to; None: any.

        Returns:
            What `AccountState.uncertain` adds up from, charge by charge.

        Raises:
            StoreError: The accounts cannot be read.
        """

    @abstractmethod
    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        """The names of the accounts that there are, sorted; their states are asked for by `Read`.

        It waits for its answer, as `charges` does.

        Args:
            budget: The budget whose accounts they are (one for each of its windows), or that is
                above; None: any.

        Raises:
            StoreError: The accounts cannot be read.
        """

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        """The states of the path as far as known without a round trip; None if unknown.

        What is peeked may be old in a remote store, so it may lead to a `Reserve` (which the store
        checks) but never to a refusal.
        """
        return None

    def on_trouble(self, listener: TroubleListener) -> None:  # noqa: B027 - as below
        """Have a bound method told when the store ceases to answer, and with None when it does.

        It is called by any thread, for as long as its object lives. Stores on a server tell that.
        """

    def refresh(self, path: Path) -> None:  # noqa: B027 - none need to override it
        """Have `peek` know these accounts as they are when the next command is applied.

        It waits for nothing, and what it asks for leaves together with that command. Right as it is
        where `peek` knows what others do.
        """

    def watch(self, line: Waiting) -> None:  # noqa: B027 - none need to override it
        """Look out for room that others make, for as long as anybody waits in this line.

        Called by each call that is about to wait, before it looks for the last time. From then on
        ``line.freed`` is called whenever another process, or another tree of this one, may have
        made room. Right as it is where accounts belong to one tree of one process.
        """

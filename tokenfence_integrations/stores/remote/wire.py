"""What a backend on the other side of a network has to do: exchange commands for answers.

One batch of a store is under way at a time, so a server sees the orders of an owner in the order
of their numbers. Every order may be sent twice, because an answer can be lost: a server remembers
the highest number that it has applied for an owner, and the reservations under their ids. And a
batch that came too late (it lay in the buffer of a server that was stopped) must do nothing: each
try has a higher *epoch* than the one before, and a server refuses an owner's orders of an epoch
below the highest that it has seen. Both are to be remembered for an hour.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Anchor,
    Charge,
    Command,
    Drop,
    Open,
    Reset,
    Resolve,
)
from tokenfence_integrations.stores.numbers import MOST

__all__ = [
    "MOST",
    "Answer",
    "Batch",
    "Ears",
    "Order",
    "Outcome",
    "Unapplied",
    "Unreachable",
    "Wire",
    "accounts_of",
    "tree_of",
]


class Unreachable(Exception):
    """No answer came, or the server cannot serve right now: try again.

    Args:
        reason: What is wrong, and what to do about it should it last.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unapplied(Exception):
    """The outcome of an order that was by chance not applied: it is sent again, as a new one."""


class Answer(NamedTuple):
    """What a server answers to an order.

    Attributes:
        done: Whether it took effect, as in `Reply`.
        states: Of each account of the command (see `accounts_of`), in the backend's own form; None
            for one that does not exist. For a `Reset` those before it. A backend may leave them
            out except for `Read`, `Adjust`, `SetLimits`, `Reset`, and a `Reserve` that was
            declined.
        at: For an `Anchor`.
    """

    done: bool
    states: tuple[Any, ...] = ()
    at: float = 0.0


Outcome: TypeAlias = Answer | Exception
"""An answer, or why the order was not applied: `KeyError` for an account that was never opened,
`StoreError` for what somebody has to see to, `Unapplied`."""


class Order:
    """A command on its way, and whoever waits for its answer.

    Attributes:
        command: What is to be done.
        reserved: What was reserved before a `Draw` or an `End`.
        number: Its place in the order of all commands of its owner; 0 until it is first sent.
        sent: Whether it may have reached the server.
        until: Monotonic time up to which somebody waits for the answer; None: nobody does.
        told: Called with whether it took effect, once that is known; None: nobody asks.
        future: What the task that waits for it awaits; None: it is a thread that waits, or nobody.
        withdrawn: Whether it is not to be sent (again).
        outcome: How it ended, or None.
    """

    __slots__ = (
        "command",
        "future",
        "number",
        "outcome",
        "reserved",
        "sent",
        "told",
        "until",
        "withdrawn",
    )

    def __init__(self, command: Command, until: float | None = None, future: Any = None) -> None:
        self.command = command
        self.reserved = NOTHING
        self.number = 0
        self.sent = False
        self.until = until
        self.told: Callable[[bool], object] | None = None
        self.future = future
        self.withdrawn = False
        self.outcome: Outcome | None = None


class Batch(NamedTuple):
    """Orders that are sent together.

    Attributes:
        owner: Who makes the reservations: this store, in this process.
        epoch: Above that of every batch whose answers never came.
        lease: Seconds for which the owner counts as alive, from the server's own time on.
        renew: Trees in which it holds something, and whose lease is to be renewed.
        orders: In the order of their numbers.
    """

    owner: int
    epoch: int
    lease: float
    renew: Sequence[str]
    orders: Sequence[Order]


class News:
    """Where room may have been made: in which trees, and in which budgets of each.

    Example:
        >>> news = News()
        >>> news.add("acme", ["acme/ada~2026-11"])
        >>> sorted(news.of(["acme"])), news.of(["other"])
        (['acme', 'acme/ada'], set())
        >>> news.add("other")
        >>> news.of(["acme", "other"]) is None
        True
    """

    def __init__(self) -> None:
        self._budgets: dict[str, set[str] | None] = {}

    def add(self, tree: str, accounts: Iterable[str] | None = None) -> None:
        """Take note of more.

        Args:
            tree: A tree.
            accounts: The accounts that have more room, as have those above them; None: any.
        """
        known = self._budgets.setdefault(tree, set())
        if accounts is None:
            self._budgets[tree] = None
        elif known is not None:
            for account in accounts:
                known.update(_budgets_of(account))

    def of(self, trees: Iterable[str]) -> set[str] | None:
        """The budgets of these trees in which there may be room; None: any."""
        budgets = [self._budgets.get(tree, set()) for tree in trees]
        return None if None in budgets else set().union(*budgets)  # type: ignore[arg-type]


class Ears(Protocol):
    """A connection of its own, on which a server tells that room was made."""

    def hear(self, trees: frozenset[str], seconds: float) -> "News":
        """Listen to exactly these trees, for at most so long.

        Returns:
            Where room may have been made; in trees that are listened to from now on, anywhere.

        Raises:
            Unreachable: The connection broke.
            StoreError: As in `Wire.exchange`.
        """

    def close(self) -> None:
        """Close the connection."""


class Wire(ABC):
    """The way to one server. Its methods block, and are never called by two threads at once."""

    where: str
    """The server, as errors name it; without a password."""

    @abstractmethod
    def exchange(self, batch: Batch) -> Sequence[Outcome]:
        """Have the server apply a batch.

        Returns:
            The outcome of each order.

        Raises:
            Unreachable: No answer came. What of it was applied is not known.
            StoreError: The server cannot be used before somebody has seen to it.
        """

    @abstractmethod
    def state(self, raw: Any) -> AccountState:
        """The state of an account, from the form in which answers bring it."""

    @abstractmethod
    def charges(self, account: str | None) -> tuple[Charge, ...]:
        """As `Store.charges`; raises as `exchange` does."""

    @abstractmethod
    def accounts(self, budget: str | None) -> Collection[str]:
        """As `Store.accounts`, in any order; raises as `exchange` does."""

    @abstractmethod
    def listen(self) -> Ears:
        """Connect for listening; may be called by another thread. Raises as `exchange` does."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; the next exchange opens another one."""

    @abstractmethod
    def forget(self) -> None:
        """As `close`, in a forked process: without a word to the server, for it is the parent's."""


def tree_of(account: str) -> str:
    """What the names of all accounts of one tree have in common.

    Example:
        >>> {tree_of("acme"), tree_of("acme~2026-11-24"), tree_of("acme/researcher~2026-11")}
        {'acme'}
    """
    return account.split("/", 1)[0].split("~", 1)[0]


def _budgets_of(account: str) -> Iterator[str]:
    """The budget that an account is of, and those above it."""
    name = account.partition("~")[0]
    while name:
        yield name
        name = name.rpartition("/")[0]


def accounts_of(command: Command) -> tuple[str, ...]:
    """The accounts that a command names."""
    kind = type(command)
    if kind not in _OFF_PATHS:
        return command.path  # type: ignore[union-attr]
    if kind is Resolve:
        return ()
    return command.accounts if kind is Reset else (command.account,)  # type: ignore[union-attr]


_OFF_PATHS = frozenset([Open, Drop, Anchor, Reset, Resolve])

"""Accounts as they are once what is noted is written."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.log import logger
from tokenfence_integrations.money import format_usd
from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    AccountState,
    Amount,
    Book,
    Command,
    Draw,
    Drop,
    End,
    Open,
    Path,
    Reserve,
)

__all__ = [
    "NO_CHANGE",
    "Change",
    "Held",
    "Notable",
    "Note",
    "change_by",
    "say_lost",
    "sayable",
    "to_open",
    "with_notes",
]

Notable: TypeAlias = Open | Draw | End | Book | Drop
"""The commands whose reply nobody needs."""


class Note(NamedTuple):
    """A command that is still to be written.

    Attributes:
        command: The command.
        reserved: What was reserved before a `Draw` or an `End`.
        told: Called with whether a `Draw` took effect, once it is written.
    """

    command: Notable
    reserved: Amount = NOTHING
    told: Callable[[bool], object] | None = None


class Change(NamedTuple):
    """What is added to the three parts of an account."""

    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    uncertain: Amount = NOTHING

    def plus(self, other: "Change") -> "Change":
        """Both together."""
        spent, reserved, uncertain = other
        return Change(
            _sum(self.spent, spent), _sum(self.reserved, reserved), _sum(self.uncertain, uncertain)
        )

    def reserving(self, amount: Amount) -> "Change":
        """The same with so much more reserved."""
        return Change(self.spent, _sum(self.reserved, amount), self.uncertain)


def _sum(one: Amount, other: Amount) -> Amount:
    return one if other is NOTHING else other if one is NOTHING else one.plus(other)


NO_CHANGE = Change()


class Held:
    """A reservation of this process that has no end yet.

    It is there once and changes, for it may be drawn from and ended at the same time: who ends it
    takes it away, and whoever draws from it then changes nothing that anybody looks at.

    Attributes:
        path: Its accounts.
        amount: What is reserved once all that is noted is written. The books know better, should
            there be two who change it at once.
    """

    __slots__ = ("amount", "path")

    def __init__(self, path: Path, amount: Amount) -> None:
        self.path = path
        self.amount = amount

    def draw(self, kept: Amount) -> Amount:
        """Keep so much of it; what was reserved before."""
        before, self.amount = self.amount, kept
        return before


def change_by(command: Notable | Reserve, reserved: Amount = NOTHING) -> Change:
    """What a command adds to the accounts that it names.

    Args:
        command: The command; all but `Reserve`, `Draw`, `End` and `Book` add nothing.
        reserved: What was reserved before a `Draw` or an `End`.
    """
    kind = type(command)
    if kind is Reserve:
        return Change(reserved=command.amount)  # type: ignore[union-attr]
    if kind is Book:
        return Change(command.spent)  # type: ignore[union-attr]
    if kind is not Draw and kind is not End:
        return NO_CHANGE
    kept = command.kept if kind is Draw else NOTHING  # type: ignore[union-attr]
    more = Amount(*[new - old for new, old in zip(kept, reserved, strict=True)])
    return Change(command.spent, more, command.uncertain)  # type: ignore[union-attr]


def sayable(command: Draw) -> Draw:
    """The command without what stores cannot hold in a text: no name may stop a booking."""
    what = command.what.replace("\0", "?").encode("utf-8", "replace").decode()
    return command if what == command.what else command._replace(what=what)


def with_notes(
    account: str, state: AccountState | None, notes: Iterable[Note]
) -> AccountState | None:
    """An account as it will be once these are written, in their order.

    Args:
        account: Its name.
        state: What is written of it; None: it does not exist, or is not known.
        notes: What is still to be written, of any accounts.

    Returns:
        Its state then; None if it does not exist by then either.
    """
    for command, reserved, _ in notes:
        if type(command) is Open:
            if command.account != account:
                continue
            if state is None:
                state = AccountState(*command.limits, *NOTHING, *NOTHING, *NOTHING)
            elif command.limits != UNLIMITED:
                state = AccountState(*command.limits, *state[5:])
        elif type(command) is Drop or state is None or account not in command.path:  # type: ignore[union-attr]
            continue
        else:
            state = state.plus(*change_by(command, reserved))
    return state


def to_open(commands: Iterable[Command]) -> list[Open]:
    """What a forked process has to write as well, of that which its parent still has to write.

    Its calls need the accounts, and may come first; to open one twice changes nothing.
    """
    found: dict[str, Open] = {}
    for command in commands:
        if type(command) is Open:
            found[command.account] = command
        elif type(command) is Drop:
            found.pop(command.account, None)
    return list(found.values())


def say_lost(error: StoreError, commands: Iterable[Command]) -> None:
    """Say what a process that ends could not write.

    Args:
        error: Why not.
        commands: What was still to be written.
    """
    ended = booked = 0
    for command in commands:
        if type(command) is Book:
            booked += command.spent.usd
        elif type(command) is End or type(command) is Draw:
            ended += any(command.spent) or any(command.uncertain)
    lost = []
    if ended:
        lost.append(f"the cost of calls or slices ({ended} in all): uncertain once its lease ends")
    if booked:
        lost.append(f"{format_usd(booked)} that record() was given: record that again")
    if lost:
        logger().error("%s; this process ends, and has not written %s", error, "; ".join(lost))

"""Accounts as they are once what is noted is written."""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    AccountState,
    Amount,
    Book,
    Drop,
    End,
    Open,
)

__all__ = ["NO_CHANGE", "Change", "Notable", "Note", "with_notes"]

Notable: TypeAlias = Open | End | Book | Drop
"""The commands whose reply nobody needs."""


class Note(NamedTuple):
    """A command that is still to be written, and what an `End` had reserved."""

    command: Notable
    reserved: Amount = NOTHING


class Change(NamedTuple):
    """What is added to the three parts of an account."""

    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    uncertain: Amount = NOTHING

    def plus(self, other: "Change") -> "Change":
        """Both together."""
        return Change(*[a.plus(b) for a, b in zip(self, other, strict=True)])


NO_CHANGE = Change()


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
    for command, reserved in notes:
        if type(command) is Open:
            if command.account != account:
                continue
            if state is None:
                state = AccountState(*command.limits, *NOTHING, *NOTHING, *NOTHING)
            elif command.limits != UNLIMITED:
                state = AccountState(*command.limits, *state[5:])
        elif type(command) is Drop or state is None or account not in command.path:  # type: ignore[union-attr]
            continue
        elif type(command) is Book:
            state = state.plus(command.spent)
        elif type(command) is End:
            state = state.plus(command.spent, reserved.minus(), command.uncertain)
    return state

"""What is known of accounts on a server without asking it."""

from collections.abc import Callable
from typing import Any

from tokenfence_integrations.stores.base import AccountState, Drop, Reserve, Reset
from tokenfence_integrations.stores.noting import NO_CHANGE, Change, change_by
from tokenfence_integrations.stores.remote.wire import Answer, Order, accounts_of

__all__ = ["Known"]

REMEMBERED = 10_000
"""Accounts whose last state is remembered."""


class Known:
    """Accounts as the server last told of them, and what was changed here since.

    Args:
        state: As `Wire.state`: it is asked for once somebody looks.
    """

    def __init__(self, state: Callable[[Any], AccountState]) -> None:
        self._state = state
        self._accounts: dict[str, tuple[Any, Change]] = {}

    def state(self, account: str) -> AccountState | None:
        """The state of an account; None if it is not known."""
        known = self._accounts.get(account)
        return None if known is None else self._state(known[0]).plus(*known[1])

    def learn(self, order: Order, answer: Answer) -> None:
        """Take note of what an answer says of accounts."""
        command = order.command
        known, accounts = self._accounts, accounts_of(command)
        if type(command) is Drop:
            known.pop(command.account, None)
        elif type(command) is Reset:
            for account, raw in zip(accounts, answer.states, strict=True):
                before = self._state(raw)  # all but this is left
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
        elif answer.done and type(command) is Reserve:
            for account in accounts:
                if account in known:
                    raw, since = known[account]
                    known[account] = raw, since.reserving(command.amount)
        elif answer.done:
            change = change_by(command, order.reserved)  # type: ignore[arg-type]
            for account in accounts:
                if account in known:
                    raw, since = known[account]
                    known[account] = raw, since.plus(change)

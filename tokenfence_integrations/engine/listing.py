"""The budgets of a store, by what it keeps of them: for those who hold none of them."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from tokenfence_integrations.engine.limits.names import MARK, budget_of
from tokenfence_integrations.stores.base import (
    LIFTED,
    UNLIMITED,
    AccountState,
    Amount,
    Limits,
    Read,
    Store,
)

__all__ = ["Listed", "listed", "remaining"]

AT_ONCE = 1_000
"""Accounts that are asked for in one go."""


class Listed(NamedTuple):
    """An account: a budget's, or that of one of its windows.

    Attributes:
        budget: The budget's name.
        window: The window's name; None: the budget has no windows.
        state: What is in it. The limits of a budget that may overflow are not: those of its
            parents stop it.
    """

    budget: str
    window: str | None
    state: AccountState


def listed(store: Store, budget: str | None = None) -> list[Listed]:
    """The accounts of a store as a tree, parents first; the windows of a budget in their order.

    Args:
        store: The store.
        budget: The budget that is asked for, with those below it; None: all.

    Raises:
        StoreError: The store cannot be read.

    Example:
        >>> from tokenfence_integrations import Budget
        >>> from tokenfence_integrations.stores.memory import MemoryStore
        >>> store = MemoryStore()
        >>> team = Budget("$5", name="team", store=store).child("writer", "50%")
        >>> [(found.budget, found.state.limit_usd) for found in listed(store)]
        [('team', 5000000000), ('team/writer', 2500000000)]
    """
    names = store.accounts(budget)
    found = [
        Listed(budget_of(name), name.partition(MARK)[2] or None, _with_own_limits(state))
        for first in range(0, len(names), AT_ONCE)
        for name, state in _states(store, names[first : first + AT_ONCE])
    ]
    return sorted(found, key=lambda each: (each.budget.split("/"), each.window or ""))


def remaining(state: AccountState) -> Limits:
    """What is neither spent, reserved nor uncertain, never below 0; None where is no limit."""
    used = Amount().plus(state.spent, state.reserved, state.uncertain)
    return Limits(
        *[
            None if limit is None else max(0, limit - getattr(used, quantity))
            for quantity, limit in state.limits._asdict().items()
        ]
    )


def _states(store: Store, names: Sequence[str]) -> Iterator[tuple[str, AccountState]]:
    """Each account that is still there, with its state."""
    try:
        replies = store.execute_all([Read((name,)) for name in names])
    except KeyError:  # one was dropped since it was listed
        for name in names:
            with suppress(KeyError):
                yield name, store.execute(Read((name,))).states[0]
    else:
        yield from zip(names, [reply.states[0] for reply in replies], strict=True)


def _with_own_limits(state: AccountState) -> AccountState:
    return AccountState(*UNLIMITED, *state[5:]) if state.limits == LIFTED else state

"""Names of accounts: of a budget, ``"acme/researcher"``, or of its window, ``"acme~2026-11-24"``.

What all accounts of one tree have in common is ``name.split("/")[0].split("~")[0]``.
"""

from tokenfence_integrations.engine.windows import Window

__all__ = ["MARK", "account_named", "budget_of"]

MARK = "~"
"""Stands between the name of a budget and that of a window."""


def account_named(budget: str, window: Window) -> str:
    """The account of a budget's window.

    Example:
        >>> account_named("acme", Window("2026-11-24", 1_795_478_400, 1_795_564_800))
        'acme~2026-11-24'
    """
    return f"{budget}{MARK}{window.name}"


def budget_of(account: str) -> str:
    """The name of the budget that an account belongs to."""
    return account.partition(MARK)[0]

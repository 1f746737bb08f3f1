"""Names of accounts: of a budget, ``"acme/researcher"``, or of its window, ``"acme~2026-11-24"``.

What all accounts of one tree have in common is ``name.split("/")[0].split("~")[0]``.
"""

from tokenfence_integrations.engine.limits.windows import Window

__all__ = ["MARK", "account_named", "budget_of", "checked", "unique_name"]

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


def checked(name: object) -> str:
    """What a budget is to be called, if it can be.

    Raises:
        ValueError: It is no text, or empty, or has a ``/`` or ``~``.
    """
    if not isinstance(name, str) or not name.strip() or "/" in name or MARK in name:
        raise ValueError(f"a budget's name must be text without '/' and '{MARK}', got {name!r}")
    return name


def unique_name() -> str:
    """A name that no budget has, in any process."""
    from uuid import uuid4  # here, because importing it takes milliseconds

    return f"passing-{uuid4().hex}"

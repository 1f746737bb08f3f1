"""How large the numbers may be that a store holds."""

from tokenfence_integrations.stores.base import Book, Command, Open, Reserve, Resolve, SetLimits

__all__ = ["MOST", "check_numbers"]

MOST = 1 << 62
"""Stores count in 64 bits, and SQLite goes on with floats beyond: every limit and every amount has
to be below this."""


def check_numbers(command: Command) -> None:
    """Raise where a number is too large for a store.

    Raises:
        ValueError: One is.
    """
    kind = type(command)
    if kind is Reserve:
        most = max(command.amount)  # type: ignore[union-attr]
    elif kind is Book or kind is Resolve:
        most = max(command.spent)  # type: ignore[union-attr]
    elif kind is Open or kind is SetLimits:
        most = max(filter(None, command.limits), default=0)  # type: ignore[union-attr]
    else:
        return
    if most >= MOST:
        raise ValueError(
            f"a store holds numbers below {MOST:,} (dollars in billionths: "
            f"${MOST // 10**9:,}), got {command}"
        )

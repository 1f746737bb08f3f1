"""How large the numbers may be that a store holds."""

from collections.abc import Sequence

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
        numbers: Sequence[int | None] = command.amount  # type: ignore[union-attr]
    elif kind in (Open, SetLimits):
        numbers = command.limits  # type: ignore[union-attr]
    elif kind is Book or kind is Resolve:
        numbers = command.spent  # type: ignore[union-attr]
    else:
        return
    if max(filter(None, numbers), default=0) >= MOST:
        raise ValueError(
            f"a store holds numbers below {MOST:,} (dollars in billionths: "
            f"${MOST // 10**9:,}), got {command}"
        )

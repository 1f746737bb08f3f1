"""Shares of a budget by who calls."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC
from typing import Any

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.limits.grammar import given
from tokenfence_integrations.engine.limits.names import MARK

__all__ = ["Allocations"]


class Allocations:
    """Which child of a budget a call is charged to.

    Args:
        shares: Dollars, or a limit in words (``"$2/day"``), by key; None: books of its own, but no
            limit of its own.

    Raises:
        ValueError: A share is not an amount, or a key cannot be a budget's name.

    Example:
        >>> shares = Allocations({"researcher": "$1.50", "team=alpha": 0.5})
        >>> shares.child(Budget("$5"), ["agent", "researcher"]).name
        'budget/researcher'
    """

    def __init__(self, shares: Mapping[str, Dollars | None]) -> None:
        for key, share in shares.items():
            if not isinstance(key, str) or not key.strip() or "/" in key or MARK in key:
                raise ValueError(
                    f"a key of allocations must be text without '/' and '{MARK}', got {key!r}"
                )
            if share is not None:
                given(share, zone=UTC)
        self._shares = dict(shares)
        self._pairs = [key.partition("=") for key in shares if "=" in key]

    def __bool__(self) -> bool:
        return bool(self._shares)

    def child(self, budget: Budget, keys: Iterable[Any]) -> Budget:
        """The child to charge, made on first use; or the budget itself.

        Args:
            budget: What is split.
            keys: What the call goes by; the first one that has a share decides.

        Raises:
            ValueError: The budget has such a child already, with another limit.
        """
        for key in keys:
            if isinstance(key, str) and key in self._shares:
                return budget.child(key, self._shares[key])
        return budget

    def pairs(self, values: Mapping[str, Any]) -> Iterator[str]:
        """The keys of the form ``"name=value"`` that these values have."""
        for name, equals, value in self._pairs:
            if name in values and str(values[name]) == value:
                yield f"{name}{equals}{value}"

    def check(self, budget: Budget) -> None:
        """See that the children that exist already have these limits.

        Raises:
            ValueError: One has another.
        """
        for key in self._shares.keys() & budget.children.keys():
            budget.child(key, self._shares[key])

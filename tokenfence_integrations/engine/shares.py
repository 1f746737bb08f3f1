"""Limits that are a share of the parent's, such as ``"20%"``."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeAlias

from tokenfence_integrations.stores.base import Limits

__all__ = ["Shares", "resolve", "split"]

Shares: TypeAlias = Mapping[str, Fraction]
"""By quantity, 0 to 1."""

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%")


def split(given: Mapping[str, Any]) -> tuple[Shares, dict[str, Any]]:
    """Part what is given as shares from what is given as amounts.

    Args:
        given: Limits by quantity, as for `Budget`.

    Returns:
        The shares; and the others, with None where there is a share.

    Raises:
        ValueError: A share is not one of 0 % to 100 %.

    Example:
        >>> split({"usd": "20%", "calls": 5})
        ({'usd': Fraction(1, 5)}, {'usd': None, 'calls': 5})
    """
    shares = {
        quantity: _share(quantity, value)
        for quantity, value in given.items()
        if isinstance(value, str) and value.strip().endswith("%")
    }
    return shares, {q: None if q in shares else value for q, value in given.items()}


def resolve(shares: Shares, limits: Limits, above: Limits, name: str) -> Limits:
    """Put amounts in the place of shares, rounded down.

    Args:
        shares: The shares of the limits above.
        limits: The other limits; what is in them in the place of a share is replaced.
        above: The parent's limits.
        name: Whose limits they are, for the error.

    Raises:
        ValueError: The parent has no limit of such a quantity.

    Example:
        >>> resolve({"calls": Fraction(1, 3)}, Limits(usd=9), Limits(calls=10), "team/writer")
        Limits(usd=9, calls=3, tokens=None, input_tokens=None, output_tokens=None)
    """
    amounts = {}
    for quantity, share in shares.items():
        whole: int | None = getattr(above, quantity)
        if whole is None:
            raise ValueError(
                f"budget {name!r} is to have {float(share):.9g} of its parent's {quantity}, which "
                f"has no limit of {quantity}: give the parent one, or the budget an amount"
            )
        amounts[quantity] = whole * share.numerator // share.denominator
    return limits._replace(**amounts)


def _share(quantity: str, text: str) -> Fraction:
    match = _PERCENT.fullmatch(text.strip())
    share = Fraction(match[1]) / 100 if match else None
    if share is None or share > 1:
        raise ValueError(
            f"{quantity} must be an amount, or a share of the parent's from '0%' to '100%', such "
            f"as '12.5%', got {text[:40]!r}"
        )
    return share

"""Limits that are a share of the parent's, such as ``"20%"``."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias

from tokenfence_integrations.stores.base import Limits

__all__ = ["Shares", "check_share", "parts", "percent", "resolve", "share_in", "share_of"]

Shares: TypeAlias = Mapping[str, Fraction]
"""By quantity, 0 to 1."""

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%")


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
    amounts = parts(shares, above)
    for quantity, share in shares.items():
        if quantity not in amounts:
            raise ValueError(
                f"budget {name!r} is given {percent(share)} of its parent's {quantity}, but the "
                f"parent has no limit of {quantity}: give it one, or give this budget an amount"
            )
    return limits._replace(**amounts)


def parts(shares: Shares, above: Limits) -> dict[str, int]:
    """What shares come to, rounded down; without those of what is not limited above.

    Example:
        >>> parts({"usd": Fraction(1, 2), "calls": Fraction(1, 3)}, Limits(calls=10))
        {'calls': 3}
    """
    return {
        quantity: whole * share.numerator // share.denominator
        for quantity, share in shares.items()
        if (whole := getattr(above, quantity)) is not None
    }


def share_in(quantity: str, value: object) -> Fraction | None:
    """The share that a value is; None if it is none.

    Raises:
        ValueError: It is a share, but not one of 0 % to 100 %.

    Example:
        >>> share_in("calls", "12.5%"), share_in("calls", 5)
        (Fraction(1, 8), None)
    """
    is_share = isinstance(value, str) and value.rstrip().endswith("%")
    return share_of(quantity, value) if is_share else None  # type: ignore[arg-type]


def share_of(quantity: str, text: str) -> Fraction:
    """Read a share.

    Raises:
        ValueError: It is not one of 0 % to 100 %.
    """
    match = _PERCENT.fullmatch(text.strip()) if len(text) <= 40 else None
    share = Fraction(match[1]) / 100 if match else None
    if share is None or share > 1:
        raise ValueError(
            f"{quantity} must be an amount, or a share of the parent's from '0%' to '100%', such "
            f"as '12.5%', got {text[:40]!r}"
        )
    return share


def percent(share: Fraction) -> str:
    """A share as it is given.

    Example:
        >>> percent(Fraction(1, 8))
        '12.5%'
    """
    return f"{float(share * 100):.9g}%"


def check_share(name: str, share: object) -> None:
    """Refuse what is no share of a limit.

    Args:
        name: What it was given as.
        share: 0.0 to 1.0.

    Raises:
        ValueError: It is none.

    Example:
        >>> check_share("threshold", 0.8)
    """
    known = isinstance(share, int | float) and not isinstance(share, bool)
    if not known or not 0.0 <= float(share) <= 1.0:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a share between 0.0 and 1.0, got {share!r}")

"""Money as integers: nano-dollars for amounts, pico-dollars for prices.

Sums of floats drift and comparisons with a limit then go wrong by a hair; integers do neither. A
nano-dollar (1e-9 $) is finer than any bill, a pico-dollar (1e-12 $) than nearly any price of one
token. Floats appear only where a person reads them.
"""

import re
from decimal import Decimal

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

PICO_PER_NANO = 1_000
"""Pico-dollars in a nano-dollar."""

MAX_USD = 9_000_000_000
"""The largest amount in dollars: above it, nano-dollars would not fit a store's 64-bit integers."""

_DECIMALS = 9
_MAX_LENGTH = 64
_AMOUNT = re.compile(r"\$?\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?)(?:\s*USD)?")
_ACCEPTED = (
    "accepted are '$0.50', '0.50 USD', '0.5', '$1,000.00', 0.5, 5 or Decimal('0.5'): "
    f"US dollars, zero or more, at most {_DECIMALS} decimals and ${MAX_USD:,}"
)


def parse_usd(value: str | int | float | Decimal) -> int:
    """Read an amount of US dollars.

    Args:
        value: Text such as "$0.50", "0.50 USD", "0.5" or "$1,000.00", or a number of dollars. Zero
            or more. A float counts as the decimal that it prints as: 0.1 is exactly 0.1.

    Returns:
        Nano-dollars, exact.

    Raises:
        ValueError: If it is anything else, such as negative, NaN, infinite, empty, a bool or
            another currency, or has more than 9 decimals, which could not be kept.

    Example:
        >>> parse_usd("$0.50")
        500000000
    """
    amount = parse_decimal(value)
    if amount and amount.adjusted() < -_DECIMALS:
        raise _unreadable(value, "it has more than 9 decimals")
    numerator, denominator = amount.as_integer_ratio()
    nano, rest = divmod(numerator * NANO, denominator)
    if rest:
        raise _unreadable(value, "it has more than 9 decimals")
    return nano


def parse_decimal(value: str | int | float | Decimal) -> Decimal:
    """Read an amount of US dollars of any precision, as a price per token may need it.

    Args:
        value: As for `parse_usd`.

    Returns:
        Dollars, exact.

    Raises:
        ValueError: As for `parse_usd`, but with any number of decimals allowed.

    Example:
        >>> parse_decimal("$0.0000000001")
        Decimal('1E-10')
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _unreadable(value, f"it is a {type(value).__name__}")
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value.strip()) if len(value) <= _MAX_LENGTH else None
        if match is None or not match[1]:
            raise _unreadable(value, "it is not an amount of US dollars")
        amount = Decimal(match[1].replace(",", ""))
    elif isinstance(value, float):
        amount = Decimal(float.__repr__(value))
    else:
        amount = Decimal(value)
    if not amount.is_finite():
        raise _unreadable(value, "it is not a finite number")
    if amount < 0:
        raise _unreadable(value, "it is negative")
    if amount > MAX_USD:
        raise _unreadable(value, "it is too large")
    return amount


def format_usd(nano: int) -> str:
    """Write an amount for people, exactly.

    Args:
        nano: Nano-dollars, also negative.

    Returns:
        With thousands separators and 2 to 9 decimals.

    Example:
        >>> format_usd(12_300_000)
        '$0.0123'
    """
    dollars, fraction = divmod(abs(nano), NANO)
    decimals = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${dollars:,}.{decimals}"


def to_decimal(nano: int) -> Decimal:
    """Nano-dollars as dollars, exactly.

    Example:
        >>> to_decimal(1_500_000_000)
        Decimal('1.500000000')
    """
    # Through text, because Decimal arithmetic would round to the precision of the user's context.
    return Decimal(f"{nano}e-9")


def to_float(nano: int) -> float:
    """Nano-dollars as dollars, to the nearest float: for people, not for sums.

    Example:
        >>> to_float(1_500_000_000)
        1.5
    """
    return nano / NANO


def round_half_even(pico: int) -> int:
    """Pico-dollars to the nearest nano-dollar, a half to the even one: for settled costs.

    Example:
        >>> round_half_even(2_500), round_half_even(3_500)
        (2, 4)
    """
    nano = pico // PICO_PER_NANO
    rest = pico - nano * PICO_PER_NANO
    return nano + 1 if rest > 500 or (rest == 500 and nano & 1) else nano


def round_up(pico: int) -> int:
    """Pico-dollars to the next nano-dollar: for bounds.

    Example:
        >>> round_up(2_001)
        3
    """
    return -(-pico // PICO_PER_NANO)


def _unreadable(value: object, problem: str) -> ValueError:
    given = repr(value) if not isinstance(value, str) else repr(value[:_MAX_LENGTH])
    return ValueError(f"cannot read {given[:80]} as money: {problem}; {_ACCEPTED}")

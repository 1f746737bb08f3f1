"""What a budget is given, as arguments or in words: ``"$5/day"``, ``"50 calls per minute"``."""

import re
from datetime import timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple, TypeAlias, cast

from tokenfence_integrations.engine.limits.shares import Shares, percent, share_in, share_of
from tokenfence_integrations.engine.limits.windows import UNITS, Calendar, Interval, Schedule, Unit
from tokenfence_integrations.money import format_usd, parse_usd
from tokenfence_integrations.stores.base import Limits

__all__ = ["Dollars", "Given", "Per", "given", "whole"]

Dollars = str | int | float | Decimal
"""An amount of US dollars: ``"$0.50"``, ``"0.50 USD"``, ``0.5`` or a ``Decimal``.

Where a budget is made of it, also a limit in words: ``"$5/day"``, ``"50 calls per minute"``.
"""

Per: TypeAlias = str | timedelta
"""``"minute"``, ``"hour"``, ``"day"``, ``"week"``, ``"month"``, ``"year"``, or a fixed length."""

ACCEPTED = (
    "or calls or tokens: '50 calls', '2M tokens', '500k input tokens', '1,000 output tokens'; and "
    f"each of these for a time window: '$5/day', '50 calls per minute' ({', '.join(UNITS)})"
)

_MAX_LENGTH = 64
_WINDOW = re.compile(r"([^/]*?)(?:\s*/\s*|\s+per\s+)(\w+)", re.IGNORECASE)
_COUNT = re.compile(
    r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?\s?([kKM]?)\s+"
    r"((?i:calls?|tokens?|input[ _]tokens?|output[ _]tokens?))"
)
_TIMES = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


class Given(NamedTuple):
    """What a budget was given: its limits, the windows for which each holds, and shares."""

    limits: Limits
    schedule: Schedule | None
    shares: Shares = {}  # noqa: RUF012 - nobody changes it
    """Limits that are a share of the parent's; None stands in ``limits`` for each."""

    def __str__(self) -> str:
        amounts = {
            q: format_usd(limit) if q == "usd" else f"{limit:,}"
            for q, limit in self.limits._asdict().items()
            if limit is not None
        }
        amounts |= {q: percent(share) for q, share in self.shares.items()}
        told = ", ".join(f"{quantity}={amount}" for quantity, amount in amounts.items())
        return f"{told or 'no limits'}{_window(self.schedule)}"


def given(
    usd: Dollars | None,
    *,
    calls: int | str | None = None,
    tokens: int | str | None = None,
    input_tokens: int | str | None = None,
    output_tokens: int | str | None = None,
    per: Per | None = None,
    zone: tzinfo,
) -> Given:
    """Read the limits of a budget.

    Args:
        usd: Dollars, or a limit in words.
        calls: Number of calls.
        tokens: Input and output tokens together.
        input_tokens: Input tokens.
        output_tokens: Output tokens.
        per: The windows, if not in words.
        zone: The time zone of calendar windows.

    Raises:
        ValueError: Something cannot be read, or is given twice.

    Example:
        >>> from datetime import UTC
        >>> given("2M tokens/week", zone=UTC)
        Given(limits=Limits(usd=None, calls=None, tokens=2000000, ...), schedule=Calendar(...)...)
    """
    counts = calls, tokens, input_tokens, output_tokens
    try:
        return _remembered(usd, *counts, per, zone)
    except TypeError:  # something that cannot be looked up
        return _read(usd, *counts, per, zone)


def _read(
    usd: Dollars | None,
    calls: int | str | None,
    tokens: int | str | None,
    input_tokens: int | str | None,
    output_tokens: int | str | None,
    per: Per | None,
    zone: tzinfo,
) -> Given:
    unit = None
    counts = {
        "calls": calls,
        "tokens": tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    shares = {q: share for q, value in counts.items() if (share := share_in(q, value)) is not None}
    limits: dict[str, int | None] = {
        "usd": None,
        **{q: None if q in shares else whole(q, value) for q, value in counts.items()},
    }
    if isinstance(usd, str) and "%" in usd:
        words, unit = _in_parts(usd)
        shares["usd"] = share_of("usd", words)
    elif isinstance(usd, str):
        quantity, amount, unit = _in_words(usd)
        if limits[quantity] is not None:
            raise ValueError(f"{quantity} are limited twice: by {usd!r}, and by {quantity}=")
        limits[quantity] = amount
    elif usd is not None:
        limits["usd"] = parse_usd(usd)
    if unit is not None and per is not None:
        raise ValueError(
            f"a budget has one window, and both {usd!r} and per={per!r} give one. For two, such as "
            f"a day's and a month's, nest two budgets: "
            f"Budget('$100/month').child('daily', '$5/day')"
        )
    schedule: Schedule | None = None if unit is None else Calendar(unit, zone)
    if per is not None:
        schedule = _schedule(per, zone)
    return Given(Limits(**limits), schedule, shares)


_remembered = lru_cache(1_024, typed=True)(_read)
"""Thousands of tenants, and the budgets of all requests, are given the same."""


def whole(name: str, value: int | str | None) -> int | None:
    """A count as it is, if it is one.

    Raises:
        ValueError: It is negative, or no whole number.
    """
    if value is None:
        return None
    if type(value) is not int or value < 0:
        hint = ""
        if isinstance(value, str):
            hint = (
                "; limits in words are a budget's first argument, Budget('50 calls/minute'), and "
                "two windows are two budgets, one below the other"
            )
        raise ValueError(f"{name} must be a whole number, 0 or more, got {value!r}{hint}")
    return value


def _in_words(text: str) -> tuple[str, int, Unit | None]:
    """The quantity, the amount and the unit of a limit in words."""
    amount, unit = _in_parts(text)
    count = _COUNT.fullmatch(amount)
    if count is None:
        try:
            return "usd", parse_usd(amount), unit
        except ValueError as error:
            raise ValueError(f"{error}; {ACCEPTED}") from None
    digits, decimals, suffix, noun = count.groups()
    number = Decimal(digits.replace(",", "") + (decimals or "")) * _TIMES[suffix]
    if number != number.to_integral_value():
        raise ValueError(f"cannot read {text!r} as a limit: {number} is not a whole number")
    quantity = noun.lower().replace(" ", "_").removesuffix("s") + "s"
    return quantity, int(number), unit


def _in_parts(text: str) -> tuple[str, Unit | None]:
    """An amount, and the unit of the window that it is for."""
    short = text.strip()
    if len(text) > _MAX_LENGTH or not short:
        return text, None
    window = _WINDOW.fullmatch(short)
    if window is None:
        return short, None
    unit = window[2].lower()
    if unit not in UNITS:
        raise ValueError(
            f"cannot read {text!r} as a limit: {window[2]!r} is not a window; accepted are "
            f"{', '.join(UNITS)}; for another length use per=datetime.timedelta(...)"
        )
    return window[1], cast(Unit, unit)


def _schedule(per: object, zone: tzinfo) -> Schedule:
    if isinstance(per, timedelta):
        seconds, rest = divmod(per, timedelta(seconds=1))
        if seconds < 1 or rest:
            raise ValueError(f"per must be whole seconds, 1 or more, got {per!r}")
        return Interval(seconds)
    for unit in UNITS:
        if per == unit:
            return Calendar(unit, zone)
    raise ValueError(
        f"per must be one of {', '.join(UNITS)}, or a datetime.timedelta of whole seconds, "
        f"got {per!r}"
    )


def _window(schedule: Schedule | None) -> str:
    if schedule is None:
        return ""
    if isinstance(schedule, Interval):
        return f" per {timedelta(seconds=schedule.seconds)}"
    return f" per {schedule.unit} ({schedule.zone})"

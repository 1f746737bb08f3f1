"""Amounts: what is read is exactly what is meant, and what is written reads back."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfence_integrations.money import (
    MAX_USD,
    NANO,
    format_usd,
    parse_decimal,
    parse_usd,
    round_half_even,
    round_up,
    to_decimal,
    to_float,
)

amounts = st.integers(0, MAX_USD * NANO)


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        ("$0.50", 500_000_000),
        ("0.50 USD", 500_000_000),
        ("0.5", 500_000_000),
        (".5", 500_000_000),
        ("$1,000.00", 1_000_000_000_000),
        ("$1,234,567.89", 1_234_567_890_000_000),
        ("  $5  ", 5_000_000_000),
        ("0.000000001", 1),
        ("1.0000000000000", 1_000_000_000),  # more than 9 decimals, but nothing is lost
        (0.1, 100_000_000),
        (0.5, 500_000_000),
        (1e-9, 1),
        (5, 5_000_000_000),
        (0, 0),
        (-0.0, 0),
        (Decimal("0.30"), 300_000_000),
        (Decimal("1E+3"), 1_000_000_000_000),
        (MAX_USD, MAX_USD * NANO),
    ],
)
def test_accepted_amounts(value: str | float | Decimal, nano: int) -> None:
    assert parse_usd(value) == nano


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "$",
        "USD",
        "€5",
        "5 EUR",
        "five",
        "-1",
        "$-1",
        "1,00",
        "10,000,00",
        "1e3",
        "0x10",
        "٣",
        "1.2.3",
        "5.",
        "nan",
        "inf",
        "0" * 1000,
        -1,
        -0.01,
        Decimal(-1),
        math.nan,
        math.inf,
        -math.inf,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        "0.0000000001",
        1e-10,
        5e-324,
        Decimal("1E-1000000"),
        Decimal("1.0000000001"),
        MAX_USD + 1,
        1e300,
        Decimal("1E+1000000"),
        True,
        False,
        None,
        [5],
        b"5",
    ],
)
def test_refused_amounts_say_what_was_given_and_what_is_accepted(value: object) -> None:
    with pytest.raises(ValueError, match=r"cannot read .* as money: .*'\$0\.50'") as refused:
        parse_usd(value)  # type: ignore[arg-type]
    assert repr(value)[:20] in str(refused.value)


@given(amounts)
def test_what_is_written_reads_back(nano: int) -> None:
    assert parse_usd(format_usd(nano)) == nano
    assert parse_usd(to_decimal(nano)) == nano


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_a_float_is_the_decimal_that_it_prints_as(value: float) -> None:
    exact = Fraction(repr(value)) * NANO
    if exact.denominator == 1:
        assert parse_usd(value) == exact
    else:
        with pytest.raises(ValueError, match="more than 9 decimals"):
            parse_usd(value)


def test_prices_may_have_any_number_of_decimals() -> None:
    assert parse_decimal("0.00000000000025") == Decimal("2.5E-13")


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (5_000_000_000, "$5.00"),
        (12_300_000, "$0.0123"),
        (-10_000_000, "-$0.01"),
        (0, "$0.00"),
        (1, "$0.000000001"),
        (-1, "-$0.000000001"),
        (1_234_567_500_000_000, "$1,234,567.50"),
    ],
)
def test_written_amounts(nano: int, text: str) -> None:
    assert format_usd(nano) == text


@given(st.integers(-(10**25), 10**25))
def test_dollars_are_exact_whatever_the_decimal_context(nano: int) -> None:
    with localcontext(prec=3):
        dollars = to_decimal(nano)
    assert Fraction(dollars) == Fraction(nano, NANO)


@given(amounts)
def test_the_float_is_the_nearest(nano: int) -> None:
    assert to_float(nano) == float(Fraction(nano, NANO))


@given(st.integers(-(10**20), 10**20))
def test_rounding(pico: int) -> None:
    exact = Decimal(pico).scaleb(-3)
    assert round_half_even(pico) == exact.quantize(Decimal(1), ROUND_HALF_EVEN)
    assert round_up(pico) == math.ceil(Fraction(pico, 1000))

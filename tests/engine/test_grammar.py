"""Limits in words."""

import re
from datetime import UTC, timedelta
from typing import Any

import pytest
from hypothesis import given as holds
from hypothesis import strategies as st

from tokenfence_integrations import Budget
from tokenfence_integrations.engine.limits.grammar import Given, given
from tokenfence_integrations.engine.limits.windows import UNITS, Calendar, Interval
from tokenfence_integrations.money import format_usd, parse_usd
from tokenfence_integrations.stores.base import Limits


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("$5", {"usd": 5_000_000_000}),
        ("0.50 USD", {"usd": 500_000_000}),
        ("$1,000.00", {"usd": 1_000_000_000_000}),
        ("50 calls", {"calls": 50}),
        ("1 call", {"calls": 1}),
        ("1,500 calls", {"calls": 1_500}),
        ("2M tokens", {"tokens": 2_000_000}),
        ("1.5M tokens", {"tokens": 1_500_000}),
        ("500k input tokens", {"input_tokens": 500_000}),
        ("500 K output tokens", {"output_tokens": 500_000}),
        ("7 output_tokens", {"output_tokens": 7}),
        ("50 Calls", {"calls": 50}),
        ("2M Input Tokens", {"input_tokens": 2_000_000}),
    ],
)
@pytest.mark.parametrize("window", ["", "/day", " / day", " per day", "/Day", " Per DAY"])
def test_what_is_limited(words: str, limits: dict[str, int], window: str) -> None:
    schedule = Calendar("day", UTC) if window else None
    assert given(words + window, zone=UTC) == (Limits(**limits), schedule, {})


@holds(nano=st.integers(0, 10**15), unit=st.sampled_from(UNITS))
def test_any_amount_for_any_window(nano: int, unit: str) -> None:
    read = given(f"{format_usd(nano)}/{unit}", zone=UTC)
    assert read == (Limits(usd=nano), Calendar(unit, UTC), {})  # type: ignore[arg-type]


@holds(text=st.text(max_size=30))
def test_any_other_text_is_an_error_that_says_what_is_accepted(text: str) -> None:
    try:
        read = given(text, zone=UTC)
    except ValueError as error:
        said = str(error)
    else:
        assert read.limits != Limits()
        return
    assert re.search("accepted are|not a whole number|such as", said)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("$5/fortnight", "'fortnight' is not a window; accepted are minute, hour, day, week"),
        ("$5 per 2", "'2' is not a window"),
        ("1.5 calls", "1.5 is not a whole number"),
        ("$5/day/day", "accepted are"),
        ("-3 calls", "'50 calls per minute'"),
        ("$" + "1" * 100 + "/day", "accepted are"),
    ],
)
def test_what_cannot_be_read(words: str, problem: str) -> None:
    with pytest.raises(ValueError, match="cannot read") as caught:
        Budget(words)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"usd": "$5/day", "per": "month"}, r"one window.*nest two budgets"),
        ({"usd": "50 calls/minute", "calls": 3}, "calls are limited twice"),
        ({"calls": "50/minute"}, r"first argument, Budget\('50 calls/minute'\).*two budgets"),
        ({"usd": 5, "per": "days"}, "per must be one of minute, hour"),
        ({"usd": 5, "per": timedelta(0)}, "whole seconds, 1 or more"),
        ({"usd": 5, "per": timedelta(seconds=1.5)}, "whole seconds, 1 or more"),
        ({"usd": 5, "per": 60}, "or a datetime.timedelta"),
        ({"usd": 5, "tz": "Mars"}, "no time zone 'Mars'"),
        ({"usd": 5, "name": "a~b"}, "without '/' and '~'"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Budget(**options)


def test_numbers_and_windows_as_arguments() -> None:
    read = given(5, calls=3, per=timedelta(hours=5), zone=UTC)
    assert read == (Limits(parse_usd(5), 3), Interval(18_000), {})
    assert given("$5", calls=3, per="week", zone=UTC).schedule == Calendar("week", UTC)
    assert given("$5/day", calls=3, zone=UTC).limits == Limits(parse_usd(5), 3)


@pytest.mark.parametrize("wrong", [{"calls": True}, {"usd": True}, {"usd": ["$1"]}, {"calls": [1]}])
def test_what_equals_something_that_was_read_is_still_looked_at(wrong: dict[str, Any]) -> None:
    assert given(1, calls=1, zone=UTC).limits == Limits(parse_usd(1), 1)
    assert given(1, zone=UTC).limits == given(1.0, zone=UTC).limits
    with pytest.raises(ValueError, match=r"got|cannot read"):
        given(wrong.pop("usd", 1), **wrong, zone=UTC)


def test_budgets_that_are_given_the_same_share_what_was_read_of_it() -> None:
    one, other = (given("$5/day", calls=3, zone=UTC) for _ in range(2))
    assert one is other


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (given("$2.50", calls=1_000, zone=UTC), "usd=$2.50, calls=1,000"),
        (given("20%", zone=UTC), "usd=20%"),
        (given("$5/day", zone=UTC), "usd=$5.00 per day (UTC)"),
        (given(None, tokens=9, per=timedelta(hours=5), zone=UTC), "tokens=9 per 5:00:00"),
        (given(None, zone=UTC), "no limits"),
    ],
)
def test_it_is_told_as_it_was_said(asked: Given, told: str) -> None:
    assert str(asked) == told

"""What an export tells of charges: the truth, or nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfence_integrations.reconcile.exports import Row
from tokenfence_integrations.reconcile.matching import WITHIN, Known, Match, match, same_model
from tokenfence_integrations.stores.base import Amount, Charge
from tokenfence_integrations.usage import Usage

NOON = 1_795_521_600.0
TOMORROW = NOON + 86_400


def price(row: Row) -> int | None:
    """A nano-dollar per token."""
    return None if row.usage is None else row.usage.input_tokens + row.usage.output_tokens


def charge(number: int, at: float, into: int = 1_000, out: int = 1_000) -> Charge:
    return Charge(str(number), ("acme",), Amount(into + out, 1, into, out), at, "gpt-4o")


def row(line: int, at: float, into: int, out: int, **changes: Any) -> Row:
    given = Row(line, "gpt-4o-2024-08-06", at, at, 1, Usage(into, out), None)
    return given._replace(**changes)


def known(at: float, into: int, out: int) -> Known:
    return Known(at, "gpt-4o", Usage(into, out), into + out)


def matched(
    charges: list[Charge], rows: list[Row], knowns: list[Known], now: float = TOMORROW
) -> list[Match]:
    return list(match(charges, rows, knowns, price, now))


def spent(matches: list[Match]) -> list[int | None]:
    return [None if each.spent is None else each.spent.usd for each in matches]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("gpt-4-0613", "gpt-4-0613"),
    ],
)
def test_models_are_the_same_without_maker_and_date(name: str, plain: str) -> None:
    assert same_model(name) == plain


# Single requests


def test_what_the_ledger_does_not_know_is_the_charge_s() -> None:
    rows = [row(2, NOON - 5, 10, 5), row(3, NOON, 20, 7), row(4, NOON + 5, 10, 5)]
    [found] = matched([charge(1, NOON)], rows, [known(NOON, 10, 5), known(NOON + 9, 10, 5)])
    assert (found.spent, found.usage, found.why) == (Amount(27, 1, 20, 7), Usage(20, 7), "line 3")


def test_a_cost_that_the_export_has_counts_more_than_its_tokens() -> None:
    rows = [row(2, NOON, 20, 7, cost=19)]
    assert spent(matched([charge(1, NOON)], rows, [])) == [19]


def test_a_charge_without_a_request_stays_and_is_said_to_be_free_if_the_export_is_complete() -> (
    None
):
    rows = [row(2, NOON - 2 * WITHIN, 1, 1), row(3, NOON + 2 * WITHIN, 1, 1)]
    knowns = [known(each.begin, 1, 1) for each in rows]
    [inside] = matched([charge(1, NOON)], rows, knowns)
    assert inside.spent is None
    assert "--release 1" in inside.why
    [outside] = matched([charge(1, NOON)], rows[:1], knowns[:1])
    assert "does not cover" in outside.why


def test_two_requests_or_two_charges_are_not_told_apart() -> None:
    near = [row(2, NOON, 20, 7), row(3, NOON + 60, 30, 7)]
    [found] = matched([charge(1, NOON)], near, [])
    assert "2 requests in the export" in found.why
    assert spent(matched([charge(1, NOON), charge(2, NOON + 9)], near[:1], [])) == [None, None]
    far = [near[0], row(3, NOON + 4 * WITHIN, 30, 7)]
    both = [charge(1, NOON), charge(2, NOON + 4 * WITHIN)]
    assert spent(matched(both, far, [])) == [27, 37]


def test_requests_of_others_make_nothing_certain() -> None:
    rows = [row(2, NOON, 20, 7), row(3, NOON + 9_000, 9, 9)]
    [found] = matched([charge(1, NOON)], rows, [])
    assert "that the books do not know (line 3)" in found.why


def test_an_export_that_lacks_a_known_call_near_it_is_not_trusted() -> None:
    [found] = matched([charge(1, NOON)], [row(2, NOON, 20, 7)], [known(NOON + 60, 5, 5)])
    assert "lacks a call that the ledger knows" in found.why
    assert spent(
        matched([charge(1, NOON)], [row(2, NOON, 20, 7)], [known(NOON - 9_000, 5, 5)])
    ) == [27]


def test_a_request_that_cost_more_than_the_charge_is_not_its_own() -> None:
    for big in (row(2, NOON, 2_000, 7), row(2, NOON, 7, 2_000), row(2, NOON, 1, 1, cost=9_999)):
        [found] = matched([charge(1, NOON)], [big], [])
        assert "more than it can have cost" in found.why


def test_what_is_young_may_be_in_flight() -> None:
    rows = [row(2, NOON, 20, 7)]
    for minutes, cost in ((10, None), (29, None), (31, 27)):
        assert spent(matched([charge(1, NOON)], rows, [], NOON + 60 * minutes)) == [cost]


def test_a_resolved_charge_takes_its_request_with_it() -> None:
    rows = [row(2, NOON, 20, 7)]
    resolved = Known(NOON, "gpt-4o", None, 27)
    assert spent(matched([charge(2, NOON + 5)], rows, [resolved])) == [None]


def test_models_are_matched_apart() -> None:
    rows = [row(2, NOON, 20, 7, model="gpt-4o-mini")]
    [found] = matched([charge(1, NOON)], rows, [])
    assert "nothing of its model" in found.why


def test_a_model_that_tokens_do_not_price_stays() -> None:
    rows = [row(2, NOON, 20, 7)]
    [found] = match([charge(1, NOON)], rows, [], lambda row: None, TOMORROW)
    assert found.spent is None
    assert "do not tell the cost of gpt-4o-2024-08-06" in found.why


@settings(max_examples=400, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(["settled", "billed", "free"]),
            st.floats(0, 20_000),  # seconds from its beginning to that of the first
            st.floats(0, WITHIN / 2),  # seconds that it took
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        max_size=7,
    ),
    cut=st.floats(-1_000, 21_000),
    sums=st.sampled_from([0, 60, 3_600, 86_400]),
    counted=st.booleans(),
)
def test_whatever_is_settled_is_settled_by_the_truth(
    calls: list[tuple[str, float, float, int, int]], cut: float, sums: int, counted: bool
) -> None:
    """Calls that were settled, lost, or never sent; and an export of them that may end early."""
    charges, knowns, truth, made = [], [], {}, []
    for number, (kind, begin, took, into, out) in enumerate(calls):
        at = NOON + begin
        if kind == "settled":
            knowns.append(known(at + took, into, out))
        else:
            charges.append(charge(number, at))
            truth[str(number)] = into + out if kind == "billed" else None
        if kind != "free" and begin <= cut:
            made.append((at + took / 2, into, out))
    if sums:
        rows = _added_up(made, sums, counted)
    else:
        rows = [row(n, *each) for n, each in enumerate(made)]
    for found in matched(charges, rows, knowns):
        if found.spent is not None:
            assert found.spent.usd == truth[found.charge.id]


def _added_up(made: list[tuple[float, int, int]], width: int, counted: bool) -> list[Row]:
    rows: dict[float, Row] = {}
    for at, into, out in made:
        begin = at // width * width
        before = rows.get(begin) or Row(len(rows), "gpt-4o", begin, begin + width, 0, Usage(), None)
        rows[begin] = before._replace(
            requests=(before.requests or 0) + 1, usage=(before.usage or Usage()) + Usage(into, out)
        )
    return [each if counted else each._replace(requests=None) for each in rows.values()]


# Sums


def hour(line: int, begin: float, requests: int | None, into: int, out: int, **more: Any) -> Row:
    given = row(line, begin, into, out, requests=requests, end=begin + 3_600)
    return given._replace(**more)


HOURS = [hour(2, NOON - 3_600, 0, 0, 0), hour(3, NOON, 3, 60, 9), hour(4, NOON + 3_600, 0, 0, 0)]
CALLS = [known(NOON + 60, 10, 1), known(NOON + 90, 30, 2)]


def test_what_the_ledger_leaves_of_a_sum_is_the_one_charge_s() -> None:
    [found] = matched([charge(1, NOON + 30)], HOURS, CALLS)
    assert found.spent == Amount(26, 1, 20, 6)


def test_a_sum_without_a_number_of_requests_tells_it_by_its_tokens() -> None:
    rows = [each._replace(requests=None) for each in HOURS]
    assert spent(matched([charge(1, NOON + 30)], rows, CALLS)) == [26]


@pytest.mark.parametrize(
    ("rows", "charges", "calls", "why"),
    [
        (HOURS, [charge(1, NOON + 30), charge(2, NOON + 40)], CALLS, "2 charges may be in the"),
        (HOURS, [charge(1, NOON + 30)], CALLS[:1], "more than one request is left"),
        (HOURS, [charge(1, NOON + 30)], [*CALLS, CALLS[0]], "no request is left"),
        (HOURS[1:], [charge(1, NOON + 30)], CALLS, "export a longer time"),
        (
            [HOURS[0], HOURS[1]._replace(tier="flex"), HOURS[2]],
            [charge(1, NOON + 30)],
            CALLS,
            "different prices",
        ),
        (
            [each._replace(requests=None) for each in HOURS],
            [charge(1, NOON + 30)],
            [*CALLS, known(NOON + 99, 20, 6)],
            "no more tokens",
        ),
        (
            [each._replace(usage=None, cost=9) for each in HOURS],
            [charge(1, NOON + 30)],
            CALLS,
            "tokens of some are not known",
        ),
    ],
)
def test_a_sum_that_may_be_of_anything_else_settles_nothing(
    rows: list[Row], charges: list[Charge], calls: list[Known], why: str
) -> None:
    found = matched(charges, rows, calls)
    assert spent(found) == [None] * len(charges)
    assert why in found[0].why

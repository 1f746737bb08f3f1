"""The race, run small: what must hold at any size, and that a guard that fails is seen to fail."""

from dataclasses import replace

import openai
import pytest

from benchmarks import race
from benchmarks.crowd import Tasks
from benchmarks.race import BARE, CONDITIONS, OURS, Result
from tokenfence_integrations.testing import Behavior, SimulatedProvider


def test_there_are_eleven_conditions_two_of_them_in_two_forms() -> None:
    assert len({condition.name for condition in CONDITIONS}) == 11 + 2


@pytest.mark.parametrize(
    "condition",
    [condition for condition in CONDITIONS if condition.knowable],
    ids=lambda condition: condition.name,
)
def test_ours_never_overspends_and_its_books_are_the_bill(condition: race.Condition) -> None:
    (result,) = race.race([condition], [OURS], calls=8)
    assert result.bill <= result.budget
    assert result.books == result.bill
    assert result.holds


def test_what_nobody_can_know_is_never_booked_below_the_bill() -> None:
    timeout, cancelled, dropped = (c for c in CONDITIONS if not c.knowable)
    hasty = replace(timeout, options={"timeout": 0.3})
    stopped = replace(cancelled, cancel_after=0.3)
    for result in race.race([hasty, stopped, dropped], [OURS], calls=6):
        assert 0 < result.bill <= result.budget
        assert result.books is not None
        assert result.books >= result.bill
        assert result.holds


def test_bare_calls_all_land() -> None:
    (result,) = race.race(CONDITIONS[:1], [BARE], calls=8)
    assert (result.landed, result.bill) == (8, 2 * result.budget)
    assert not result.holds


@pytest.mark.parametrize(
    ("bill", "books", "knowable", "holds"),
    [
        (100, 100, True, True),
        (101, 101, True, False),
        (90, 91, True, False),
        (90, 91, False, True),
        (90, 89, False, False),
        (90, None, False, False),
        (0, 0, True, True),
    ],
)
def test_a_result_holds_within_the_budget_and_with_true_books(
    bill: int, books: int | None, knowable: bool, holds: bool
) -> None:
    result = Result("gather", "ours", 1, bill, 100, books, knowable)
    assert result.holds is holds
    verdict = "pass" if holds else "FAIL"
    assert verdict in race.results_table([result], 100)


def test_a_call_that_ends_in_no_expected_way_is_a_mistake() -> None:
    broken = replace(CONDITIONS[0], answer=Behavior(status=500))
    with (
        SimulatedProvider() as provider,
        Tasks(provider.base_url) as tasks,
        pytest.raises(openai.InternalServerError),
    ):
        race.run(provider, tasks, broken, BARE, budget=1, calls=2)

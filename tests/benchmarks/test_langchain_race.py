"""The race in LangChain, run small: what must hold at any size, and that others fail it."""

import pytest

from benchmarks.langchain_race import CONTENDERS, WAYS, race
from benchmarks.layers import Contender, Way

OURS = [contender for contender in CONTENDERS if contender.name.startswith("ours")]
BARE, CHECKED = CONTENDERS[:2]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_ours_never_overspends_and_its_books_are_the_bill(way: Way) -> None:
    results = list(race([way], OURS, calls=8))

    assert results
    for result in results:
        assert 0 < result.bill <= result.budget
        assert result.books == result.bill
        assert result.holds


def test_bare_calls_all_land() -> None:
    (result,) = race(WAYS[:1], [BARE], calls=8)
    assert (result.landed, result.bill) == (8, 2 * result.budget)
    assert not result.holds


def test_calls_that_are_charged_at_their_end_all_land() -> None:
    (result,) = race(WAYS[:1], [CHECKED], calls=8)
    assert (result.landed, result.books) == (8, 2 * result.budget)
    assert not result.holds


def test_a_call_that_ends_in_no_expected_way_is_a_mistake() -> None:
    def broken(*_: object) -> list[object]:
        return [ValueError("broken")]

    with pytest.raises(ValueError, match="broken"):
        next(race([Way("broken", broken)], [BARE], calls=1))


def test_what_agents_alone_have_meets_agents_alone() -> None:
    middleware = Contender("ours: middleware", CONTENDERS[0].setup, agents_only=True)
    results = list(race(WAYS, [middleware], calls=1))
    assert [result.condition for result in results] == [way.name for way in WAYS if way.agents]

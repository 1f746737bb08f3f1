"""The race in LlamaIndex, run small: what must hold at any size, and that others fail it."""

import pytest

from benchmarks.layers import Way
from benchmarks.llama_index_race import CONTENDERS, WAYS, race

# Of LlamaIndex's workflows, which look at every attribute of an agent.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

OURS = [contender for contender in CONTENDERS if contender.name.startswith("ours")]
BARE, COUNTING, CHECKED = CONTENDERS[:3]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_ours_never_overspends_and_its_books_are_the_bill(way: Way) -> None:
    results = list(race([way], OURS, calls=8))

    assert results
    for result in results:
        assert 0 < result.bill <= result.budget
        assert result.books == result.bill
        assert result.holds


@pytest.mark.parametrize("way", WAYS[:4], ids=lambda way: way.name)
def test_a_guarded_llm_lets_as_many_calls_land_as_the_budget_is_for(way: Way) -> None:
    for result in race([way], OURS[1:], calls=8):  # in the agents, and by the handler, fewer do
        assert (result.landed, result.bill) == (4, result.budget)


def test_bare_calls_all_land() -> None:
    (result,) = race(WAYS[:1], [BARE], calls=8)
    assert (result.landed, result.bill) == (8, 2 * result.budget)
    assert not result.holds


def test_calls_that_are_counted_at_their_end_all_land() -> None:
    for contender in (COUNTING, CHECKED):
        (result,) = race(WAYS[:1], [contender], calls=8)
        assert (result.landed, result.books) == (8, 2 * result.budget)
        assert not result.holds

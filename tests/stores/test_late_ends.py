"""The true end of a call whose lease was over, when its own account is gone by then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.helpers import charged, nano, reserve, small, spend
from tests.stores.places import PLACES, Place
from tokenfence_integrations import Budget, Call, Usage
from tokenfence_integrations.stores.base import Drop


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


ENDS: dict[str, tuple[Callable[[Call], object], tuple[int, int, int]]] = {
    "settled": (lambda call: call.settle(Usage(0, 25)), (25, 0, 0)),
    "released": (lambda call: call.release(), (0, 0, 0)),
    "uncertain": (lambda call: call.lose(), (0, 0, 40)),
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_it_is_booked_above_the_account_that_was_dropped(place: Place, end: str) -> None:
    ours = place.store()
    team = small(100, name=place.name, store=ours)
    leaf = team.child("leaf", nano(50))
    call = reserve(leaf, 40).admit()
    place.lapse()
    theirs = place.store()
    seen = Budget(name=place.name, store=theirs)
    assert charged(seen) == (0, 0, 40)
    assert theirs.execute(Drop(leaf.name)).done
    # Of an account of its own that is dropped, this process has forgotten all it knew of paths.
    passing = Budget(parent=team, kept=False)
    passing.record(0)
    del passing
    assert team.calls == 2

    how, expected = ENDS[end]
    how(call)
    assert charged(team) == charged(seen) == expected
    assert [charge.amount.usd for charge in seen.charges()] == [expected[2]] * bool(expected[2])
    spend(team, 100 - sum(expected))
    assert charged(team) == charged(seen) == (100 - expected[2], 0, expected[2])


def test_whoever_reads_the_budget_has_sent_what_was_noted_before(place: Place) -> None:
    # So a function that is frozen when it has returned leaves nothing unsaid (docs/deploying.md).
    budget = small(1_000, name=place.name, store=place.store())
    other = small(1_000, name=place.name, store=place.store())
    for number in range(1, 21):
        spend(budget, 10)
        assert budget.spent > 0
        assert charged(other) == (number * 10, 0, 0)

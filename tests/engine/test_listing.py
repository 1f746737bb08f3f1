"""Listing the budgets of a store, whichever it is."""

from collections.abc import Sequence

import pytest

from tests.engine.helpers import nano, reserve, spend
from tests.stores.factories import STORES
from tokenfence_integrations import Budget
from tokenfence_integrations.engine.listing import listed, remaining
from tokenfence_integrations.stores.base import UNLIMITED, Command, Drop, Limits, Open, Read, Reply
from tokenfence_integrations.stores.memory import MemoryStore


@pytest.mark.parametrize("kind", sorted(STORES))
def test_what_is_used_of_each_budget(kind: str) -> None:
    store = STORES[kind]()
    team = Budget(nano(1_000), name="team", store=store)
    writer = team.child("writer", "50%", calls=7)
    spend(writer, 40)
    with reserve(writer, 30):
        pass  # nobody says what it cost
    in_flight = reserve(team, 100)
    in_flight.admit()
    loose = team.child("loose", nano(10), overflow=True)
    spend(loose, 20)
    spend(Budget(name="other", store=store), 5)
    found = {each.budget: each for each in listed(store)}
    assert [*found] == ["other", "team", "team/loose", "team/writer"]
    assert found["team"].state.limits == Limits(1_000)
    assert found["team/writer"].state.limits == Limits(500, 7)
    assert found["team/loose"].state.limits == found["other"].state.limits == UNLIMITED
    used = {name: (each.state.spent_usd, each.state.uncertain_usd) for name, each in found.items()}
    assert used == {
        "other": (5, 0),
        "team": (60, 30),
        "team/loose": (20, 0),
        "team/writer": (40, 30),
    }
    assert remaining(found["team/writer"].state) == Limits(430, 5)
    if kind != "sliced":  # which holds more than its calls in flight
        assert remaining(found["team"].state) == Limits(810)
    assert [each.budget for each in listed(store, "team/writer")] == ["team/writer"]
    assert listed(store, "teams") == []


def test_what_passes_a_limit_leaves_nothing() -> None:
    budget = Budget(nano(100), name="team", store=MemoryStore())
    budget.record(nano(150))
    [found] = listed(budget._tree.store)
    assert remaining(found.state) == Limits(0)


def test_an_account_that_is_dropped_meanwhile_is_left_out() -> None:
    class Dropping(MemoryStore):
        def execute_all(self, commands: Sequence[Command]) -> list[Reply]:
            self.execute(Drop("b"))
            return super().execute_all(commands)

    store = Dropping()
    for name in "abc":
        store.execute(Open(name, UNLIMITED))
    assert [each.budget for each in listed(store)] == ["a", "c"]
    with pytest.raises(KeyError):
        store.execute(Read(("b",)))

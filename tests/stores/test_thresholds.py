"""Thresholds are told of by the call that crosses them, on every store, whoever has spent."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import listen, nano, reserve, small, spend
from tests.stores.factories import STORES
from tests.stores.places import PLACES, Place
from tokenfence_integrations import Event
from tokenfence_integrations.stores.base import Amount, End, Limits, Open, Read, Reserve, Store
from tokenfence_integrations.stores.remote import RemoteStore


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


def crossed(events: list[Event]) -> list[tuple[str, float]]:
    found = [(e.budget, round(e.ratio, 9)) for e in events if e.kind == "threshold_crossed"]
    events.clear()
    return found


def test_after_a_reset_by_calls_and_by_records(store: Store) -> None:
    budget = small(100, name="acme", store=store)
    events = listen(budget)
    spend(budget, 85)
    budget.reset()
    spend(budget, 80)
    budget.reset()
    budget.record(nano(90))
    assert crossed(events) == [("acme", 0.85), ("acme", 0.8), ("acme", 0.9)]


def test_a_reset_forgets_no_call_in_flight(store: Store) -> None:
    budget = small(100, name="acme", store=store)
    events = listen(budget)
    spend(budget, 50)
    held = reserve(budget, 40).admit()
    budget.reset()
    held.lose()
    assert crossed(events) == []
    spend(budget, 45)
    assert crossed(events) == [("acme", 0.85)]


def test_of_every_budget_that_a_resolved_charge_was_in(store: Store) -> None:
    team = small(100, name="acme", store=store)
    writer, other = team.child("writer", nano(100)), team.child("other", nano(10))
    events = listen(team)
    spend(other, 9)
    reserve(writer, 85).admit().lose()
    assert crossed(events) == [("acme/other", 0.9), ("acme/writer", 0.85), ("acme", 0.94)]
    assert team.resolve(team.charges()[0], nano(5))
    spend(writer, 76)
    assert crossed(events) == [("acme/writer", 0.81), ("acme", 0.9)]


def test_what_another_process_has_spent_counts_in_the_very_next_call(place: Place) -> None:
    here, there = (small(1_000, name=place.name, store=place.store()) for _ in range(2))
    events = listen(here)
    spend(here, 10)
    spend(there, 700)
    assert there.spent  # it is written
    spend(here, 100)
    assert crossed(events) == [(place.name, 0.81)]


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_nothing_counts_twice_while_its_answer_is_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = STORES[kind]()
    assert isinstance(store, RemoteStore)
    path = ("acme",)
    store.execute(Open("acme", Limits(usd=1_000)))
    for key in range(3):
        store.execute(Reserve(path, key, Amount(usd=9)))
    seen: list[int] = []

    class Slowly(list[Any]):
        """Answers, between which somebody looks."""

        def __iter__(self) -> Any:
            for outcome in super().__iter__():
                yield outcome
                states = store.peek(path)
                seen.append(-1 if states is None else states[0].spent_usd)

    exchange = store._wire.exchange
    monkeypatch.setattr(store._wire, "exchange", lambda batch: Slowly(exchange(batch)))
    for key in range(3):
        store.execute(End(path, key, Amount(usd=5), Amount()))
    assert store.execute(Read(path)).states[0].spent_usd == 15
    assert seen == sorted(seen)
    assert set(seen) <= {5, 10, 15}


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_what_others_have_spent_comes_along_with_the_reservation(
    kind: str, listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same round trip, and only where somebody listens."""
    store = STORES[kind]()
    assert isinstance(store, RemoteStore)
    budget = small(100, name="acme", store=store)
    if listens:
        listen(budget)
    assert budget.spent == 0  # it is opened
    batches: list[list[str]] = []
    exchange = store._wire.exchange

    def counted(batch: Any) -> Any:
        batches.append([type(order.command).__name__ for order in batch.orders])
        return exchange(batch)

    monkeypatch.setattr(store._wire, "exchange", counted)
    call = reserve(budget, 10).admit()
    assert batches == [["Read", "Reserve"] if listens else ["Reserve"]]
    call.release()

"""Uncertain charges of a budget: listed, and replaced by the truth once, in books and ledger."""

import threading
from typing import Any

import pytest

from tests.engine.helpers import BOOK, charged, listen, nano, reserve, small, spend
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, UnknownModelError, Usage
from tokenfence_integrations.stores.base import Amount, Charge


@pytest.fixture(params=sorted(STORES))
def budget(request: pytest.FixtureRequest) -> Budget:
    return small(1_000, name="team", store=STORES[request.param]())


def lose(budget: Budget, size: int, **options: Any) -> Charge:
    """The charge of a call of unknown outcome."""
    before = budget.charges()
    reserve(budget, size, **options).admit().lose()
    [charge] = [charge for charge in budget.charges() if charge not in before]
    return charge


def sums(budget: Budget) -> tuple[int, int]:
    """Spent and uncertain, by the ledger."""
    return budget._tree.ledger.total(budget.name)


def test_a_budget_lists_what_is_uncertain_in_it_and_below(budget: Budget) -> None:
    writer, other = budget.child("writer"), budget.child("other")
    spend(writer, 10)
    first = lose(writer, 20, input_tokens=5)
    second = lose(budget, 30, model="mini")
    assert budget.charges() == (first, second)
    assert writer.charges() == (first,)
    assert other.charges() == ()
    assert (first.path, first.what) == (("team/writer", "team"), "model")
    assert first.amount == Amount(25, 1, 5, 20)
    assert (second.path, second.what) == (("team",), "mini")


def test_a_fallback_is_what_the_charge_was_for(budget: Budget) -> None:
    spend(budget, 900)
    assert lose(budget, 500, fallback="mini").what == "mini"


def test_a_charge_reads_well() -> None:
    charge = Charge("7", ("team/writer", "team"), Amount(4_200_000), 1_795_512_600.0, "gpt-4o")
    assert str(charge) == "7: $0.0042 for gpt-4o on team/writer, 2026-11-24 09:30:00 UTC"


@pytest.mark.parametrize(
    ("truth", "spent"),
    [
        (nano(12), Amount(12, 1, 5, 20)),
        (0, Amount()),
        (Usage(4, 9), Amount(13, 1, 4, 9)),
        (Usage(), Amount(0, 1, 0, 0)),
    ],
)
def test_the_truth_replaces_a_charge_once(budget: Budget, truth: Any, spent: Amount) -> None:
    writer = budget.child("writer", nano(500))
    charge = lose(writer, 20, input_tokens=5)
    assert budget.resolve(charge, truth, prices=BOOK)
    for _ in range(2):
        for each in (writer, budget):
            now = each.snapshot()
            assert (now.spent, now.reserved, now.uncertain) == (spent, Amount(), Amount())
            assert sums(each) == (spent.usd, 0)
        assert not budget.resolve(charge, nano(99))
        assert not writer.resolve(charge, nano(99))
    record = budget.ledger[-1]
    assert record.outcome == "resolved"
    assert (record.cost, record.uncertain) == (spent.usd, -25)
    assert (record.accounts, record.model) == (charge.path, "model")
    assert record.usage == (truth if isinstance(truth, Usage) else None)
    assert record.tags == {"charge": charge.id, "at": charge.at}


def test_a_charge_of_another_budget_is_left_alone(budget: Budget) -> None:
    writer, other = budget.child("writer"), budget.child("other")
    charge = lose(writer, 20)
    assert not other.resolve(charge, 0)
    assert charged(writer) == (0, 0, 20)


def test_what_was_reset_below_is_resolved_above_alone(budget: Budget) -> None:
    writer = budget.child("writer")
    charge = lose(writer, 20)
    writer.reset()
    assert writer.charges() == ()
    assert not writer.resolve(charge, nano(7))
    assert budget.resolve(charge, nano(7))
    assert (charged(writer), sums(writer)) == ((0, 0, 0), (0, 0))
    assert (charged(budget), sums(budget)) == ((7, 0, 0), (7, 0))


def test_more_than_was_charged_is_the_truth_too(budget: Budget) -> None:
    assert budget.resolve(lose(budget, 20), nano(2_000))
    assert charged(budget) == (2_000, 0, 0)
    assert budget.budget_exceeded


@pytest.mark.parametrize("truth", ["-1", "a lot", Usage(-1, 2)])
def test_what_is_no_amount_changes_nothing(budget: Budget, truth: Any) -> None:
    charge = lose(budget, 20)
    with pytest.raises(ValueError, match=r"cannot read|usage"):
        budget.resolve(charge, truth, prices=BOOK)
    with pytest.raises(UnknownModelError, match="'model'"):
        budget.resolve(charge, Usage(1, 1))
    assert charged(budget) == (0, 0, 20)


def test_listeners_hear_of_it(budget: Budget) -> None:
    writer = budget.child("writer")
    charge = lose(writer, 20)
    events, others = listen(budget), listen(budget.child("other"))
    writer.resolve(charge, nano(7))
    [event] = events
    assert (event.kind, event.budget, event.model) == ("resolved", "team/writer", "model")
    assert (event.bound, event.cost, event.tags) == (20, 7, {"charge": charge.id, "at": charge.at})
    assert others == []


def test_the_threshold_is_told_again_after_a_charge_has_fallen_below_it(budget: Budget) -> None:
    events = listen(budget)
    charge = lose(budget, 900)
    spend(budget, 1)
    budget.resolve(charge, nano(9))
    spend(budget, 900)
    crossed = [event for event in events if event.kind == "threshold_crossed"]
    assert len(crossed) == 2


def test_calls_that_wait_look_again(budget: Budget) -> None:
    charge = lose(budget, 300)
    in_flight = reserve(budget, 400).admit()
    waiting = threading.Thread(target=spend, args=(budget, 550))
    waiting.start()
    while not any(waiter.blocked for waiter in budget._tree.line.waiting.copy()):
        waiting.join(0.001)
        assert waiting.is_alive()
    budget.resolve(charge, nano(50))
    waiting.join(20)
    assert not waiting.is_alive()
    assert charged(budget) == (600, 400, 0)
    in_flight.release()

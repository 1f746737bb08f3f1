"""The ledger: a ring, a sink, and a sum that stays the budget's spent."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, charged, nano, reserve, small, spend
from tokenfence_integrations import Budget, LedgerRecord, Usage


def test_one_record_per_attempt() -> None:
    budget = small(1_000, name="team", clock=FakeClock(5.0).clock).child("a")
    with reserve(budget, None, input_tokens=10, tags={"user": 7}) as call:
        call.settle(Usage(8, 5, cached_tokens=3), truncated=True)
    [record] = budget.ledger
    assert record == LedgerRecord(
        at=5.0,
        call=record.call,
        accounts=("team/a", "team"),
        model_asked="model",
        model="model",
        outcome="settled",
        usage=Usage(8, 5, cached_tokens=3),
        cost=13,
        uncertain=0,
        bound=1_000,
        cap=990,
        truncated=True,
        waited=0.0,
        tags={"user": 7},
    )
    assert record.budget == "team/a"


def test_a_budget_sees_its_own_records_and_those_below() -> None:
    root = small(1_000)
    one, other = root.child("one"), root.child("other")
    for budget, size in ((one, 1), (other, 2), (root, 4)):
        spend(budget, size)
    assert [[r.cost for r in b.ledger] for b in (root, one, other)] == [[1, 2, 4], [1], [2]]
    assert [b.ledger.total for b in (root, one, other)] == [7, 1, 2]
    assert [len(b.ledger) for b in (root, one, other)] == [3, 1, 1]
    assert root.ledger[-1].cost == 4


def test_a_child_whose_name_begins_alike_is_another() -> None:
    root = small(1_000)
    spend(root.child("team"), 1)
    spend(root.child("team2"), 2)
    assert root.child("team").ledger.total == 1


@pytest.mark.parametrize("size", [0, 1, 5])
def test_the_sum_outlives_the_records(size: int) -> None:
    root = small(10_000, ledger_size=size)
    child = root.child("child")
    for number in range(1, 301):
        spend(child if number % 2 else root, 1 + number % 2)
    child.record(nano(100))
    reserve(child, 50).admit().lose()
    assert len(root.ledger) == size
    assert root.ledger.total == charged(root)[0] == 150 + 300 + 100
    assert child.ledger.total == charged(child)[0] == 300 + 100
    child.reset()
    assert (root.ledger.total, child.ledger.total) == (550, 0)
    assert root._tree.ledger.total(root.name) == (550, 50)


def test_a_ledger_of_negative_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="ledger_size must be 0 or more"):
        Budget(1, ledger_size=-1)


def test_a_sink_gets_every_record() -> None:
    kept: list[LedgerRecord] = []
    budget = small(1_000, ledger_size=2, sink=kept.append)
    for number in range(1, 6):
        spend(budget, number)
    assert [record.cost for record in kept] == [1, 2, 3, 4, 5]
    assert list(budget.ledger) == kept[-2:]


def test_a_sink_that_fails_breaks_no_call(caplog: pytest.LogCaptureFixture) -> None:
    def full(record: LedgerRecord) -> None:
        raise OSError("disk full")

    budget = small(100, sink=full)
    assert spend(budget, 5).outcome == "settled"
    assert charged(budget) == (5, 0, 0)
    assert "disk full" in caplog.text


class Interrupted(dict[Any, Any]):
    """The sums of a ledger, of which each look is interrupted by a finalizer once."""

    def __init__(self, finalizer: Callable[[], object]) -> None:
        self._finalizers = [finalizer]

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        if self._finalizers:
            self._finalizers.pop()()
        return found


def test_the_sum_is_exact_when_a_finalizer_ends_a_call_while_a_record_leaves() -> None:
    budget = small(1_000, ledger_size=0)
    abandoned = reserve(budget, 20).admit()
    budget._tree.ledger._left = Interrupted(lambda: abandoned.settle(Usage(0, 7)))
    for _ in range(100):
        spend(budget, 5)
    assert abandoned.outcome == "settled"
    assert budget.ledger.total == charged(budget)[0] == 507
    assert len(budget.ledger) == 0


@pytest.mark.usefixtures("threads_take_turns_often")
def test_the_sum_is_exact_while_threads_push_records_out() -> None:
    budget = small(10**9, ledger_size=3)
    together = threading.Barrier(4)
    fell: list[int] = []

    def work() -> None:
        together.wait()
        for _ in range(400):
            spend(budget, 1)

    def watch() -> None:
        together.wait()
        last = 0
        for _ in range(200):
            total = budget.ledger.total
            if total < last:
                fell.append(total)
            last = total

    threads = [threading.Thread(target=target) for target in (work, work, work, watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.ledger.total == charged(budget)[0] == 1_200
    assert not fell


def test_a_record_and_an_event_tell_dollars_too() -> None:
    budget = Budget("$1", name="team")
    heard: list[float] = []
    budget.on_event(lambda event: event.kind == "settled" and heard.append(event.cost_usd))
    with budget.reserve(model="gpt-4o", input_tokens=1_000, max_output_tokens=100) as call:
        call.settle(Usage(1_000, 100))
    # https://platform.openai.com/docs/pricing: $2.50 in, $10 out
    assert heard == [0.0035] == [record.cost_usd for record in budget.ledger] == [call.cost_usd]


def test_it_shows_whose_it_is() -> None:
    budget = Budget("$1", name="team")
    with budget.reserve(model="gpt-4o", input_tokens=1_000, max_output_tokens=100) as call:
        call.settle(Usage(1_000, 100))
    assert repr(budget.ledger) == "<Ledger of team: 1 records, $0.0035 in all>"

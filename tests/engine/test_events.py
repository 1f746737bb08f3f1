"""Events: each kind, in order, with its numbers; and listeners that fail."""

import asyncio
import gc

import pytest

from tests.engine.helpers import FakeClock, listen, nano, reserve, small, spend
from tokenfence_integrations import BudgetExceeded, Event, Usage


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_admitted_and_settled() -> None:
    budget = small(100, name="team", clock=FakeClock(5.0).clock)
    events = listen(budget)
    with reserve(budget, 20, input_tokens=10, tags={"user": 7}) as call:
        call.settle(Usage(8, 5))
    admitted, settled = events
    assert admitted == Event(
        kind="admitted",
        budget="team",
        call=admitted.call,
        at=5.0,
        model_asked="model",
        model="model",
        bound=30,
        tags={"user": 7},
    )
    assert admitted.call > 0
    assert settled == Event(
        kind="settled",
        budget="team",
        call=admitted.call,
        at=5.0,
        model_asked="model",
        model="model",
        bound=30,
        cost=13,
        usage=Usage(8, 5),
        tags={"user": 7},
    )


def test_released_and_uncertain() -> None:
    budget = small(100)
    events = listen(budget)
    reserve(budget, 20).admit().release()
    reserve(budget, 20).admit().lose()
    assert [(e.kind, e.cost) for e in events if e.kind != "admitted"] == [
        ("released", 0),
        ("uncertain", 20),
    ]


def test_downgraded_capped_and_admitted() -> None:
    budget = small(100)
    spend(budget, 90)
    events = listen(budget)
    with reserve(budget, 500, fallback="mini", min_output_tokens=16) as call:
        call.release()
    assert kinds(events[:4]) == ["downgraded", "capped", "admitted", "released"]
    assert {(e.model_asked, e.model, e.cap, e.bound) for e in events[:4]} == {
        ("model", "mini", 100, 10)
    }


async def test_waited() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    held = await asyncio.create_task(reserve(budget, 100).aadmit())
    events = listen(budget)
    task = asyncio.create_task(reserve(budget, 100).aadmit())
    for _ in range(100):  # until it waits
        await asyncio.sleep(0)
    clock.advance(3)
    held.release()
    call = await task
    assert [(e.kind, e.waited) for e in events] == [
        ("released", 0.0),
        ("waited", 3.0),
        ("admitted", 3.0),
    ]
    call.release()


def test_refused() -> None:
    budget = small(10)
    events = listen(budget)
    with pytest.raises(BudgetExceeded):
        reserve(budget, 50).admit()
    assert [(e.kind, e.call, e.bound) for e in events] == [("refused", 0, 50)]


def test_bound_exceeded() -> None:
    budget = small(100)
    events = listen(budget)
    with reserve(budget, 20) as call:
        call.settle(Usage(0, 30))
    assert [(e.kind, e.bound, e.cost) for e in events if e.kind == "bound_exceeded"] == [
        ("bound_exceeded", 20, 30)
    ]


def test_each_threshold_of_the_path_is_crossed_once() -> None:
    root = small(200, name="root")
    child = root.child("child", nano(100))
    events = listen(root)
    for _ in range(3):
        spend(child, 30)
    reserve(root, 80).admit().lose()
    spend(root, 1)
    crossed = [(e.budget, e.ratio, e.call) for e in events if e.kind == "threshold_crossed"]
    assert crossed == [("root/child", 0.9, 0), ("root", 0.85, 0)]


def test_a_threshold_can_be_crossed_again_after_a_top_up_or_a_reset() -> None:
    budget = small(100)
    events = listen(budget)
    spend(budget, 80)
    budget.top_up(nano(100))
    spend(budget, 80)
    budget.reset()
    spend(budget, 160)
    assert [e.ratio for e in events if e.kind == "threshold_crossed"] == [0.8, 0.8, 0.8]


def test_recorded_money_crosses_it_too() -> None:
    budget = small(100)
    events = listen(budget)
    budget.record(nano(80))
    assert kinds(events) == ["threshold_crossed"]


def test_an_abandoned_call_is_told() -> None:
    budget = small(100)
    events = listen(budget)
    reserve(budget, 20).admit()
    gc.collect()
    assert budget.uncertain
    assert kinds(events) == ["admitted", "uncertain"]


def test_a_listener_that_raises_is_logged_and_hinders_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budget = small(100)

    def broken(event: Event) -> None:
        raise ZeroDivisionError(event.kind)

    budget.on_event(broken)
    events = listen(budget)
    spend(budget, 5)
    assert kinds(events) == ["admitted", "settled"]
    assert budget.ledger.total == 5
    assert "failed on event 'admitted'" in caplog.text
    assert {record.name for record in caplog.records} == {"tokenfence"}


def test_prompts_and_answers_are_no_part_of_an_event() -> None:
    assert set(Event.__slots__) == {
        "at",
        "bound",
        "budget",
        "call",
        "cap",
        "cost",
        "kind",
        "model",
        "model_asked",
        "ratio",
        "tags",
        "usage",
        "waited",
    }


def test_a_listener_has_to_be_a_function() -> None:
    with pytest.raises(TypeError, match="a listener must be a function of an Event, got 'print'"):
        small(100).on_event("print")  # type: ignore[arg-type]

"""Calls that find a window full: refused, or waiting for the next one."""

import asyncio
import pickle
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, nano, reserve, spend
from tests.engine.waiters import Asleep, Worker, idle
from tests.engine.window_budgets import BERLIN, HOUR, at, daily
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Usage
from tokenfence_integrations.engine.calls.admitting import Admission
from tokenfence_integrations.engine.drivers import Sleep
from tokenfence_integrations.engine.tree import Clock
from tokenfence_integrations.engine.waiting import PATIENCE, STALLED_AFTER, SyncWaiter
from tokenfence_integrations.stores.base import Reply, Store


@pytest.fixture
def clock() -> FakeClock:
    return at("2026-11-24T10:00")


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


def test_a_refusal_tells_when_the_next_window_opens(clock: FakeClock) -> None:
    budget = daily(100, clock, tz="Europe/Berlin")
    spend(budget, 60)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, 60, wait=5)
    refusal = caught.value
    assert refusal.waited == 0, "there is nothing to wait for"
    assert refusal.retry_after == 13 * HOUR
    assert refusal.window_ends == datetime(2026, 11, 25, tzinfo=BERLIN)
    assert "The next window opens in 13 h 0 min, at 2026-11-25 00:00:00+01:00." in str(refusal)
    again = pickle.loads(pickle.dumps(refusal))
    assert (again.retry_after, again.window_ends) == (refusal.retry_after, refusal.window_ends)
    assert str(again) == str(refusal)


def test_what_no_window_has_room_for_is_not_to_be_tried_again(clock: FakeClock) -> None:
    budget = daily(100, clock)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, 101)
    assert (caught.value.retry_after, caught.value.window_ends) == (None, None)
    assert "window" not in str(caught.value)


def test_of_two_windows_that_are_short_the_later_counts(clock: FakeClock) -> None:
    month = Budget(nano(100), per="month", clock=clock.clock)
    day = month.child("daily", nano(90), per="day")
    spend(day, 80)
    for size, ends in (
        (15, datetime(2026, 11, 25, tzinfo=UTC)),
        (30, datetime(2026, 12, 1, tzinfo=UTC)),
    ):
        with pytest.raises(BudgetExceeded) as caught:
            spend(day, size)
        assert caught.value.window_ends == ends
        assert caught.value.name == "budget/daily"


# Waiting for the next window


def steps(budget: Budget, size: int, **options: Any) -> Any:
    """The admission of a call, to be driven by hand."""
    return Admission(reserve(budget, size, **options), SyncWaiter).flow()


def test_a_call_waits_for_the_window_that_opens_in_time(clock: FakeClock) -> None:
    budget = Budget("2 calls/minute", clock=clock.clock)
    clock.advance(15)
    spend(budget, 1)
    spend(budget, 1)
    call = reserve(budget, 1)
    flow = Admission(call, SyncWaiter).flow()
    asleep = next(flow)
    assert (type(asleep), asleep.seconds) == (Sleep, 45.0)
    clock.advance(45)
    turn = flow.send(None)
    assert turn.seconds == STALLED_AFTER, "it lets those look first who came before"
    asked = flow.send(None)
    with pytest.raises(StopIteration):
        flow.send(budget._tree.store.execute(asked))
    assert call.waited == 45.0
    assert budget.snapshot().reserved.calls == 1
    call.settle(Usage(0, 1))
    assert [record.accounts[0] for record in budget.ledger][-1] == "budget~2026-11-24T10:01+00:00"


@pytest.mark.parametrize("wait", [0, 10, 44])
def test_a_call_that_may_not_wait_so_long_is_refused_at_once(clock: FakeClock, wait: float) -> None:
    budget = Budget("2 calls/minute", clock=clock.clock)
    clock.advance(15)
    spend(budget, 1)
    spend(budget, 1)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, 1, wait=wait)
    assert (caught.value.retry_after, caught.value.waited) == (45.0, 0.0)


def test_a_call_that_would_not_fit_then_either_is_refused_at_once(clock: FakeClock) -> None:
    budget = Budget(nano(100), per="minute", clock=clock.clock)
    spend(budget, 30)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, 101)
    assert caught.value.waited == 0
    total = Budget(nano(100), clock=clock.clock)
    spend(total, 30)
    with pytest.raises(BudgetExceeded):
        spend(total.child("agent", "50 calls/minute"), 80)


def test_a_call_waits_for_the_longer_of_two_windows_if_it_has_to(clock: FakeClock) -> None:
    hour = Budget(nano(100), per="hour", clock=clock.clock)
    minute = hour.child("agent", nano(90), per="minute")
    clock.advance(59 * 60 + 30)
    spend(minute, 80)
    with pytest.raises(BudgetExceeded):
        spend(minute, 50, wait=20)
    flow = steps(minute, 50, wait=40)
    assert next(flow).seconds == 30


def test_an_end_gives_room_before_the_window_does(clock: FakeClock) -> None:
    budget = Budget(nano(100), per="minute", clock=clock.clock)
    held = Worker(lambda: reserve(budget, 80).admit()).result()
    flow = steps(budget, 80)
    assert next(flow).seconds == 60
    held.release()
    asked = flow.send(None)
    assert asked.path == ("budget~2026-11-24T10:00+00:00",)
    assert budget._tree.store.execute(asked).done
    flow.close()


def test_small_calls_pass_one_that_waits_for_a_window_as_often_as_they_fit(
    clock: FakeClock,
) -> None:
    """What is left of this window is of no use to it, so the line does not close behind it."""
    budget = Budget(nano(100), per="minute", clock=clock.clock)
    spend(budget, 50)
    flow = steps(budget, 60)
    assert type(next(flow)) is Sleep
    for _ in range(2 * PATIENCE):
        assert spend(budget, 1).waited == 0
    flow.close()


def test_newcomers_come_after_those_who_waited_for_the_window(clock: FakeClock) -> None:
    budget = Budget(nano(100), per="minute", clock=clock.clock)
    spend(budget, 50)
    flow = steps(budget, 60)
    assert type(next(flow)) is Sleep
    clock.advance(60)
    newcomer = steps(budget, 60)
    assert type(next(newcomer)) is Sleep, "it looks before its turn"
    asked = flow.send(None)
    assert budget._tree.store.execute(asked).done
    with pytest.raises(StopIteration):
        flow.send(Reply(True))
    assert next(newcomer).seconds == 60
    newcomer.close()


@pytest.mark.parametrize("glances", range(5))
def test_who_looks_just_as_the_window_opens_does_not_come_before_its_turn(glances: int) -> None:
    """Two sleeps end a little early; the window opens after the second call's n-th glance."""
    now = at("2026-11-24T10:00")
    early: list[float] = []
    clock = Clock(lambda: early.pop() if early else now(), now)
    budget = Budget("1 call/minute", clock=clock)
    spend(budget, 1)
    first, second = steps(budget, 1, wait=150), steps(budget, 1, wait=150)
    assert [next(first).seconds, next(second).seconds] == [60, 60]
    assert [flow.send(None).seconds for flow in (first, second)] == [60, 60], "their turns"
    now.advance(60 - 1 / 64)
    assert type(first.send(None)) is Sleep
    early += [now()] * glances
    now.advance(1 / 64)
    for _ in range(2):
        assert type(second.send(None)) is Sleep, "it takes what the one ahead of it waits for"
    early.clear()
    step = first.send(None)
    if type(step) is Sleep:  # it is the one that opens the window
        step = first.send(None)
    assert budget._tree.store.execute(step).done
    with pytest.raises(StopIteration):
        first.send(Reply(True))
    assert type(second.send(None)) is Sleep
    second.close()


def test_a_task_that_waits_for_a_window_is_not_stuck(clock: FakeClock) -> None:
    """What it holds will end, so others wait for that; it alone would not refuse them."""
    total = Budget(nano(100), clock=clock.clock)
    agent = total.child("agent", "1 call/minute")
    held = Worker(lambda: reserve(total, 60).admit()).result()
    owner = held.tree.live[held._key][0]
    spend(agent, 1)
    admission = Admission(reserve(agent, 1), SyncWaiter)
    admission._owner = owner
    waiting = admission.flow()
    assert type(next(waiting)) is Sleep
    assert type(next(steps(total, 60))) is Sleep
    waiting.close()


class Stopped:
    """A clock that stands still shortly before the end of a minute, until it is let go."""

    def __init__(self, left: float = 0.05) -> None:
        self._at = 60_060.0 - left
        self._begun: float | None = None

    def go(self) -> None:
        self._begun = time.monotonic()

    def wall(self) -> float:
        return self._at + (0.0 if self._begun is None else time.monotonic() - self._begun)

    @property
    def clock(self) -> Clock:
        return Clock(self.wall, time.monotonic)


async def test_tasks_are_admitted_in_the_next_window_in_their_order(store: Store) -> None:
    clock = Stopped()
    # By the line's clock nobody is slow: none that has the turn loses it, on whatever machine.
    clocks = Clock(clock.wall, FakeClock())
    budget = Budget("3 calls/minute", name="budget", clock=clocks, store=store)
    for _ in range(3):
        spend(budget, 1)
    order: list[int] = []

    async def one(number: int) -> None:
        async with reserve(budget, 1, wait=30) as call:
            order.append(number)
            await call.asettle(Usage(0, 1))

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    waiting = budget._tree.line.waiting
    while sum(waiter.blocked for waiter in waiting) < 5:  # a store may be slow to answer
        await idle()
    await idle()
    assert not order
    line = [tasks.index(waiter.owner[1]()) for waiter in waiting]
    clock.go()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert order == line[:3]
    # That one is full, and the next one opens in 60 seconds: they would wait for 30.
    assert [type(results[number]) for number in line[3:]] == [BudgetExceeded] * 2
    assert budget.snapshot().spent.calls == 3
    assert budget.ledger.total == 6
    assert not budget._tree.line.waiting


def test_threads_are_admitted_in_the_next_window(asleep: Asleep) -> None:
    clock = Stopped()
    budget = Budget("2 calls/minute", clock=clock.clock)
    for _ in range(2):
        spend(budget, 1)
    workers = [Worker(lambda: spend(budget, 1)) for _ in range(2)]
    for _ in workers:
        asleep.wait()
    clock.go()
    assert {worker.result().outcome for worker in workers} == {"settled"}
    assert budget.ledger.total == 4
    assert budget.snapshot().spent.calls == 2

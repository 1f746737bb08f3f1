"""Waiting for room: fair, bounded in time, and ended by whatever makes room."""

import asyncio
import gc
import itertools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, charged, listen, nano, reserve, small, spend
from tests.engine.waiters import Worker, ask, idle
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Call, StoreError, Usage
from tokenfence_integrations.engine import waiting
from tokenfence_integrations.engine.tree import Clock

# Fairness


async def test_calls_are_admitted_in_the_order_in_which_they_came() -> None:
    budget = small(10)
    held = reserve(budget, 10).admit()
    order: list[int] = []

    async def one(number: int) -> None:
        async with reserve(budget, 10) as call:
            order.append(number)
            await asyncio.sleep(0)
            await call.arelease()

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await idle()
    assert order == []
    held.release()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_small_calls_pass_a_large_one_that_does_not_fit_yet() -> None:
    budget = small(100)
    held = reserve(budget, 60).admit()
    large = asyncio.create_task(ask(budget, 100))
    await idle()
    await asyncio.wait_for(asyncio.gather(*[ask(budget, 40) for _ in range(5)]), 20)
    assert not large.done()
    held.release()
    await large


async def test_small_calls_that_keep_coming_do_not_starve_a_large_one() -> None:
    budget = small(100)
    held = [reserve(budget, 10).admit() for _ in range(10)]
    large = asyncio.create_task(ask(budget, 100))
    await idle()
    passed = 0
    while not large.done():
        small_one = asyncio.create_task(reserve(budget, 10).aadmit())
        if held:
            held.pop(0).release()
        await idle()
        if small_one.done():
            passed += 1
            held.append(small_one.result())
        elif not held:
            assert large.done()
            held.append(await small_one)
        assert passed < 40, "the large one starves"
    assert passed >= 5, "the large one held everybody up"
    for call in held:
        call.release()


async def test_who_comes_while_the_line_is_closed_is_served_after_it() -> None:
    budget = small(100)
    held = reserve(budget, 90).admit()
    large = asyncio.create_task(ask(budget, 100))
    await idle()
    for _ in range(waiting.PATIENCE):
        await ask(budget, 10)
    late = asyncio.create_task(ask(budget, 10))
    await idle()
    assert not late.done()
    held.release()
    await asyncio.gather(large, late)


@pytest.mark.parametrize("size", [10, None])
async def test_who_waits_for_its_own_budget_holds_up_nobody_beside_it(size: int | None) -> None:
    root = small(10**6)
    one, other = root.child("one", nano(100)), root.child("other")
    held = reserve(one, 90).admit()
    large = [asyncio.create_task(ask(one, 50)) for _ in range(5)]
    await idle()
    for _ in range(3 * waiting.PATIENCE):
        assert await ask(other, size, "at once", wait=0.1) == "at once"
    assert not any(task.done() for task in large)
    # They go on holding up those who would take what they wait for.
    for _ in range(waiting.PATIENCE):
        await ask(one, 10)
    late = asyncio.create_task(ask(one, 10))
    await idle()
    assert not late.done()
    held.release()
    await asyncio.gather(*large, late)


async def test_who_waits_for_the_parents_money_is_ahead_of_its_other_children() -> None:
    root = small(100)
    one, other = root.child("one"), root.child("other")
    held = reserve(root, 90).admit()
    large = asyncio.create_task(ask(one, 100))
    await idle()
    for _ in range(waiting.PATIENCE):
        await ask(other, 10)
    late = asyncio.create_task(ask(other, 10))
    await idle()
    assert not late.done()
    held.release()
    await asyncio.gather(large, late)


async def test_no_call_without_a_maximum_pins_the_budget_of_those_who_come_with_it() -> None:
    budget = small(40_000)
    admitted: list[Call] = []

    async def one() -> None:
        call = await reserve(budget, None).aadmit()
        admitted.append(call)
        await idle()
        call.settle(Usage(0, 300))

    await asyncio.gather(*[one() for _ in range(10)])
    assert len(admitted) == 10
    assert all(call.bound.output_tokens < 5_000 for call in admitted[:9])
    assert charged(budget) == (3_000, 0, 0)


# How long


def test_whoever_does_not_wait_is_refused_at_once() -> None:
    budget = small(100)
    with reserve(budget, 60) as held:
        with pytest.raises(BudgetExceeded) as refused:
            reserve(budget, 50, wait=0).admit()
        assert refused.value.waited == 0.0
        with reserve(budget, 50, wait=0, min_output_tokens=16) as rest:
            assert rest.max_output_tokens == 40
            rest.release()
        held.release()


async def test_after_its_time_a_call_is_refused() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    held, other = reserve(budget, 60).admit(), reserve(budget, 10).admit()
    events = listen(budget)
    task = asyncio.create_task(ask(budget, 50, wait=30))
    await idle()
    clock.advance(29)
    await ask(budget, 1)
    await idle()
    assert not task.done()
    clock.advance(1)
    other.release()
    with pytest.raises(BudgetExceeded, match=r"waited 30\.0 s") as refused:
        await task
    assert refused.value.waited == 30.0
    assert [e.waited for e in events if e.kind == "refused"] == [30.0]
    held.release()


async def test_after_its_time_a_call_takes_what_there_is() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    held, other = reserve(budget, 60).admit(), reserve(budget, 10).admit()
    task = asyncio.create_task(reserve(budget, 50, min_output_tokens=16, wait=30).aadmit())
    await idle()
    clock.advance(31)
    other.release()
    call = await task
    assert (call.max_output_tokens, call.waited) == (40, 31.0)
    call.release()
    held.release()
    assert budget.ledger[-2].waited == 31.0


def test_a_clock_that_never_stands_still_is_no_trouble() -> None:
    ticks = itertools.count()
    budget = small(100, clock=Clock(lambda: 0.0, lambda: next(ticks) * 0.4))
    held = Worker(reserve(budget, 60).admit).result()
    with pytest.raises(BudgetExceeded):
        reserve(budget, 50, wait=1).admit()
    held.release()


async def test_waiting_shows() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    events = listen(budget)
    held = reserve(budget, 100).admit()
    task = asyncio.create_task(ask(budget, 50))
    await idle()
    clock.advance(2.5)
    held.release()
    await task
    assert [e.waited for e in events if e.kind == "waited"] == [2.5]
    assert [record.waited for record in budget.ledger] == [0.0, 2.5]


async def test_a_call_that_need_not_wait_does_not_say_that_it_waited() -> None:
    budget = Budget("$1")
    events = listen(budget)
    await asyncio.gather(*[ask(budget, None) for _ in range(3)])
    assert "waited" not in [event.kind for event in events]
    assert [record.waited for record in budget.ledger] == [0.0] * 3


# What ends a wait


async def test_room_comes_from_every_kind_of_end_and_from_every_branch() -> None:
    root = small(100)
    one, other = root.child("one"), root.child("other")
    ends: list[Callable[[Call], Any]] = [
        Call.release,
        lambda call: call.settle(Usage(0, 0)),
        lambda call: call.lose(call.bound._replace(usd=0)),
    ]
    for end in ends:
        held = reserve(one, 100).admit()
        task = asyncio.create_task(ask(other, 100))
        await idle()
        assert not task.done()
        end(held)
        await asyncio.wait_for(task, 20)


async def test_a_top_up_ends_a_wait() -> None:
    budget = small(100)
    held = reserve(budget, 100).admit()
    task = asyncio.create_task(ask(budget, 50))
    await idle()
    budget.top_up("$0.00000005")
    await asyncio.wait_for(task, 20)
    held.release()


async def test_a_reset_ends_a_wait() -> None:
    budget = small(100)
    spend(budget, 30)
    held = reserve(budget, 70).admit()
    task = asyncio.create_task(ask(budget, 30))
    await idle()
    assert not task.done()
    budget.reset()
    await asyncio.wait_for(task, 20)
    held.release()


async def test_a_forgotten_call_ends_a_wait() -> None:
    budget = small(100)
    held: Call | None = reserve(budget, 60, on_unknown="release").admit()
    task = asyncio.create_task(ask(budget, 50))
    await idle()
    assert not task.done()
    held = None
    gc.collect()
    await asyncio.wait_for(task, 20)
    assert held is None


async def test_once_nothing_is_in_flight_a_call_is_refused_and_need_not_wait_longer() -> None:
    budget = small(100)
    held = reserve(budget, 60).admit()
    task = asyncio.create_task(ask(budget, 50))
    await idle()
    held.settle(Usage(0, 60))
    with pytest.raises(BudgetExceeded) as refused:
        await asyncio.wait_for(task, 20)
    assert refused.value.spent == pytest.approx(6e-8)


async def test_a_cancelled_wait_ends_at_once_and_passes_its_turn() -> None:
    budget = small(100)
    held = reserve(budget, 100).admit()
    first = asyncio.create_task(ask(budget, 100))
    second = asyncio.create_task(ask(budget, 100))
    await idle()
    held.release()  # the first has the turn, and is cancelled before it can use it
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 20)
    assert charged(budget) == (0, 0, 0)
    assert not budget._tree.line.waiting


async def test_a_timeout_around_the_wait_leaves_nothing_behind() -> None:
    budget = small(100)
    held = await asyncio.create_task(reserve(budget, 100).aadmit())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await ask(budget, 50)
    held.release()
    assert charged(budget) == (0, 0, 0)
    assert not budget._tree.line.waiting


# Event loops that are not asyncio's


def _run_elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has nothing to wait for, as any event loop would."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it waits for something")


def test_another_loop_admits_a_call_without_a_maximum() -> None:
    budget = small(100)
    call = reserve(budget, None)
    _run_elsewhere(call.aadmit())
    assert budget.reserved > 0
    call.release()


def test_another_loop_is_told_at_once_that_there_is_no_room() -> None:
    budget = small(100)
    with ThreadPoolExecutor() as threads:
        held = threads.submit(reserve(budget, 90).admit).result()
    with pytest.raises(BudgetExceeded) as refusal:
        _run_elsewhere(reserve(budget, 90).aadmit())
    assert refusal.value.waited == 0
    held.release()
    _run_elsewhere(reserve(budget, 90).aadmit())


def test_another_loop_is_told_that_it_cannot_wait_for_a_server() -> None:
    budget = small(100, store=STORES["redis"]())
    with pytest.raises(StoreError, match=r"asyncio alone.*keep budgets in memory"):
        _run_elsewhere(reserve(budget, 90).aadmit())
    assert charged(budget) == (0, 0, 0)

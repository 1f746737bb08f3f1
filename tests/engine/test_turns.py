"""Threads and event loops in one line, some of which cannot use their turn."""

import asyncio
import gc
import threading
from functools import partial

import pytest

from tests.engine.helpers import FakeClock, charged, reserve, small, spend
from tests.engine.waiters import Asleep, Worker, ask, idle, in_loop
from tokenfence_integrations import BudgetExceeded, Call, Usage

# Threads and loops


def test_a_thread_waits_for_another(asleep: Asleep) -> None:
    budget = small(100)
    held = reserve(budget, 100).admit()
    worker = Worker(lambda: spend(budget, 50))
    asleep.wait()
    held.release()
    assert worker.result().cost == 50


def test_threads_are_served_in_the_order_in_which_they_came(asleep: Asleep) -> None:
    budget = small(10, clock=FakeClock().clock)  # nobody's turn is over because it is slow
    held = reserve(budget, 10).admit()
    order: list[int] = []

    def one(number: int) -> None:
        with reserve(budget, 10) as call:
            order.append(number)
            call.release()

    workers = []
    for number in range(4):
        workers.append(Worker(partial(one, number)))
        asleep.wait(workers[-1])
    held.release()
    for worker in workers:
        worker.result()
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [10, None])
def test_threads_and_loops_share_one_budget(size: int | None) -> None:
    budget = small(40 if size else 20_000)
    together = threading.Barrier(5)

    def by_thread() -> None:
        together.wait()
        for _ in range(15):
            with reserve(budget, size) as call:
                call.release()

    async def by_tasks() -> None:
        together.wait()
        await asyncio.gather(*[ask(budget, size) for _ in range(15)])

    workers = [*[Worker(by_thread) for _ in range(3)], *[in_loop(by_tasks) for _ in range(2)]]
    for worker in workers:
        worker.result()
    assert charged(budget) == (0, 0, 0)
    assert len(budget.ledger) == 5 * 15


# Those who cannot use their turn


def test_a_waiter_whose_loop_is_closed_holds_nobody_up(asleep: Asleep) -> None:
    budget = small(100)
    held = reserve(budget, 100).admit()
    loop = asyncio.new_event_loop()
    gone = loop.create_task(ask(budget, 100))
    loop.run_until_complete(idle())
    loop.close()
    worker = Worker(lambda: spend(budget, 50))
    asleep.wait()
    held.release()
    assert worker.result().cost == 50
    gone._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_forgotten_call_wakes_the_first_whose_loop_is_open(asleep: Asleep) -> None:
    budget = small(100)
    held: Call | None = reserve(budget, 60, on_unknown="release").admit()
    loop = asyncio.new_event_loop()
    gone = loop.create_task(ask(budget, 100))
    loop.run_until_complete(idle())
    loop.close()
    worker = Worker(lambda: spend(budget, 50))
    asleep.wait()
    held = None
    gc.collect()
    assert worker.result().cost == 50
    assert held is None
    gone._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_sync_call_is_served_while_it_blocks_the_loop_of_those_ahead(
    asleep: Asleep,
) -> None:
    budget = small(100)
    held = Worker(reserve(budget, 100).admit).result()
    ahead = asyncio.create_task(ask(budget, 100))
    await idle()

    def release_when_asleep() -> None:
        asleep.wait()
        held.release()

    worker = Worker(release_when_asleep)
    assert spend(budget, 50, wait=15).waited < 10  # blocks this loop, so `ahead` cannot look
    worker.result()
    with pytest.raises(BudgetExceeded):
        await asyncio.wait_for(ahead, 20)


async def test_a_sync_call_does_not_wait_for_a_turn_that_nobody_can_use_while_it_blocks() -> None:
    budget = small(100)
    held = reserve(budget, 80).admit()
    other = asyncio.create_task(ask(budget, 60))
    await idle()
    held.settle(Usage(0, 10))  # so the other task has the turn, and looks once this one pauses
    assert spend(budget, 20, wait=15).waited < 10
    await asyncio.wait_for(other, 20)
    assert charged(budget) == (30, 0, 0)


def test_a_waiter_that_does_not_use_its_turn_loses_it_and_nobody_is_forgotten(
    asleep: Asleep,
) -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    held = [reserve(budget, 40).admit(), reserve(budget, 30).admit(), reserve(budget, 30).admit()]
    first = Worker(lambda: spend(budget, 60))
    asleep.wait()
    blocked = asyncio.new_event_loop()  # nobody runs it for now
    second = blocked.create_task(ask(budget, 30))
    blocked.run_until_complete(idle())
    held[1].release()  # not enough for the first, so the second has the turn, and does not use it
    asleep.wait()
    clock.advance(1)
    held[2].release()  # enough for the first
    assert first.result().cost == 60
    held[0].release()
    blocked.run_until_complete(second)
    blocked.close()
    assert charged(budget) == (60, 0, 0)


def test_a_waiter_that_was_woken_in_vain_is_not_woken_again_before_others(asleep: Asleep) -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    held = [reserve(budget, 50).admit(), reserve(budget, 50).admit()]
    blocked = asyncio.new_event_loop()  # nobody runs it for now
    head = blocked.create_task(ask(budget, 100))
    blocked.run_until_complete(idle())
    held[0].release()  # the head has the turn, and does not use it
    behind = Worker(lambda: spend(budget, 50))
    asleep.wait()
    clock.advance(1)
    held[1].release()
    assert behind.result().cost == 50
    with pytest.raises(BudgetExceeded):
        blocked.run_until_complete(head)
    blocked.close()

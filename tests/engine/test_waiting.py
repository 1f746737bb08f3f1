"""Waiting for room: fair, bounded in time, and without any way to wait for oneself."""

import asyncio
import gc
import itertools
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from tests.engine.helpers import FakeClock, charged, listen, reserve, small, spend
from tokenfence_integrations import Budget, BudgetExceeded, Call, Usage
from tokenfence_integrations.engine import waiting
from tokenfence_integrations.engine.tree import Clock


async def idle() -> None:
    """Let every task of this loop run until it waits."""
    for _ in range(200):
        await asyncio.sleep(0)


async def ask(budget: Budget, size: int | None, name: Any = None, **options: Any) -> Any:
    """Reserve, and give what was reserved back at once."""
    async with reserve(budget, size, **options) as call:
        await call.arelease()
    return name


class Asleep:
    """Counts the threads that go to sleep in a line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = threading.Semaphore(0)
        sleep = waiting.SyncWaiter.sleep

        def counted(waiter: waiting.SyncWaiter, seconds: float) -> None:
            self._count.release()
            sleep(waiter, seconds)

        monkeypatch.setattr(waiting.SyncWaiter, "sleep", counted)

    def wait(self) -> None:
        """Until one more thread sleeps (what wakes it from then on is not lost)."""
        assert self._count.acquire(timeout=20)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Asleep:
    return Asleep(monkeypatch)


class Worker(threading.Thread):
    """A thread whose result, or exception, is fetched with `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it waits for ever"
        if self._error is not None:
            raise self._error
        return self._result


def in_loop(work: Callable[[], Coroutine[Any, Any, Any]]) -> Worker:
    """A thread with an event loop of its own."""
    return Worker(lambda: asyncio.run(work()))


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


# Threads and loops


def test_a_thread_waits_for_another(asleep: Asleep) -> None:
    budget = small(100)
    held = reserve(budget, 100).admit()
    worker = Worker(lambda: spend(budget, 50))
    asleep.wait()
    held.release()
    assert worker.result().cost == 50


def test_threads_are_served_in_the_order_in_which_they_came(asleep: Asleep) -> None:
    budget = small(10)
    held = reserve(budget, 10).admit()
    order: list[int] = []

    def one(number: int) -> None:
        with reserve(budget, 10) as call:
            order.append(number)
            call.release()

    workers = []
    for number in range(4):
        workers.append(Worker(partial(one, number)))
        asleep.wait()
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


# Never for oneself


async def test_a_task_does_not_wait_for_its_own_stream() -> None:
    budget = small(100)
    with reserve(budget, 60) as stream:
        with pytest.raises(BudgetExceeded):
            async with asyncio.timeout(20):
                await ask(budget, 50)
        async with reserve(budget, 50, min_output_tokens=16) as rest:
            assert rest.max_output_tokens == 40
            rest.release()
        stream.release()


def test_a_thread_does_not_wait_for_its_own_stream() -> None:
    budget = small(100)
    with reserve(budget, 60) as stream:
        with pytest.raises(BudgetExceeded):
            reserve(budget, 50).admit()
        stream.release()


async def test_a_thread_does_not_wait_for_the_tasks_that_it_would_block() -> None:
    budget = small(100)
    opened, done = asyncio.Event(), asyncio.Event()

    async def stream() -> None:
        async with reserve(budget, 60) as call:
            opened.set()
            await done.wait()
            call.release()

    task = asyncio.create_task(stream())
    await opened.wait()
    with pytest.raises(BudgetExceeded):
        reserve(budget, 50).admit()
    done.set()
    await task


async def test_but_it_waits_for_the_rest() -> None:
    budget = small(100)
    other = await asyncio.create_task(reserve(budget, 40).aadmit())
    with reserve(budget, 20) as stream:
        waits = asyncio.create_task(ask(budget, 80))
        mine = asyncio.ensure_future(idle())
        await mine
        assert not waits.done()
        other.release()
        await asyncio.wait_for(waits, 20)
        stream.release()


@pytest.mark.parametrize("size", [50, None])
async def test_two_streams_that_call_again_do_not_wait_for_each_other(size: int | None) -> None:
    budget = small(100)
    both = asyncio.Barrier(2)

    async def agent() -> str:
        async with reserve(budget, 50) as stream:
            await both.wait()
            try:
                return await ask(budget, size, "admitted", min_output_tokens=size or 16)
            except BudgetExceeded:
                return "refused"
            finally:
                await stream.arelease()

    ended = await asyncio.wait_for(asyncio.gather(agent(), agent()), 20)
    assert sorted(ended) == ["admitted", "refused"]


async def test_a_crowd_of_streams_that_call_again_gets_through() -> None:
    budget = small(100)
    everybody = asyncio.Barrier(10)

    async def agent() -> bool:
        async with reserve(budget, 10) as stream:
            await everybody.wait()
            try:
                await ask(budget, 10)
            except BudgetExceeded:
                return False
            finally:
                await stream.arelease()
            return True

    ended = await asyncio.wait_for(asyncio.gather(*[agent() for _ in range(10)]), 20)
    assert any(ended)


def test_two_threads_with_streams_that_call_again_do_not_wait_for_each_other() -> None:
    budget = small(100)
    both = threading.Barrier(2)

    def agent() -> str:
        with reserve(budget, 50) as stream:
            both.wait()
            try:
                spend(budget, 50)
            except BudgetExceeded:
                return "refused"
            finally:
                stream.release()
            return "admitted"

    workers = [Worker(agent) for _ in range(2)]
    assert sorted(worker.result() for worker in workers) == ["admitted", "refused"]


async def test_behind_a_closed_line_nobody_waits_for_the_one_ahead() -> None:
    """The head waits for a stream whose task has come to stand behind it."""
    budget = small(100)
    opened, go_on = asyncio.Event(), asyncio.Event()

    async def agent() -> str:
        async with reserve(budget, 50) as stream:
            opened.set()
            await go_on.wait()
            try:
                return await ask(budget, 10, "admitted")
            finally:
                await stream.arelease()

    agents = asyncio.create_task(agent())
    await opened.wait()
    large = asyncio.create_task(ask(budget, 100, "large"))
    await idle()
    for _ in range(waiting.PATIENCE):
        await ask(budget, 10)
    go_on.set()
    ended = await asyncio.wait_for(asyncio.gather(agents, large, return_exceptions=True), 20)
    assert ended[0] == "admitted"
    assert isinstance(ended[1], BudgetExceeded)


async def test_a_stream_left_by_a_finished_task_is_not_that_of_the_next_one() -> None:
    budget = small(100)
    left = await asyncio.create_task(reserve(budget, 60).aadmit())
    gc.collect()
    tasks = [asyncio.create_task(ask(budget, 50)) for _ in range(5)]
    await idle()
    assert not any(task.done() for task in tasks)
    left.release()
    await asyncio.gather(*tasks)


def test_a_stream_left_by_a_finished_thread_is_not_that_of_the_next_one(asleep: Asleep) -> None:
    budget = small(100)
    left = Worker(reserve(budget, 60).admit).result()
    worker = Worker(lambda: spend(budget, 50))
    asleep.wait()
    left.release()
    assert worker.result().cost == 50


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


async def test_no_two_tasks_are_taken_for_one_even_if_one_is_gone() -> None:
    async def owner() -> waiting.Owner:
        return waiting.current_owner()

    owners = [await asyncio.create_task(owner()) for _ in range(20)]
    assert all(one != other for one, other in itertools.combinations(owners, 2))
    assert waiting.current_owner() == waiting.current_owner()


def test_no_two_threads_are_taken_for_one_even_if_one_is_gone() -> None:
    owners = [Worker(waiting.current_owner).result() for _ in range(20)]
    assert all(one != other for one, other in itertools.combinations(owners, 2))

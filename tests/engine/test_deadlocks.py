"""Nobody waits for a call that cannot end before the waiting does."""

import asyncio
import contextvars
import gc
import itertools
import threading

import pytest

from tests.engine.helpers import reserve, small, spend
from tests.engine.waiters import Asleep, Worker, ask, idle
from tokenfence_integrations import BudgetExceeded
from tokenfence_integrations.engine import waiting


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


async def test_nor_do_the_tasks_that_it_waits_for() -> None:
    budget = small(100)
    with reserve(budget, 60) as stream:
        with pytest.raises(BudgetExceeded), waiting.waited_for():
            async with asyncio.timeout(20):
                await asyncio.gather(ask(budget, 50))
        # Without telling so, nobody can know that this task waits for that one.
        other = asyncio.create_task(ask(budget, 50))
        await asyncio.sleep(0)
        stream.release()
        await other


def test_nor_do_the_threads_that_a_thread_waits_for() -> None:
    budget = small(100)
    refused: list[BaseException] = []

    def work() -> None:
        try:
            reserve(budget, 50).admit()
        except BudgetExceeded as refusal:
            refused.append(refusal)

    with reserve(budget, 60) as stream:
        with waiting.waited_for():
            context = contextvars.copy_context()
            thread = threading.Thread(target=lambda: context.run(work))
            thread.start()
            thread.join(20)
        stream.release()
    assert [error.waited for error in refused if isinstance(error, BudgetExceeded)] == [0.0]


async def test_siblings_that_a_task_waits_for_wait_for_each_other() -> None:
    budget = small(100)

    async def one() -> None:
        async with reserve(budget, 60) as call:
            await asyncio.sleep(0)
            call.release()

    with waiting.waited_for():
        async with asyncio.timeout(20):
            await asyncio.gather(*[one() for _ in range(5)])


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


async def test_no_two_tasks_are_taken_for_one_even_if_one_is_gone() -> None:
    async def owner() -> waiting.Owner:
        return waiting.current_owner()

    owners = [await asyncio.create_task(owner()) for _ in range(20)]
    assert all(one != other for one, other in itertools.combinations(owners, 2))
    assert waiting.current_owner() == waiting.current_owner()


def test_no_two_threads_are_taken_for_one_even_if_one_is_gone() -> None:
    owners = [Worker(waiting.current_owner).result() for _ in range(20)]
    assert all(one != other for one, other in itertools.combinations(owners, 2))

"""The promises under real threads and real event loops, watched from outside all the while."""

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.helpers import BOOK, charged, nano, reserve, small
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Call, LedgerRecord, Usage
from tokenfence_integrations.stores.base import NOTHING

THREADS, LOOPS, TASKS = 3, 2, 6
"""Workers: so many threads, and so many event loops with so many tasks each."""


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    """Switch threads a hundred times as often as usual, in the midst of everything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(usual)


@contextmanager
def running(*targets: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread of its own, together, to the end of the block; fail if one fails."""
    failed: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(t,), daemon=True) for t in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a worker waits for ever"
    if failed:
        raise failed[0]


@dataclass
class Worker:
    """Makes random calls, and keeps books of its own about what it did."""

    budgets: list[Budget]
    seed: int
    calls: int
    settled: dict[str, int] = field(default_factory=dict)
    admitted: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def _next(self) -> Call:
        chance = self.chance
        return chance.choice(self.budgets).reserve(
            model=chance.choice(["model", "mini"]),
            input_tokens=chance.randrange(50),
            max_output_tokens=chance.choice([None, *[chance.randrange(1, 400)] * 4]),
            min_output_tokens=chance.choice([1, 16, 400]),
            fallback=chance.choice([None, "mini"]),
            prices=BOOK,
        )

    def _usage(self, call: Call) -> Usage:
        most = min(call.bound.output_tokens, 500)
        return Usage(self.chance.randint(0, call.bound.input_tokens), self.chance.randint(0, most))

    def _booked(self, call: Call) -> None:
        for name in call.budget.path:
            self.settled[name] = self.settled.get(name, 0) + call.cost

    def by_thread(self) -> None:
        for _ in range(self.calls):
            call = self._next()
            try:
                call.admit()
            except BudgetExceeded:
                self.refused += 1
                continue
            self.admitted += 1
            how = self.chance.random()
            if how < 0.7:
                call.settle(self._usage(call))
                self._booked(call)
            elif how < 0.8:
                call.release()
            elif how < 0.9:
                call.fail(ConnectionRefusedError())
            elif how < 0.95:
                call.lose()
            call.release()
            del call

    async def by_task(self) -> None:
        for _ in range(self.calls):
            call = self._next()
            try:
                await call.aadmit()
            except BudgetExceeded:
                self.refused += 1
                continue
            self.admitted += 1
            for _ in range(self.chance.randrange(3)):
                await asyncio.sleep(0)
            how = self.chance.random()
            if how < 0.7:
                await call.asettle(self._usage(call))
                self._booked(call)
            elif how < 0.9:
                await call.afail(ConnectionRefusedError())
            # else it is forgotten: uncertain, once it is collected
            del call


def watch(budgets: list[Budget], ended: threading.Event) -> int:
    """Look at every account again and again; how often."""
    looks = 0
    while not ended.is_set() or looks < 10:
        for budget in budgets:
            now = budget.snapshot()
            for quantity, limit in now.limits._asdict().items():
                if limit is not None:
                    parts = (now.spent, now.reserved, now.uncertain)
                    used = sum(getattr(part, quantity) for part in parts)
                    assert used <= limit, (budget.name, quantity, used, limit)
            looks += 1
    return looks


@pytest.mark.parametrize("store", sorted(STORES))
@pytest.mark.parametrize("seed", [1, 2])
def test_a_tree_hammered_by_threads_and_loops_keeps_every_promise(store: str, seed: int) -> None:
    records: list[LedgerRecord] = []
    root = small(150_000, calls=1_200, store=STORES[store](), ledger_size=20, sink=records.append)
    team = root.child("team", nano(70_000), tokens=150_000)
    leaves = [team.child("a", output_tokens=50_000), team.child("b", nano(20_000), calls=250)]
    budgets = [root, team, *leaves]
    workers = [Worker(budgets, seed * 100 + n, 120) for n in range(THREADS + LOOPS * TASKS)]
    left = threading.Semaphore(0)
    ended = threading.Event()

    def thread(worker: Worker) -> Callable[[], None]:
        def work() -> None:
            try:
                worker.by_thread()
            finally:
                left.release()

        return work

    def loop(those: list[Worker]) -> Callable[[], None]:
        async def work() -> None:
            await asyncio.gather(*[worker.by_task() for worker in those])

        def run() -> None:
            try:
                asyncio.run(work())
            finally:
                left.release()

        return run

    def top_up() -> None:
        for _ in range(20):
            root.top_up(nano(50), calls=1)
            team.top_up(nano(50), tokens=50)

    groups = [workers[THREADS + n * TASKS :][:TASKS] for n in range(LOOPS)]
    with (
        running(lambda: watch(budgets, ended), top_up),
        running(
            *[thread(worker) for worker in workers[:THREADS]], *[loop(group) for group in groups]
        ),
    ):
        for _ in range(THREADS + LOOPS):
            left.acquire()
        ended.set()

    gc.collect()
    for budget in budgets:
        now = budget.snapshot()
        assert now.reserved == NOTHING
        settled = sum(worker.settled.get(budget.name, 0) for worker in workers)
        assert now.spent.usd == budget.ledger.total == settled
        assert root._tree.ledger.total(budget.name) == (settled, now.uncertain.usd)
        own = sum(record.cost for record in records if record.budget == budget.name)
        below = sum(child.snapshot().spent.usd for child in budget.children.values())
        assert now.spent.usd == own + below
    admitted = sum(worker.admitted for worker in workers)
    assert len(records) == len({record.call for record in records}) == admitted
    assert not root._tree.live
    assert not root._tree.line.waiting
    assert admitted > 100
    assert any(worker.refused for worker in workers), "the limits were never reached"


@pytest.mark.parametrize("by", ["tasks", "threads"])
@pytest.mark.parametrize("fitting", [4, 60])
def test_of_a_hundred_calls_exactly_those_land_that_the_budget_can_pay(
    by: str, fitting: int
) -> None:
    budget = small(fitting * 70)
    refused: list[BudgetExceeded] = []

    async def one() -> None:
        try:
            async with reserve(budget, 50, input_tokens=20) as call:
                await asyncio.sleep(0)
                await call.asettle(Usage(20, 50))
        except BudgetExceeded as error:
            refused.append(error)

    async def all_of_them(count: int) -> None:
        await asyncio.gather(*[one() for _ in range(count)])

    if by == "tasks":
        asyncio.run(all_of_them(100))
    else:
        with running(*[lambda: asyncio.run(all_of_them(1)) for _ in range(10)] * 10):
            pass
    assert charged(budget) == (fitting * 70, 0, 0)
    assert len(refused) == 100 - fitting
    assert all(error.reserved == 0 for error in refused), "refused while others were in flight"


@pytest.mark.parametrize("by", ["tasks", "threads"])
def test_nothing_is_refused_that_fits_once_the_rest_has_settled(by: str) -> None:
    """Bounds of 100, costs of 10, and room for two bounds: all 50 fit, two at a time."""
    budget = small(680)

    def books(call: Call) -> None:
        call.settle(Usage(0, 10))

    def by_thread() -> None:
        with reserve(budget, 100) as call:
            books(call)

    async def by_tasks() -> None:
        async def one() -> None:
            async with reserve(budget, 100) as call:
                await asyncio.sleep(0)
                books(call)

        await asyncio.gather(*[one() for _ in range(50)])

    if by == "tasks":
        asyncio.run(by_tasks())
    else:
        with running(*[by_thread] * 50):
            pass
    assert charged(budget) == (500, 0, 0)


def test_whatever_interrupts_a_wait_or_a_call_nothing_leaks() -> None:
    """Tasks are cancelled at random points of their calls."""
    budget = small(1_000)
    chance = random.Random(3)

    async def one() -> None:
        async with reserve(budget, chance.randrange(1, 900)) as call:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            await call.arelease()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(one()) for _ in range(150)]
        for task in chance.sample(tasks, 75):
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    results = asyncio.run(main())
    spent, reserved, uncertain = charged(budget)
    assert (spent, reserved) == (0, 0)
    assert uncertain == sum(record.uncertain for record in budget.ledger)
    assert not budget._tree.line.waiting
    unexpected = [r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)]
    assert all(isinstance(error, BudgetExceeded) for error in unexpected)

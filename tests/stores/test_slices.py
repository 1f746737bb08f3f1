"""Slices: processes that each hold a part of the same accounts, played by stores over one."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.engine.helpers import FakeClock, nano, reserve, spend
from tokenfence_integrations import Budget, Event, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Adjust,
    Amount,
    Book,
    Command,
    Draw,
    End,
    Limits,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
    Store,
)
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.slices import SlicedStore, purse, slicing
from tokenfence_integrations.stores.slices.borrowing import SLICE
from tokenfence_integrations.stores.sqlite import SQLiteStore

ROOT, LEAVES = "root", ("root/a", "root/b")
WORKERS = 3
PATIENCE = 30
"""Seconds that a call may wait for what others hold unused."""


class Worker(SlicedStore):
    """A process whose thread only runs when it is told to."""

    def _wake(self) -> None:
        pass


@dataclass
class InFlight:
    worker: Worker
    path: Path
    key: int
    amount: Amount


class Fleet(RuleBasedStateMachine):
    """Several workers spend from one tree, beside plain sums of what they were admitted for."""

    on_store_error: Any = "raise"
    calls: Bundle[InFlight] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.base = MemoryStore()
        self.workers = [
            Worker(self.base, "50%", on_store_error=self.on_store_error, clock=self.clock)
            for _ in range(WORKERS)
        ]
        self.limits: dict[str, Limits] = {}
        self.spent: dict[str, Amount] = {}
        self.uncertain: dict[str, Amount] = {}
        self.in_flight: list[InFlight] = []
        self.beyond = NOTHING
        self.keys = count(1)

    limits = st.builds(
        Limits,
        usd=st.none() | st.integers(0, 300),
        calls=st.none() | st.integers(0, 30),
        tokens=st.none() | st.integers(0, 100),
        input_tokens=st.none(),
        output_tokens=st.none() | st.integers(0, 60),
    )

    @initialize(root=limits, a=limits, b=limits)
    def open(self, root: Limits, a: Limits, b: Limits) -> None:
        for account, limits in zip((ROOT, *LEAVES), (root, a, b), strict=True):
            self.limits[account] = limits
            self.spent[account] = self.uncertain[account] = NOTHING
            for worker in self.workers:
                worker.execute(Open(account, limits))

    @rule(
        target=calls,
        number=st.integers(0, WORKERS - 1),
        leaf=st.sampled_from(LEAVES),
        amount=st.builds(Amount, st.integers(0, 40), st.just(1), *[st.integers(0, 9)] * 2),
    )
    def reserve(self, number: int, leaf: str, amount: Amount) -> Any:
        worker, path, key = self.workers[number], (leaf, ROOT), next(self.keys)
        fits = self.has_room(path, amount)
        reply = worker.reserve(path, key, amount)
        for _ in range(PATIENCE if fits else 0):
            if reply.done:
                break
            # It is idle in another process. A call that waits looks every second.
            self.time_goes_by(1.0)
            reply = worker.reserve(path, key, amount)
        assert reply.done == fits, "refused although it fits" if fits else "over the limit"
        if not reply.done:
            return multiple()
        call = InFlight(worker, path, key, amount)
        self.in_flight.append(call)
        return call

    def has_room(self, path: Path, amount: Amount) -> bool:
        for account in path:
            limits = self.limits[account]
            used = self.used(account).plus(amount)
            whole = (used.usd, used.calls, used.tokens, used.input_tokens, used.output_tokens)
            if any(
                limit is not None and number > limit
                for limit, number in zip(limits, whole, strict=True)
            ):
                return False
        return True

    def used(self, account: str) -> Amount:
        held = [call.amount for call in self.in_flight if account in call.path]
        return self.spent[account].plus(self.uncertain[account], *held)

    @rule(
        call=consumes(calls),
        shares=st.tuples(*[st.integers(0, 10)] * 4),
        known=st.booleans(),
        more=st.sampled_from([0, 0, 0, 7]),
    )
    def end(self, call: InFlight, shares: Any, known: bool, more: int) -> None:
        part = Amount(*[a * s // 10 for a, s in zip(call.amount, shares, strict=True)])
        part = part.plus(Amount(more, 0, more, more)) if known else part
        spent, uncertain = (part, NOTHING) if known else (NOTHING, part)
        assert call.worker.end(call.path, call.key, spent, uncertain).done
        assert not call.worker.end(call.path, call.key, spent, uncertain).done
        self.in_flight.remove(call)
        for account in call.path:
            self.spent[account] = self.spent[account].plus(spent)
            self.uncertain[account] = self.uncertain[account].plus(uncertain)
        if more and known:
            self.beyond = self.beyond.plus(Amount(more, 0, more, more))

    @rule(seconds=st.sampled_from([0.1, 0.7, 1.1, 3.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for worker in self.workers:
            worker.tend()

    @rule(number=st.integers(0, WORKERS - 1), account=st.sampled_from([ROOT, *LEAVES]))
    def top_up(self, number: int, account: str) -> None:
        path = (account,) if account == ROOT else (account, ROOT)
        self.workers[number].execute(Adjust(path, Amount(50, 5, 0, 9), tokens=20))
        by = (50, 5, 20, 0, 9)
        self.limits[account] = Limits(
            *[
                None if limit is None else limit + more
                for limit, more in zip(self.limits[account], by, strict=True)
            ]
        )

    @rule(number=st.integers(0, WORKERS - 1))
    def give_back(self, number: int) -> None:
        self.workers[number].give_back()

    # Promises

    @invariant()
    def the_store_below_holds_the_limits(self) -> None:
        for account in self.limits:
            state = self.below(account)
            used = state.spent.plus(state.reserved, state.uncertain)
            whole = (used.usd, used.calls, used.tokens, used.input_tokens, used.output_tokens)
            more = self.beyond
            excused = (more.usd, more.calls, more.tokens, more.input_tokens, more.output_tokens)
            for limit, number, beyond in zip(self.limits[account], whole, excused, strict=True):
                assert limit is None or number <= limit + beyond, (account, state)

    @invariant()
    def what_calls_hold_is_reserved_below(self) -> None:
        for account in self.limits:
            state = self.below(account)
            for charged, used in zip(
                state.spent.plus(state.reserved, state.uncertain), self.used(account), strict=True
            ):
                assert charged >= used - self.beyond.usd

    @invariant()
    def a_worker_sees_its_own_calls_as_they_are(self) -> None:
        for worker in self.workers:
            others = [w for w in self.workers if w is not worker]
            if any(other._held.purses for other in others):
                continue
            for account in self.limits:
                [state] = worker.execute(Read((account,))).states
                held = [call.amount for call in self.in_flight if account in call.path]
                assert state.spent == self.spent[account]
                assert state.uncertain == self.uncertain[account]
                assert state.reserved == NOTHING.plus(*held)

    def below(self, account: str) -> AccountState:
        return self.base.execute(Read((account,))).states[0]

    def teardown(self) -> None:
        for call in self.in_flight:
            call.worker.end(call.path, call.key, NOTHING, NOTHING)
        for worker in self.workers:
            worker.give_back()
        for account in self.limits:
            state = self.below(account)
            assert state.reserved == NOTHING
            assert state.spent == self.spent[account]
            assert state.uncertain == self.uncertain[account]
        charged = NOTHING.plus(*[charge.amount for charge in self.base.charges(ROOT)])
        assert charged == self.uncertain.get(ROOT, NOTHING)
        assert not any(worker._held.purses or worker._held._calls for worker in self.workers)


@pytest.mark.parametrize("on_store_error", ["raise", "local"])
@pytest.mark.parametrize("least_calls", [1, 4])
def test_a_fleet_keeps_the_promises(
    on_store_error: str, least_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "LEAST_CALLS", least_calls)
    monkeypatch.setattr(slicing, "LEFT_TO_OTHERS", 1 if least_calls == 1 else 8)

    class ThisFleet(Fleet):
        pass

    ThisFleet.on_store_error = on_store_error
    longer = settings(max_examples=2 * settings.default.max_examples, report_multiple_bugs=False)
    run_state_machine_as_test(ThisFleet, settings=longer)


# One process

TEAM = ("team",)
CALL = Amount(10, 1, 2, 3)


class Server(MemoryStore):
    """A store that is counted on, and may be away."""

    instant = False

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.kept: list[Callable[[], object]] = []
        self.away = False

    def execute(self, command: Command) -> Reply:
        self.asked += 1
        if self.away:
            raise StoreError("the server", "it does not answer")
        return super().execute(command)

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        return self.later(partial(super().end, path, key, spent, uncertain)) or Reply(True)

    def note(self, command: Any) -> None:
        self.later(partial(super().execute, command))

    def draw(self, command: Draw, told: Callable[[bool], object]) -> None:
        applied = super().execute
        self.later(lambda: told(applied(command).done))

    def later(self, work: Callable[[], Any]) -> Any:
        if not self.away:
            return work()
        self.kept.append(work)
        return None

    def is_back(self) -> None:
        self.away = False
        for work in self.kept:
            work()


def on(server: Store, **options: Any) -> Worker:
    worker = Worker(server, **options)
    worker.execute(Open("team", Limits(usd=100_000)))
    return worker


def use(worker: Worker, keys: Any, times: int, spent: int = 5) -> None:
    for _ in range(times):
        key = next(keys)
        assert worker.reserve(TEAM, key, CALL).done
        assert worker.end(TEAM, key, Amount(spent, 1, 2, 1), NOTHING).done


def below(store: Store, account: str = "team") -> AccountState:
    return store.execute(Read((account,))).states[0]


def test_calls_on_a_slice_need_no_round_trip() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 2)
    before = server.asked
    use(worker, keys, 90)
    assert server.asked == before
    clock.advance(1.1)
    worker.tend()
    assert below(server).spent == Amount(92 * 5, 92, 184, 92)
    assert below(server).reserved.usd <= 0.02 * 100_000


def test_a_slice_is_given_back_when_nothing_uses_it() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 5)
    assert below(server).reserved.usd > 900
    assert worker.reserve(TEAM, 77, CALL).done
    assert worker.tend() is not None
    for _ in range(3):
        clock.advance(1.0)
        worker.tend()
    assert below(server).reserved == CALL, "but for the call that is in flight"
    worker.end(TEAM, 77, NOTHING, NOTHING)
    clock.advance(1.0)
    assert worker.tend() is None
    assert below(server).reserved == NOTHING


def test_near_a_limit_what_is_unused_is_given_back_to_those_who_wait_sooner() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    server.execute(Book(TEAM, Amount(95_000)))
    use(worker, keys, 5)
    assert worker.tend() == pytest.approx(0.25)
    held = below(server).reserved.usd
    assert held > 100
    server.execute(Book(TEAM, Amount(5_000 - 25 - held - 5)))  # by another process
    assert not server.reserve(TEAM, 77, Amount(100, 1)).done
    clock.advance(0.26)
    worker.tend()
    assert below(server).reserved == NOTHING
    assert server.reserve(TEAM, 77, Amount(100, 1)).done


def test_far_from_a_limit_accounts_are_looked_at_each_second() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    server.execute(Book(TEAM, Amount(80_000)))
    use(worker, keys, 5)
    assert worker.tend() == pytest.approx(1.0)
    use(worker, keys, 5)
    before = server.asked
    clock.advance(0.9)
    worker.tend()
    assert server.asked == before
    clock.advance(0.11)
    worker.tend()
    assert server.asked > before


def test_the_less_is_left_the_smaller_are_slices() -> None:
    server, keys = Server(), count(1)
    worker = on(server)
    worker.execute(Adjust(TEAM, Amount(-90_000)))
    use(worker, keys, 10)
    assert 40 <= below(server).reserved.usd <= 100
    worker.give_back()
    worker.execute(Adjust(TEAM, Amount(-9_700)))
    use(worker, keys, 10)
    assert not worker._held.purses


def test_what_a_call_costs_above_its_bound_is_told_at_once() -> None:
    server, keys = Server(), count(1)
    worker = on(server)
    use(worker, keys, 3)
    use(worker, keys, 1, spent=3_000)
    assert below(server).spent.usd == 3_015


def test_limits_that_another_process_lowers_are_known_a_second_later() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 5)
    server.execute(SetLimits(TEAM, Limits(usd=20)))
    clock.advance(1.0)
    worker.tend()
    reply = worker.reserve(TEAM, next(keys), CALL)
    assert not reply.done
    assert reply.states[0].limit_usd == 20


def test_a_reset_takes_what_was_not_reported_yet() -> None:
    server, keys = Server(), count(1)
    worker = on(server)
    use(worker, keys, 9)
    [before] = worker.execute(Reset(TEAM)).states
    assert before.spent.usd == 45
    assert worker.execute(Read(TEAM)).states[0].spent == NOTHING
    worker.give_back()
    assert below(server).spent == below(server).reserved == NOTHING


def test_a_slice_that_was_resolved_by_others_is_used_no_more() -> None:
    """The process was stopped until its lease was over, and somebody said what it had spent."""
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 5)
    for number in list(server._reservations):
        server.end(TEAM, number, NOTHING, Amount(1_000))
    for charge in server.charges():
        server.execute(Resolve(charge.id, NOTHING))
    clock.advance(1.0)
    worker.tend()
    assert below(server).spent.usd == 25, "is booked all the same"
    before = server.asked
    use(worker, keys, 1)
    assert server.asked > before
    worker.give_back()
    assert below(server).spent.usd == 30
    assert below(server).reserved == NOTHING


# Away


def test_nothing_is_admitted_while_the_store_is_away() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 5)
    assert worker.reserve(TEAM, 77, CALL).done
    server.away = True
    clock.advance(1.0)
    worker.tend()
    with pytest.raises(StoreError, match="does not answer"):
        worker.reserve(TEAM, next(keys), CALL)
    worker.end(TEAM, 77, Amount(7, 1, 1, 1), NOTHING)
    server.is_back()
    clock.advance(1.0)
    worker.tend()
    use(worker, keys, 1)
    worker.give_back()
    assert below(server).spent.usd == 5 * 5 + 7 + 5
    assert below(server).reserved == NOTHING


def test_calls_go_on_with_what_is_borrowed_and_not_a_cent_further() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock, on_store_error="local")
    use(worker, keys, 1)
    held = below(server).reserved.usd
    assert held <= 0.02 * 100_000
    server.away = True
    clock.advance(1.0)
    worker.tend()
    with pytest.raises(StoreError, match="too little left"):
        use(worker, keys, 1_000, spent=10)
    server.is_back()
    use(worker, keys, 10, spent=10)
    worker.give_back()
    assert held - 10 < below(server).spent.usd - 100 <= held
    assert below(server).reserved == NOTHING


def test_while_the_store_is_away_calls_are_cut_to_what_is_borrowed() -> None:
    server, clock = Server(), FakeClock()
    worker = Worker(server, "2%", on_store_error="local", clock=clock)
    budget = Budget(nano(50_000), name="team", store=worker)
    spend(budget, 10)
    server.away = True
    clock.advance(1.0)
    worker.tend()
    with reserve(budget, None, fallback=None, min_output_tokens=16) as call:
        assert 16 <= (call.max_output_tokens or 0) <= 1_000
        call.settle(Usage(0, 20))


def test_listeners_hear_that_the_store_is_lost_and_back() -> None:
    server, clock = Server(), FakeClock()
    worker = Worker(server, "2%", on_store_error="local", clock=clock)
    budget = Budget(nano(50_000), name="team", store=worker)
    heard: list[Event] = []
    budget.child("writer").on_event(heard.append)
    spend(budget, 10)
    for away in (True, False):
        server.away = away
        clock.advance(1.0)
        worker.tend()
    told = [event for event in heard if event.kind.startswith("store")]
    assert [(event.kind, event.budget) for event in told] == [
        ("store_lost", "team"),
        ("store_back", "team"),
    ]
    assert told[0].tags == {"reason": "it does not answer"}


def test_a_store_that_nobody_asks_is_not_taken_to_be_back() -> None:
    server, clock = Server(), FakeClock()
    worker = Worker(server, "2%", clock=clock)
    budget = Budget(nano(50_000), name="team", store=worker)
    heard: list[str] = []
    budget.on_event(lambda event: heard.append(event.kind))
    for _ in range(3):
        spend(budget, 10)
    server.away = True
    for _ in range(5):  # what is held is given back meanwhile, so there is nothing to look at
        clock.advance(1.0)
        worker.tend()
    assert not worker._held.purses
    assert [kind for kind in heard if kind.startswith("store")] == ["store_lost"]


# Processes that end


def test_a_store_that_nobody_keeps_gives_back_what_it_holds() -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 5)
    alive = weakref.ref(worker)
    del worker
    gc.collect()
    kept = alive()
    assert kept is not None, "it holds money of others"
    for _ in range(3):
        clock.advance(1.0)
        kept.tend()
    del kept
    gc.collect()
    assert alive() is None
    assert below(server).reserved == NOTHING


WORK = """
import os, sys
from tests.engine.helpers import nano, spend
from tokenfence_integrations import Budget
budget = Budget(nano(100_000), name="team", store=sys.argv[1], slice="2%")
for _ in range(50):
    spend(budget, 10)
assert budget._tree.store._held.purses
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        assert not budget._tree.store._held.purses
        spend(budget, 10)
        spend(budget, 10)
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
elif sys.argv[2] == "kill":
    [purse] = budget._tree.store._held.purses.values()
    while purse.spare is None:  # borrowed by the thread when the first half is used up by half
        spend(budget, 1)
    os.kill(os.getpid(), 9)
"""


def work(file: File, how: str) -> int:
    root = str(File(__file__).parents[2])
    url = f"sqlite:///{file}"
    run = [sys.executable, "-c", WORK, url, how]
    return subprocess.run(run, cwd=root, env={**os.environ, "PYTHONPATH": root}).returncode


@pytest.mark.parametrize(("how", "calls"), [("exit", 50), ("fork", 52)])
def test_a_process_that_ends_has_given_back_all(tmp_path: File, how: str, calls: int) -> None:
    assert work(tmp_path / "budgets.db", how) == 0
    now = Budget(name="team", store=f"sqlite:///{tmp_path}/budgets.db").snapshot()
    assert now.spent.usd == calls * 10
    assert now.reserved == now.uncertain == NOTHING


def test_of_a_killed_process_what_it_drew_on_turns_uncertain_and_what_it_had_in_reserve_is_free(
    tmp_path: File,
) -> None:
    assert work(tmp_path / "budgets.db", "kill") == -signal.SIGKILL
    ahead = FakeClock()
    store = SQLiteStore(tmp_path / "budgets.db", clock=lambda: time.time() + ahead.now - 1_000)
    budget = Budget(name="team", store=store)
    held = budget.snapshot().reserved.usd
    assert held >= 1_000, "one half is in reserve, and something of another may be left"
    ahead.advance(61)
    now = budget.snapshot()
    assert now.reserved == NOTHING
    assert now.uncertain.usd <= min(1_500, held - 1_000)
    charges = budget.charges()  # of one half, or of two if it had just gone on to the next
    assert sum(charge.amount.usd for charge in charges) == now.uncertain.usd
    assert all(charge.what == SLICE for charge in charges)
    assert all(budget.resolve(charge, nano(200)) for charge in charges)
    assert budget.snapshot().spent.usd == now.spent.usd + 200 * len(charges)
    assert budget.snapshot().uncertain == NOTHING


# What is asked for


@pytest.mark.parametrize("share", ["2", "0%", "-1%", "51%", "two%", 2, "1/0%", "nan%"])
def test_a_slice_is_a_share_of_a_half_at_most(share: Any, tmp_path: File) -> None:
    with pytest.raises(ValueError, match="a slice is a share of the limit, from above 0% to 50%"):
        Budget("$5", store=f"sqlite:///{tmp_path}/never.db", slice=share)
    assert not [*tmp_path.iterdir()], "a file was made although nothing can be done with it"


def test_a_budget_in_memory_has_no_slices(tmp_path: File) -> None:
    with pytest.raises(ValueError, match="a store in memory is quicker"):
        Budget("$5", slice="2%")
    with pytest.raises(ValueError, match="a store in memory is quicker"):
        Budget("$5", on_store_error="local")
    with pytest.raises(ValueError, match="'raise' or 'local'"):
        Budget("$5", store=f"sqlite:///{tmp_path}/a.db", on_store_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong to the root"):
        Budget("$5").child("writer", slice="2%")


def test_budgets_that_ask_for_the_same_share_their_slices(tmp_path: File) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    one, two = (Budget("$5", name=name, store=url, slice="2%") for name in ("a", "b"))
    other = Budget("$5", name="c", store=url, slice="3%")
    assert one._tree.store is two._tree.store is not other._tree.store


async def test_tasks_take_from_slices_as_threads_do() -> None:
    server, clock = Server(), FakeClock()
    worker = on(server, clock=clock)

    async def call(key: int) -> None:
        assert (await worker.aexecute(Reserve(TEAM, key, CALL))).done
        await asyncio.sleep(0)
        assert (await worker.aexecute(End(TEAM, key, Amount(5), NOTHING))).done

    await asyncio.gather(*[call(key) for key in range(1, 60)])
    before = server.asked
    await asyncio.gather(*[call(key) for key in range(101, 160)])
    assert server.asked == before
    worker.give_back()
    assert below(server).spent.usd == 59 * 2 * 5


def test_a_call_that_a_finalizer_ends_in_the_midst_of_a_report_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, keys, clock = Server(), count(1), FakeClock()
    worker = on(server, clock=clock)
    use(worker, keys, 3)
    assert worker.reserve(TEAM, 77, CALL).done
    late = [77]

    def collected(*amounts: Any) -> Amount:
        if late:
            worker.end(TEAM, late.pop(), Amount(7, 1, 1, 1), NOTHING)
        return above_zero(*amounts)

    above_zero = purse._above_zero
    monkeypatch.setattr(purse, "_above_zero", collected)
    worker.give_back()
    assert not late
    worker.give_back()
    assert below(server).spent == Amount(22, 4, 7, 4)
    assert below(server).reserved == NOTHING

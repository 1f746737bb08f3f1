"""Slices: processes that each hold a part of the same accounts, played by stores over one."""

from dataclasses import dataclass
from itertools import count
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

from tests.engine.helpers import FakeClock
from tokenfence_integrations.stores import slicing
from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Adjust,
    Amount,
    Limits,
    Open,
    Path,
    Read,
)
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.slices import SlicedStore

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
            if any(other._purses for other in others):
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
        assert not any(worker._purses or worker._calls for worker in self.workers)


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
    longer = settings(max_examples=4 * settings.default.max_examples, report_multiple_bugs=False)
    run_state_machine_as_test(ThisFleet, settings=longer)

"""Promises 1, 2 and 4 for budgets with windows: in each window, and in the sum of all."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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

from tests.engine.helpers import FakeClock, nano, reserve
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Call, LedgerRecord, Usage
from tokenfence_integrations.stores.base import Read, Store

UNIT = {"minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
START = datetime(2026, 11, 24, 10, tzinfo=UTC).timestamp()

windows = st.sampled_from([None, *UNIT, timedelta(minutes=7), timedelta(hours=5)])
limits = st.none() | st.integers(0, 300)


@dataclass
class Books:
    """What a window of one budget of the model holds."""

    limit: int | None
    spent: int = 0
    reserved: int = 0
    uncertain: int = 0

    @property
    def used(self) -> int:
        return self.spent + self.reserved + self.uncertain


@dataclass
class Model:
    """One budget of the model: a dict of windows by their start, found by division alone.

    All units used here begin at multiples of their length in UTC, but for weeks (from a Monday) and
    fixed lengths (from the first use).
    """

    limit: int | None
    per: Any
    parent: "Model | None"
    anchor: int | None = None
    books: dict[int, Books] = field(default_factory=dict)
    total: int = 0

    def start(self, now: float) -> int:
        if self.per is None:
            return 0
        if isinstance(self.per, timedelta):
            if self.anchor is None:
                self.anchor = int(now)
            length = int(self.per.total_seconds())
            return self.anchor + (int(now) - self.anchor) // length * length
        monday = 4 * 86_400 if self.per == "week" else 0
        return (int(now) - monday) // UNIT[self.per] * UNIT[self.per] + monday

    def at(self, now: float) -> Books:
        return self.books.setdefault(self.start(now), Books(self.limit))

    def path(self) -> list["Model"]:
        return [self, *(self.parent.path() if self.parent else [])]

    def open(self, now: float) -> list[Books]:
        return [model.at(now) for model in self.path()]


class Windows(RuleBasedStateMachine):
    """A tree of budgets with any windows, whose clock is moved to and fro, beside a model."""

    make_store: Callable[[], Store]
    budgets: Bundle[tuple[Budget, Model]] = Bundle("budgets")
    calls: Bundle[tuple[Call, Model, list[Books], int]] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(START)
        self.latest = START
        self.known: list[tuple[Budget, Model]] = []
        self.open = 0

    def _known(self, budget: Budget, model: Model) -> tuple[Budget, Model]:
        self.known.append((budget, model))
        return budget, model

    @initialize(target=budgets, limit=limits, per=windows)
    def root(self, limit: int | None, per: Any) -> Any:
        usd = None if limit is None else nano(limit)
        store = type(self).make_store()
        budget = Budget(
            usd, per=per, name="budget", store=store, ledger_size=3, clock=self.clock.clock
        )
        return self._known(budget, Model(limit, per, None))

    @rule(target=budgets, parent=budgets, limit=limits, per=windows)
    def child(self, parent: tuple[Budget, Model], limit: int | None, per: Any) -> Any:
        if len(self.known) >= 5:
            return multiple()
        usd = None if limit is None else nano(limit)
        budget = Budget(usd, per=per, name=f"budget-{len(self.known)}", parent=parent[0])
        return self._known(budget, Model(limit, per, parent[1]))

    @rule(seconds=st.sampled_from([1, 59, 60, 600, 3_599, 7_200, 86_400, 700_000]))
    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.latest = max(self.latest, self.clock.now)

    @rule(seconds=st.sampled_from([1, 60, 3_600]))
    def clock_set_back(self, seconds: float) -> None:
        for budget, _ in self.known:
            budget.charged_path()  # it has seen the time that is now undone
        self.clock.advance(-seconds)

    @rule(target=calls, on=budgets, size=st.integers(0, 120), warn=st.booleans())
    def admit(self, on: tuple[Budget, Model], size: int, warn: bool) -> Any:
        budget, model = on
        open_now = model.open(self.latest)
        fits = all(b.limit is None or b.used + size <= b.limit for b in open_now)
        call = reserve(budget, size, wait=0, on_limit="warn" if warn and fits else "raise")
        try:
            call.admit()
        except BudgetExceeded:
            assert not fits, "refused although it fits"
            return multiple()
        assert fits, "admitted although it does not fit"
        for books in open_now:
            books.reserved += size
        self.open += 1
        return call, model, open_now, size

    @rule(entry=consumes(calls), share=st.integers(0, 100), how=st.sampled_from(["settle", "lose"]))
    def end(self, entry: tuple[Call, Model, list[Books], int], share: int, how: str) -> None:
        call, model, admitted_in, size = entry
        cost = size * share // 100
        if how == "settle":
            call.settle(Usage(0, cost))
            for each in model.path():
                each.total += cost
        else:
            call.lose()
        for books in admitted_in:
            books.reserved -= size
            if how == "settle":
                books.spent += cost
            else:
                books.uncertain += size
        self.open -= 1

    @rule(on=budgets, amount=st.integers(0, 50))
    def top_up(self, on: tuple[Budget, Model], amount: int) -> None:
        budget, model = on
        if model.limit is not None:
            budget.top_up(nano(amount))
            books = model.at(self.latest)
            assert books.limit is not None
            books.limit += amount

    @invariant()
    def the_open_window_is_that_of_the_model(self) -> None:
        for budget, model in self.known:
            now, books = budget.snapshot(), model.at(self.latest)
            found = (now.limits.usd, now.spent.usd, now.reserved.usd, now.uncertain.usd)
            assert found == (books.limit, books.spent, books.reserved, books.uncertain), budget
            if books.limit is not None:
                assert sum(found[1:]) <= books.limit
            told = budget._tree.ledger.total(budget.charged_path()[0])
            assert told == (books.spent, books.uncertain), "the window's part of the ledger"

    @invariant()
    def the_ledger_has_the_sum_of_all_windows(self) -> None:
        for budget, model in self.known:
            assert budget.ledger.total == model.total == sum(b.spent for b in model.books.values())

    @invariant()
    def every_reservation_ends_once(self) -> None:
        if self.known:
            assert len(self.known[0][0]._tree.live) == self.open


@pytest.mark.parametrize("store", sorted(STORES))
def test_every_history_keeps_the_promises_in_every_window(store: str) -> None:
    class OnThisStore(Windows):
        make_store = STORES[store]

    run_state_machine_as_test(OnThisStore, settings=settings(deadline=None))


@pytest.mark.parametrize("store", sorted(STORES))
def test_calls_at_the_boundary_of_windows(store: str) -> None:
    """Threads call while the minute changes under them: no window holds more than its limit."""
    clock = FakeClock(START)
    records: list[LedgerRecord] = []
    org = Budget(
        nano(10_000),
        per="hour",
        name="org",
        store=STORES[store](),
        clock=clock.clock,
        sink=records.append,
    )
    agents = [org.child(name, nano(200), per="minute") for name in "ab"]
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            together.wait()
            for _ in range(60):
                call = reserve(chance.choice(agents), chance.randrange(1, 60), wait=0)
                try:
                    call.admit()
                except BudgetExceeded:
                    clock.now = max(clock.now, (clock.now // 60 + 1) * 60)
                    continue
                call.settle(Usage(0, chance.randint(0, call.bound.output_tokens)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    sums: dict[str, int] = {}
    for record in records:
        assert len(record.accounts) == 2
        for account in record.accounts:
            sums[account] = sums.get(account, 0) + record.cost
    minutes = {account: cost for account, cost in sums.items() if "/" in account}
    assert len(minutes) > 4, "no minute has ended"
    assert max(minutes.values()) <= 200
    assert org.snapshot().reserved.calls == 0
    assert org.ledger.total == sum(record.cost for record in records)
    assert sum(agent.ledger.total for agent in agents) == org.ledger.total
    for account in agents[0].charged_path():
        [state] = org._tree.store.execute(Read((account,))).states
        assert state.spent_usd == sums.get(account, 0)

"""Budgets whose limits hold for a window of time, under clocks that the tests move."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.engine.helpers import BOOK, FakeClock, charged, listen, nano, reserve, spend
from tests.engine.window_budgets import BERLIN, DAY, HOUR, at, daily
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, StoreError, Usage
from tokenfence_integrations.engine.limits import quota
from tokenfence_integrations.engine.tree import Clock
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.stores.base import Read, Store


@pytest.fixture
def clock() -> FakeClock:
    return at("2026-11-24T10:00")


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


def in_store(budget: Budget, account: str) -> int:
    """What the store itself says is spent in an account."""
    return budget._tree.store.execute(Read((account,))).states[0].spent_usd


def exists(budget: Budget, account: str) -> bool:
    try:
        in_store(budget, account)
    except KeyError:
        return False
    return True


# One window after the other


def test_each_window_has_its_limit_anew(clock: FakeClock, store: Store) -> None:
    budget = daily(100, clock, name="acme", store=store)
    spend(budget, 60)
    with pytest.raises(BudgetExceeded):
        spend(budget, 60)
    clock.advance(DAY)
    assert charged(budget) == (0, 0, 0)
    spend(budget, 60)
    assert (in_store(budget, "acme~2026-11-24"), in_store(budget, "acme~2026-11-25")) == (60, 60)
    assert budget.ledger.total == 120
    assert [record.accounts for record in budget.ledger] == [
        ("acme~2026-11-24",),
        ("acme~2026-11-25",),
    ]
    assert {record.budget for record in budget.ledger} == {"acme"}


async def test_also_in_tasks(clock: FakeClock, store: Store) -> None:
    budget = daily(100, clock, store=store)
    for _ in range(3):
        async with reserve(budget, 100) as call:
            await call.asettle(Usage(0, 100))
        with pytest.raises(BudgetExceeded):
            await reserve(budget, 100).aadmit()
        clock.advance(DAY)
    assert budget.ledger.total == 300


def test_a_call_belongs_to_the_window_that_admitted_it(clock: FakeClock, store: Store) -> None:
    budget = daily(100, clock, name="acme", store=store)
    call = reserve(budget, 70).admit()
    clock.advance(DAY)
    assert charged(budget) == (0, 0, 0)
    spend(budget, 100)
    call.settle(Usage(0, 55))
    assert charged(budget) == (100, 0, 0)
    assert in_store(budget, "acme~2026-11-24") == 55


def test_the_window_is_told(clock: FakeClock) -> None:
    budget = daily(100, clock, name="acme", tz="Europe/Berlin")
    window = budget.window
    assert window is not None
    assert window.name == "2026-11-24"
    assert datetime.fromtimestamp(window.start, BERLIN) == datetime(2026, 11, 24, tzinfo=BERLIN)
    assert datetime.fromtimestamp(window.end, BERLIN) == datetime(2026, 11, 25, tzinfo=BERLIN)
    clock.advance(DAY)
    assert budget.window != window
    assert "acme (2026-11-25): " in budget.tree()
    assert Budget("$1").window is None
    assert budget.child("agent").window is None


def test_top_up_and_reset_are_for_the_window_that_is_open(clock: FakeClock, store: Store) -> None:
    budget = daily(100, clock, store=store)
    budget.top_up(nano(50))
    spend(budget, 150)
    budget.reset()
    spend(budget, 150)
    clock.advance(DAY)
    with pytest.raises(BudgetExceeded):
        spend(budget, 101)
    spend(budget, 100)
    assert budget.ledger.total == 250


def test_what_is_recorded_counts_in_the_window(clock: FakeClock) -> None:
    budget = daily(100, clock)
    budget.record(nano(80))
    clock.advance(DAY)
    budget.record(nano(30))
    assert (charged(budget)[0], budget.ledger.total) == (30, 110)


def test_crossing_the_threshold_is_told_once_per_window(clock: FakeClock) -> None:
    budget = daily(100, clock)
    events = listen(budget)
    for _ in range(2):
        spend(budget, 85)
        spend(budget, 5)
        clock.advance(DAY)
    crossed = [event.budget for event in events if event.kind == "threshold_crossed"]
    assert crossed == ["budget", "budget"]


def test_a_clock_that_is_set_back_opens_no_window_again(clock: FakeClock) -> None:
    budget = daily(100, clock)
    child = budget.child("agent", "$1/hour")
    spend(child, 10)
    clock.advance(14 * HOUR + 60)
    spend(budget, 70)
    clock.advance(-HOUR)
    assert charged(budget) == (70, 0, 0)
    spend(child, 10)
    assert (charged(budget)[0], charged(child)[0]) == (80, 10)
    assert child.window is not None
    assert child.window.name == "2026-11-25T00+00:00"


# Trees


def test_windows_of_different_lengths_in_one_path(clock: FakeClock, store: Store) -> None:
    """A month's org, a day's team, an agent with a total."""
    org = Budget(nano(250), per="month", name="org", store=store, clock=clock.clock)
    team = org.child("team", nano(100), per="day")
    agent = team.child("agent", nano(220))
    assert agent.charged_path() == ("org/team/agent", "org/team~2026-11-24", "org~2026-11")
    spent = []
    for _ in range(9):
        total = 0
        while True:
            try:
                total += spend(agent, 10).cost
            except BudgetExceeded as refusal:
                spent.append((total, refusal.name))
                break
        clock.advance(DAY)
    # Two days' limits, the rest of the agent's total, and then it is used up for good.
    assert spent[:3] == [(100, "org/team"), (100, "org/team"), (20, "org/team/agent")]
    assert spent[3:] == [(0, "org/team/agent")] * 6
    assert agent.snapshot().spent.usd == agent.ledger.total == 220
    assert team.ledger.total == org.ledger.total == 220
    assert in_store(org, "org~2026-11") == 220
    assert charged(org) == (0, 0, 0), "December"
    spend(team, 100)
    assert (charged(team)[0], charged(org)[0], org.ledger.total) == (100, 100, 320)


def test_a_window_below_a_total(clock: FakeClock) -> None:
    total = Budget(nano(250), clock=clock.clock)
    agent = total.child("agent", "$0.0000001/day")
    for day, room in enumerate((100, 100, 50, 0)):
        refused = None
        try:
            for _ in range(11):
                spend(agent, 10)
        except BudgetExceeded as refusal:
            refused = refusal
        assert refused is not None
        assert charged(agent)[0] == room
        assert (refused.retry_after is not None) == (day < 2)
        clock.advance(DAY)


def test_children_inherit_the_time_zone() -> None:
    clock = at("2026-11-24T23:30")
    org = Budget("$100", tz="Europe/Berlin", clock=clock.clock)
    names = [
        budget.window.name
        for budget in (
            org.child("a", "$1/day"),
            org.child("b", "$1/day", tz="UTC"),
            org.child("c").child("d", "$1/hour"),
        )
        if budget.window is not None
    ]
    assert names == ["2026-11-25", "2026-11-24", "2026-11-25T00+01:00"]


def test_a_child_is_the_same_only_with_the_same_window(clock: FakeClock) -> None:
    org = Budget("$100", clock=clock.clock)
    agent = org.child("agent", "$2/day")
    assert org.child("agent") is org.child("agent", "$2.00 per day") is agent
    assert org.child("agent", 2, per="day") is agent
    for other in ({"usd": "$2"}, {"usd": "$2/week"}, {"usd": "$2/day", "tz": "Europe/Berlin"}):
        with pytest.raises(ValueError, match="exists with"):
            org.child("agent", **other)


def test_a_passing_budget_below_windows_leaves_its_sum(clock: FakeClock) -> None:
    org = daily(10_000, clock, name="org", ledger_size=0)
    one = Budget(nano(5_000), parent=org, kept=False)
    for _ in range(100):
        spend(one, 3)
    clock.advance(DAY)
    for _ in range(100):
        spend(one, 4)
    account = one.charged_path()[0]
    del one
    assert charged(org) == (400, 0, 0)
    assert not exists(org, account)
    clock.advance(5 * DAY)
    spend(org, 1)
    assert org.ledger.total == 701


# Accounts of windows that are over


def test_accounts_are_dropped_once_they_are_long_over(clock: FakeClock, store: Store) -> None:
    budget = daily(100, clock, name="acme", store=store)
    for day in (24, 25, 26, 27):
        spend(budget, 10)
        kept = [n for n in (24, 25, 26, 27) if n <= day and exists(budget, f"acme~2026-11-{n}")]
        assert kept == [n for n in (day - 1, day) if n >= 24]
        clock.advance(DAY)
    assert budget.ledger.total == 40


def test_short_windows_are_kept_for_ten_minutes(clock: FakeClock) -> None:
    budget = Budget("1 call/minute", name="acme", clock=clock.clock)
    for _ in range(15):
        spend(budget, 1)
        clock.advance(60)
    spend(budget, 1)
    names = [f"acme~2026-11-24T10:{minute:02}+00:00" for minute in range(16)]
    assert [exists(budget, name) for name in names] == [False] * 5 + [True] * 11


def test_an_account_with_a_call_in_flight_stays_until_that_has_ended(clock: FakeClock) -> None:
    budget = daily(100, clock, name="acme")
    call = reserve(budget, 50).admit()
    for _ in range(4):
        clock.advance(DAY)
        spend(budget, 1)
    assert exists(budget, "acme~2026-11-24")
    call.settle(Usage(0, 20))
    assert in_store(budget, "acme~2026-11-24") == 20
    clock.advance(DAY)
    spend(budget, 1)
    assert not exists(budget, "acme~2026-11-24")
    assert budget.ledger.total == 25


def test_what_a_process_left_behind_is_dropped_by_the_next(clock: FakeClock, store: Store) -> None:
    for _ in range(4):
        budget = daily(100, clock, name="acme", store=store)
        spend(budget, 10)
        clock.advance(DAY)
    kept = [exists(budget, f"acme~2026-11-{day}") for day in (24, 25, 26, 27)]
    assert kept == [False, False, True, True]


class Meanwhile(PriceBook):
    """Has something done between the look at the windows and the reservation, as a thread may."""

    then: Callable[[], object] | None = None

    def card(self, model: str) -> Card:
        then, self.then = self.then, None
        if then is not None:
            then()
        return BOOK.card(model)


@pytest.mark.parametrize("days", [1, 2, 30])
def test_a_clock_that_jumps_takes_no_account_from_a_call_that_is_being_admitted(
    store: Store, days: int
) -> None:
    wall, clock = at("2026-11-24T10:00"), FakeClock()
    budget = Budget(nano(100), per="day", name="acme", store=store, clock=Clock(wall, clock))
    book = Meanwhile()

    def jump() -> None:
        wall.advance(days * DAY)
        spend(budget, 30)

    book.then = jump
    with budget.reserve(
        model="model", input_tokens=0, max_output_tokens=70, prices=book, wait=0
    ) as call:
        call.settle(Usage(0, 70))
    assert charged(budget) == (30, 0, 0)
    assert in_store(budget, "acme~2026-11-24") == 70
    wall.advance(3 * DAY)
    clock.advance(599)
    spend(budget, 1)
    assert exists(budget, "acme~2026-11-24"), "dropped before ten minutes have passed"
    wall.advance(3 * DAY)
    clock.advance(1)
    spend(budget, 1)
    assert not exists(budget, "acme~2026-11-24"), "never dropped"


def test_a_window_that_opens_while_the_clock_jumps_is_not_dropped(store: Store) -> None:
    wall = at("2026-11-24T10:00")
    budget = Budget(nano(100), per="day", name="acme", store=store, clock=Clock(wall, FakeClock()))
    tree = budget._tree

    class Late(OwnLock):
        """Taken after another thread has seen a later moment."""

        def __enter__(self) -> None:
            tree.moving = moving
            wall.advance(5 * DAY)
            tree.now()
            moving.__enter__()

        def __exit__(self, *error: object) -> None:
            moving.__exit__(*error)

    moving, tree.moving = tree.moving, Late()
    wall.advance(DAY)
    spend(budget, 70)
    assert in_store(budget, "acme~2026-11-25") == 70


def test_an_account_that_another_clock_holds_to_be_long_over_is_a_matter_of_clocks() -> None:
    store = STORES["sqlite"]()
    late = daily(100, at("2026-11-24T10:00"), name="acme", store=store)
    daily(100, at("2026-11-26T10:00"), name="acme", store=store)  # another process's, two days on
    with pytest.raises(StoreError, match=r"acme~2026-11-24.*set the clocks right"):
        spend(late, 10)


def test_a_call_that_comes_while_windows_change_is_charged_to_one(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    budget = daily(100, clock, name="acme", store=store)
    made = quota.Accounts

    def making(*arguments: Any) -> Any:
        spend(budget, 20)  # in another thread, say
        return made(*arguments)

    monkeypatch.setattr(quota, "Accounts", making)
    budget.configure("$1/hour", threshold=0.8)
    spend(budget, 30)
    assert in_store(budget, "acme~2026-11-24") == 20
    assert in_store(budget, "acme~2026-11-24T10+00:00") == 30


def test_the_window_can_end_while_it_is_asked_for(clock: FakeClock) -> None:
    def now() -> float:
        if ends:
            ends.pop()
            budget.configure("$1", threshold=0.8)  # by another thread, say
        return clock()

    ends: list[bool] = []
    budget = Budget("$1/day", clock=Clock(now, clock))
    ends.append(True)
    window = budget.window
    assert window is not None
    assert window.name == "2026-11-24"
    assert budget.window is None


@pytest.mark.parametrize("size", [0, 3])
def test_the_ledgers_sums_are_exact_by_window_and_in_all(clock: FakeClock, size: int) -> None:
    org = daily(100_000, clock, name="org", ledger_size=size)
    agents = [org.child("one", nano(500), per="hour"), org.child("two", nano(90_000))]
    for hour in range(100):
        for agent in agents:
            for _ in range(3):
                spend(agent, 1 + hour % 4)
        for budget in (org, *agents):
            account = budget.charged_path()[0]
            now = budget.snapshot()
            told = budget._tree.ledger.total(account)
            assert told == (now.spent.usd, now.uncertain.usd)
        clock.advance(HOUR)
    assert [agent.ledger.total for agent in agents] == [750, 750]
    assert org.ledger.total == 1500
    assert len(org._tree.ledger._left) < 60, "sums of windows are kept for ever"


def test_uncertain_charges_of_the_last_window_can_still_be_resolved(
    clock: FakeClock, store: Store
) -> None:
    budget = daily(100, clock, name="acme", store=store)
    agent = budget.child("agent")
    for size in (30, 40):
        reserve(agent, size).admit().lose()
        clock.advance(DAY)
    reserve(agent, 50).admit().lose()
    assert [charge.amount.usd for charge in budget.charges()] == [40, 50]
    assert [charge.amount.usd for charge in agent.charges()] == [30, 40, 50]
    events = listen(budget)
    for charge in budget.charges():
        assert budget.resolve(charge, nano(10))
    assert [event.kind for event in events] == ["resolved"] * 2
    assert charged(budget) == (10, 0, 0)
    assert in_store(budget, "acme~2026-11-25") == 10
    assert budget.ledger.total == 20
    assert charged(agent) == (20, 0, 30)


# Windows of a fixed length


def test_fixed_windows_count_from_the_first_use(clock: FakeClock, store: Store) -> None:
    budget = Budget(
        nano(100), per=timedelta(hours=5), name="budget", store=store, clock=clock.clock
    )
    clock.advance(1_000.5)
    spend(budget, 100)
    window = budget.window
    assert window is not None
    assert (window.start, window.end) == (int(clock.now), int(clock.now) + 5 * HOUR)
    clock.advance(5 * HOUR - 1)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, 100, wait=0)
    assert caught.value.retry_after == pytest.approx(0.5)
    clock.advance(0.5)
    spend(budget, 100)
    clock.advance(11 * HOUR)
    assert budget.window == window._replace(
        name=budget.window.name,  # type: ignore[union-attr]
        start=window.start + 15 * HOUR,
        end=window.end + 15 * HOUR,
    )


async def test_all_processes_agree_on_fixed_windows(clock: FakeClock, store: Store) -> None:
    late = FakeClock(clock.now + HOUR)
    one, two = [
        Budget(nano(100), per=timedelta(hours=5), name="acme", store=store, clock=each.clock)
        for each in (clock, late)
    ]
    agent = two.child("agent", nano(70), per=timedelta(hours=1))
    spend(one, 60)
    with pytest.raises(BudgetExceeded, match="'acme'"):
        await reserve(agent, 60).aadmit()
    async with reserve(agent, 40) as call:
        await call.asettle(Usage(0, 40))
    assert one.window == two.window
    assert agent.window != two.window
    assert charged(one) == charged(two) == (100, 0, 0)

"""Budgets whose limits hold for a window of time, under clocks that the tests move."""

import asyncio
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.engine.helpers import BOOK, FakeClock, charged, listen, nano, reserve, spend
from tests.engine.waiters import Asleep, Worker, idle
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, StoreError, Usage
from tokenfence_integrations.engine.calls.admitting import Admission
from tokenfence_integrations.engine.drivers import Sleep
from tokenfence_integrations.engine.limits import quota
from tokenfence_integrations.engine.tree import Clock
from tokenfence_integrations.engine.waiting import PATIENCE, STALLED_AFTER, SyncWaiter
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.stores.base import Read, Reply, Store

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600
DAY = 24 * HOUR


def at(text: str, zone: Any = UTC) -> FakeClock:
    return FakeClock(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


@pytest.fixture
def clock() -> FakeClock:
    return at("2026-11-24T10:00")


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


def daily(limit: int, clock: FakeClock, **options: Any) -> Budget:
    return Budget(nano(limit), per="day", clock=clock.clock, **{"name": "budget", **options})


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


# Refusals


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

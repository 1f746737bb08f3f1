"""Limits that change while calls are in flight, and shares that follow them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.helpers import BOOK, FakeClock, charged, nano, reserve, small, spend
from tests.engine.waiters import Worker, idle
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Price, PriceBook, Usage
from tokenfence_integrations.stores.base import Limits, Store
from tokenfence_integrations.stores.memory import MemoryStore


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


DEAR = PriceBook({"dear": Price(input="$1/M", output="$10/M", max_output_tokens=10_000)})


def limit(budget: Budget) -> int | None:
    return budget.snapshot().limits.usd


# set_limits


def test_only_limits_that_are_named_change(store: Store) -> None:
    budget = Budget("$5", calls=10, tokens=1_000, name="budget", store=store)
    budget.set_limits("$7", calls=None, output_tokens=3)
    assert budget.snapshot().limits == Limits(
        usd=7 * 10**9, calls=None, tokens=1_000, output_tokens=3
    )
    budget.set_limits("50 calls")
    assert budget.snapshot().limits.calls == 50
    assert limit(budget) == 7 * 10**9


def test_a_lower_limit_admits_nothing_until_what_is_in_flight_has_made_room(store: Store) -> None:
    budget = small(100, store=store)
    spend(budget, 10)
    with reserve(budget, 60) as call:
        budget.set_limits(nano(50))
        with pytest.raises(BudgetExceeded, match="spent"):
            reserve(budget, 10, wait=0).admit()
        call.settle(Usage(0, 20))
    spend(budget, 20)
    with pytest.raises(BudgetExceeded):
        reserve(budget, 1, wait=0).admit()
    assert charged(budget) == (50, 0, 0)


def test_a_call_that_waits_is_admitted_once_the_limit_is_raised(asleep: Any) -> None:
    budget = small(10)
    held = reserve(budget, 10).admit()
    waiter = Worker(lambda: spend(budget, 10))
    asleep.wait()
    budget.set_limits(nano(20))
    waiter.result()
    assert charged(budget) == (10, 10, 0)
    held.release()


async def test_a_call_that_waits_is_refused_once_the_limit_is_too_low() -> None:
    budget = small(20)
    held = reserve(budget, 20).admit()
    waiting = asyncio.create_task(reserve(budget, 20).aadmit())
    await idle()
    budget.set_limits(nano(15))
    with pytest.raises(BudgetExceeded):
        await waiting
    held.release()


def test_they_last_until_the_budget_is_made_with_others(store: Store) -> None:
    Budget("$5", name="acme", store=store).set_limits("$7")
    assert Budget("$5", name="acme", store=store).budget == 7
    assert Budget(name="acme", store=store).budget == 7
    assert Budget("$6", name="acme", store=store).budget == 6


def test_another_process_meets_them_at_its_next_call(store: Store) -> None:
    here, there = (Budget(nano(100), name="acme", store=store) for _ in range(2))
    here.set_limits(nano(10))
    with pytest.raises(BudgetExceeded):
        reserve(there, 11, wait=0).admit()
    here.set_limits(nano(20))
    spend(there, 20)


def test_limits_of_a_window_hold_until_the_next() -> None:
    clock = FakeClock()
    budget = Budget("$5/minute", clock=clock.clock)
    budget.set_limits("$7")
    assert budget.budget == 7
    clock.advance(60)
    assert budget.budget == 5
    with pytest.raises(ValueError, match="keeps the window"):
        budget.set_limits("$5/day")


@pytest.mark.parametrize("limits", [{"usd": -1}, {"calls": 1.5}, {"usd": "20%"}, {"tokens": "x"}])
def test_limits_that_are_not_valid_change_nothing(limits: dict[str, Any]) -> None:
    budget = small(5)
    with pytest.raises(ValueError, match=r"money|calls|parent|tokens"):
        budget.set_limits(**limits)
    assert budget.snapshot().limits == Limits(usd=5)


# Shares


@given(
    whole=st.integers(0, 10**12),
    percent=st.decimals(0, 100, places=4),
    later=st.integers(0, 10**12),
)
def test_a_share_is_rounded_down_and_follows(whole: int, percent: Any, later: int) -> None:
    team = small(whole, calls=whole % 1_000)
    child = team.child("a", f"{percent}%", calls="33.3%")
    for now in (whole, later):
        team.set_limits(nano(now), calls=now % 1_000)
        assert limit(child) == now * int(percent * 10_000) // 1_000_000
        assert child.snapshot().limits.calls == (now % 1_000) * 333 // 1_000


def test_shares_of_shares_follow_by_whatever_way_the_limit_changed(store: Store) -> None:
    team = small(1_000, store=store)
    leaf = team.child("group", "50%").child("leaf", "10%", calls=7)
    assert limit(leaf) == 50
    team.top_up(nano(1_000))
    assert limit(leaf) == 100
    team.set_limits(nano(400))
    assert limit(leaf) == 20
    team.configure(nano(600), threshold=0.8)
    assert limit(leaf) == 30
    assert leaf.snapshot().limits.calls == 7


def test_a_share_is_followed_to_where_its_limit_was_when_it_was_made(store: Store) -> None:
    team = small(100, name="acme", store=store)
    child = team.child("a", "50%")
    child.set_limits("25%")
    team.top_up(nano(100))
    assert limit(child) == 50


def test_the_same_when_another_process_has_changed_it(store: Store) -> None:
    here, there = (small(100, name="acme", store=store) for _ in range(2))
    child = there.child("a", "50%")
    child.set_limits("25%")
    here.set_limits(nano(200))
    spend(child, 50)
    assert limit(child) == 50


def test_what_another_process_sets_in_the_place_of_a_share_stays(store: Store) -> None:
    """Until the parent's limit changes, which the share follows."""
    here, there = (small(100, name="acme", store=store) for _ in range(2))
    child = there.child("a", "50%")
    here.child("a").set_limits(nano(10))
    with pytest.raises(BudgetExceeded):
        reserve(child, 11, wait=0).admit()
    there.set_limits(calls=9)
    assert limit(child) == 10
    there.set_limits(nano(60))
    assert limit(child) == 30


def test_a_share_is_made_anew_as_it_has_followed(store: Store) -> None:
    team = small(100, name="acme", store=store)
    team.child("a", "50%")
    team.set_limits(nano(400))
    after = Budget(name="acme", store=store)
    after.set_limits(nano(100))  # before it knows of the child
    assert limit(after.child("a", "50%")) == 50


def test_shares_may_promise_more_than_there_is(store: Store) -> None:
    team = small(100, store=store)
    children = [team.child(name, "80%") for name in "ab"]
    spend(children[0], 80)
    with pytest.raises(BudgetExceeded, match="'budget'"):
        reserve(children[1], 30, wait=0).admit()
    spend(children[1], 20)
    assert charged(team) == (100, 0, 0)


def test_five_children_that_are_promised_all_of_it_never_spend_more_together(store: Store) -> None:
    """Five sessions of $1 each below $1, at once: one dollar is spent."""
    parent = Budget("$1", name="parent", store=store)
    sessions = [parent.child(f"session-{n}", "$1" if n % 2 else "100%") for n in range(5)]
    workers = [Worker(lambda s=session: _spend_all(s)) for session in sessions]
    spent = [worker.result() for worker in workers]
    assert sum(spent) == parent.snapshot().spent.usd == 10**9
    assert [session.snapshot().spent.usd for session in sessions] == spent


def _spend_all(budget: Budget) -> int:
    spent = 0
    try:
        while True:
            with budget.reserve(
                model="dear", input_tokens=0, max_output_tokens=9_000, prices=DEAR
            ) as call:
                call.settle(Usage(0, call.bound.output_tokens))
            spent += call.cost
    except BudgetExceeded:
        return spent


def test_a_share_that_another_process_has_changed_is_found_before_a_refusal(store: Store) -> None:
    here, there = (Budget(nano(100), name="acme", store=store) for _ in range(2))
    child = there.child("a", "50%")
    leaf = child.child("leaf", "50%")
    here.top_up(nano(900))
    spend(leaf, 250)
    assert (limit(child), limit(leaf)) == (500, 250)
    with pytest.raises(BudgetExceeded):
        reserve(leaf, 1, wait=0).admit()


def test_a_share_has_the_windows_of_its_parent() -> None:
    clock = FakeClock()
    team = Budget("$10/minute", clock=clock.clock)
    child = team.child("a", "20%")
    spend(child, 5)
    team.top_up("$10")
    assert child.budget == 4
    clock.advance(60)
    assert (child.budget, charged(child)) == (2, (0, 0, 0))


def test_a_share_follows_in_every_window_anew() -> None:
    clock = FakeClock()
    team = Budget("$10/minute", clock=clock.clock)
    child = team.child("a", "20%")
    for _ in range(3):
        assert child.budget == 2
        team.top_up("$10")
        assert child.budget == 4
        team.set_limits("$30")
        assert child.budget == 6
        clock.advance(60)


def test_what_is_set_in_the_place_of_a_share_holds_until_the_next_window() -> None:
    clock = FakeClock()
    team = Budget("$10/minute", clock=clock.clock)
    child = team.child("a", "20%", calls=5)
    child.set_limits("$3")
    team.top_up("$10")
    assert child.budget == 3
    child.set_limits("50%")
    assert child.budget == 10
    clock.advance(60)
    assert child.budget == 2
    child.top_up(calls=1)
    with pytest.raises(ValueError, match="top up the parent"):
        child.top_up("$1")
    team.top_up("$10")
    assert child.budget == 4
    assert child.snapshot().limits.calls == 6


def test_a_share_that_another_process_has_changed_is_found_in_the_next_window_too() -> None:
    clock, store = FakeClock(), MemoryStore()
    here, there = (
        Budget("100 tokens/minute", name="acme", store=store, clock=clock.clock) for _ in range(2)
    )
    child = there.child("a", tokens="50%")
    for _ in range(3):
        here.top_up(tokens=100)
        spend(child, 100)
        with pytest.raises(BudgetExceeded, match="'acme/a'"):
            reserve(child, 1, wait=0).admit()
        clock.advance(60)


def test_a_share_of_windows_from_first_use_on_has_to_say_its_own() -> None:
    team = Budget("$10", per=timedelta(hours=5))
    with pytest.raises(ValueError, match="needs its own per="):
        team.child("a", "20%")
    assert team.child("a", "20%", per=timedelta(hours=5)).budget == 2


@pytest.mark.parametrize(
    ("parent", "share", "said"),
    [
        (Budget(calls=5), "20%", "20% of its parent's usd, but the parent has no limit of usd"),
        (Budget("$5"), "120%", "from '0%' to '100%'"),
        (Budget("$5"), "x%", "from '0%' to '100%'"),
        (Budget("$5"), "-5%", "from '0%' to '100%'"),
        (None, "20%", "has no parent"),
    ],
)
def test_a_share_of_nothing_is_an_error(parent: Budget | None, share: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(share, parent=parent)
    assert parent is None or not parent.children


def test_a_limit_that_others_have_shares_of_cannot_end() -> None:
    team = Budget("$5", calls=5)
    team.child("a", "20%")
    with pytest.raises(ValueError, match="'budget/a' is a share"):
        team.set_limits(None)
    team.set_limits(calls=None)
    assert team.budget == 5


def test_a_share_is_topped_up_by_its_parent_alone() -> None:
    team = Budget("$5")
    child = team.child("a", "20%", calls=5)
    with pytest.raises(ValueError, match="top up the parent"):
        child.top_up("$1")
    child.top_up(calls=1)
    child.set_limits("$3")
    team.top_up("$5")
    assert child.budget == 3
    assert child.snapshot().limits.calls == 6


def test_the_same_child_is_asked_for_by_the_same_share() -> None:
    team = Budget("$5")
    child = team.child("a", "20%")
    assert team.child("a", "20.0%") is child
    for other in ("$1", "30%"):
        with pytest.raises(ValueError, match="exists with"):
            team.child("a", other)


# Overflow


def pool(store: Store) -> tuple[Budget, Budget, Budget]:
    team = small(100, name="team", store=store)
    lender = team.child("lender", "60%")
    return team, lender, team.child("borrower", nano(40), overflow=True)


def test_what_siblings_leave_can_be_spent_and_nothing_beyond_the_parents_limit(
    store: Store,
) -> None:
    team, lender, borrower = pool(store)
    spend(lender, 30)
    spend(borrower, 70)
    with pytest.raises(BudgetExceeded) as refused:
        reserve(borrower, 1, wait=0).admit()
    assert refused.value.name == "team"
    assert charged(team) == (100, 0, 0)
    assert borrower.usage_ratio == 70 / 40
    assert borrower.remaining == 0


def test_a_borrowed_part_is_gone_for_its_owner(store: Store) -> None:
    """First come, first served: a share is a limit, no reservation."""
    _, lender, borrower = pool(store)
    spend(borrower, 90)
    spend(lender, 10)
    with pytest.raises(BudgetExceeded, match="'team'"):
        reserve(lender, 1, wait=0).admit()


def test_a_part_is_guaranteed_by_a_wall_around_those_who_borrow(store: Store) -> None:
    team = small(100, name="team", store=store)
    sure = team.child("sure", "40%")
    group = team.child("group", "60%")
    borrowers = [group.child(name, "50%", overflow=True) for name in "ab"]
    spend(borrowers[0], 60)
    with pytest.raises(BudgetExceeded, match="'team/group'"):
        reserve(borrowers[1], 1, wait=0).admit()
    spend(sure, 40)
    assert charged(team) == (100, 0, 0)


def test_who_may_not_overflow_keeps_its_own_limit(store: Store) -> None:
    _, lender, _ = pool(store)
    with pytest.raises(BudgetExceeded, match="'team/lender'"):
        reserve(lender, 61, wait=0).admit()


def test_threshold_and_fallback_reckon_from_its_own_part(store: Store) -> None:
    _, _, borrower = pool(store)
    told: list[str] = []
    borrower.on_event(lambda event: told.append(event.kind))
    with reserve(borrower, 10, fallback="mini") as call:
        assert call.model == "model"
        call.settle(Usage(0, 10))
    spend(borrower, 22)
    assert borrower.should_downgrade
    assert told.count("threshold_crossed") == 1
    with reserve(borrower, 10, fallback="mini") as call:
        assert call.model == "mini"
        call.settle(Usage(0, 10))


def test_its_own_part_changes_like_any_limit(store: Store) -> None:
    team, _, borrower = pool(store)
    borrower.top_up(nano(10))
    assert limit(borrower) == 50
    borrower.set_limits("20%")
    team.top_up(nano(100))
    assert limit(borrower) == 40
    spend(borrower, 150)


def test_a_wall_that_was_there_before_is_gone(store: Store) -> None:
    before = small(100, name="team", store=store).child("a", nano(10))
    spend(before, 10)
    team = small(100, name="team", store=store)
    after = team.child("a", nano(10), overflow=True)
    spend(after, 50)
    again = small(100, name="team", store=store).child("a", nano(10))
    with pytest.raises(BudgetExceeded, match="'team/a'"):
        reserve(again, 1, wait=0).admit()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Budget("$1", overflow=True), "has no parent"),
        (lambda: Budget("$1").child("a", overflow=True), "no limit of its own"),
        (lambda: Budget(calls=5).child("a", "$1", overflow=True), "nothing would stop it"),
        (lambda: Budget("$1").child("a", "$1", overflow="yes"), "True or False"),
    ],
)
def test_overflow_needs_a_limit_and_one_above_it(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_alone_stops_a_borrower_cannot_end() -> None:
    team = Budget("$1", calls=5)
    group = team.child("group", "$1")
    borrower = group.child("borrower", "$0.5", calls=2, overflow=True)
    group.set_limits(None)  # the team's limit is left
    with pytest.raises(ValueError, match="alone stops 'budget/group/borrower'"):
        team.set_limits(None)
    assert team.budget == 1
    group.set_limits("$2")
    team.set_limits(None)
    borrower.set_limits(calls=None)
    team.set_limits(calls=None)


def test_a_borrower_is_stopped_by_its_own_limit_when_that_above_it_has_ended(
    store: Store,
) -> None:
    team = Budget(nano(100), name="team", store=store)
    group = team.child("group", calls=9)
    borrower = group.child("borrower", nano(40), calls=2, overflow=True)
    spend(borrower, 60)
    team.configure(None, threshold=0.8, tokens=9_000)
    with pytest.raises(BudgetExceeded, match="'team/group/borrower'"):
        reserve(borrower, 1, wait=0).admit()
    assert limit(borrower) == 40
    spend(group, 50)  # which it does not stop
    team.configure(nano(200), threshold=0.8)
    spend(borrower, 20)
    spend(borrower, 20)  # its third call, of two: the group has a limit of these
    # Made again, with a limit above it, it may overflow again.
    team.configure(None, threshold=0.8, tokens=9_000)
    again = Budget(nano(300), name="team", store=store).child("group", calls=9)
    spend(again.child("borrower", nano(40), calls=2, overflow=True), 40)


def test_a_share_that_may_overflow_keeps_its_last_amount_as_a_wall(store: Store) -> None:
    team = Budget(nano(100), name="team", store=store)
    borrower = team.child("borrower", "40%", overflow=True)
    team.configure(None, threshold=0.8, calls=99)
    spend(borrower, 40)
    with pytest.raises(BudgetExceeded, match="'team/borrower'"):
        reserve(borrower, 1, wait=0).admit()
    team.configure(nano(1_000), threshold=0.8)
    assert limit(borrower) == 400
    spend(borrower, 900)


def test_a_budget_above_that_may_overflow_itself_stops_nobody(store: Store) -> None:
    team = Budget(nano(1_000), name="team", store=store, calls=99)
    group = team.child("group", nano(50), tokens=9_000)
    borrower = group.child("borrower", tokens=200, overflow=True)
    group.configure(nano(50), threshold=0.8, overflow=True)  # now nothing has a limit of tokens
    spend(borrower, 80)
    before = charged(borrower)
    with pytest.raises(BudgetExceeded, match="'team/group/borrower'"):
        borrower.reserve(model="mini", input_tokens=200, prices=BOOK, wait=0).admit()
    borrower.top_up(tokens=400)  # of a wall, as of any limit
    borrower.reserve(model="mini", input_tokens=200, prices=BOOK, wait=0).admit().release()
    assert charged(borrower) == before


def test_walls_of_borrowers_hold_in_the_windows_to_come(store: Store) -> None:
    clock = FakeClock()
    team = Budget(nano(100), name="team", store=store, clock=clock.clock)
    borrower = team.child("borrower", nano(40), per="day", overflow=True)
    team.configure(None, threshold=0.8, calls=99)
    for _ in range(2):
        spend(borrower, 40)
        with pytest.raises(BudgetExceeded, match="'team/borrower'"):
            reserve(borrower, 1, wait=0).admit()
        clock.advance(86_400)
    team.configure(nano(500), threshold=0.8)
    spend(borrower, 100)
    clock.advance(86_400)
    spend(borrower, 100)


def test_many_borrowers_at_once_never_pass_the_parents_limit(store: Store) -> None:
    team = small(1_000, store=store)
    children = [team.child(f"{n}", "10%", overflow=n > 0) for n in range(4)]
    workers = [Worker(lambda c=child: _drain(c)) for child in children]
    for worker in workers:
        worker.result()
    assert charged(team) == (1_000, 0, 0)
    assert children[0].snapshot().spent.usd <= 100


def _drain(budget: Budget) -> None:
    while True:
        try:
            spend(budget, 10)
        except BudgetExceeded:
            return

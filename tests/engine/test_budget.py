"""Budgets: amounts, children, top-ups, resets, and what can be read of them."""

import copy
import math
import pickle
import re
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import charged, listen, nano, reserve, small, spend
from tokenfence_integrations import Budget, BudgetExceeded, Usage
from tokenfence_integrations.stores.base import Amount, Limits
from tokenfence_integrations.stores.memory import MemoryStore

# Amounts


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("$0.50", 500_000_000),
        ("0.50 USD", 500_000_000),
        ("$1,000.00", 1_000_000_000_000),
        (0.1, 100_000_000),
        (5, 5_000_000_000),
        (0, 0),
        (Decimal("0.000000001"), 1),
    ],
)
def test_amounts_are_exact(amount: Any, expected: int) -> None:
    assert Budget(amount).snapshot().limits == Limits(usd=expected)


@pytest.mark.parametrize("amount", [-1, "-$1", math.nan, math.inf, "", "€5", True, "$0.0000000001"])
def test_other_amounts_are_refused_with_what_is_accepted(amount: Any) -> None:
    with pytest.raises(ValueError, match=r"accepted are '\$0.50', '0.50 USD'"):
        Budget(amount)


@pytest.mark.parametrize("name", ["tokens", "calls", "input_tokens", "output_tokens"])
@pytest.mark.parametrize("count", [-1, 1.5, True, "5"])
def test_counts_are_whole_numbers(name: str, count: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number, 0 or more, got"):
        Budget(**{name: count})


def test_any_mix_of_limits() -> None:
    budget = Budget("$1", tokens=9, calls=8, input_tokens=7, output_tokens=6)
    assert budget.snapshot().limits == Limits(1_000_000_000, 8, 9, 7, 6)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "0.5", True, math.nan])
def test_a_threshold_is_a_share(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold must be a share between"):
        Budget(1, threshold=threshold)


@pytest.mark.parametrize("name", ["", " ", "a/b", 5])
def test_names_are_text_without_a_slash(name: Any) -> None:
    with pytest.raises(ValueError, match="name must be text without '/'"):
        Budget(1, name=name)
    with pytest.raises(ValueError, match="name must be text without '/'"):
        Budget(1).child(name)


# Children


def test_a_child_is_made_once() -> None:
    team = Budget("$5", name="team")
    researcher = team.child("researcher", "$2", calls=3)
    assert team.child("researcher") is researcher
    assert team.child("researcher", "$2", calls=3) is researcher
    assert researcher.name == "team/researcher"
    assert researcher.parent is team
    assert team.children == {"researcher": researcher}


def test_a_child_with_other_limits_is_an_error() -> None:
    team = Budget("$5", name="team")
    team.child("researcher", "$2")
    with pytest.raises(ValueError, match=r"exists with usd=\$2.00, not with usd=\$3.00; .*top_up"):
        team.child("researcher", "$3")
    with pytest.raises(ValueError, match="already has a child 'researcher'"):
        Budget("$2", name="researcher", parent=team)


def test_unnamed_children_get_names_of_their_own() -> None:
    team = Budget("$5", name="team")
    team.child("budget-2")
    names = [Budget(parent=team).name for _ in range(2)]
    assert names == ["team/budget-1", "team/budget-3"]


@pytest.mark.usefixtures("threads_take_turns_often")
def test_threads_that_ask_for_the_same_child_get_the_same_one() -> None:
    team = Budget("$5")
    names = [f"user-{number}" for number in range(300)]
    together = threading.Barrier(4)
    found: list[list[Budget]] = []

    def ask() -> None:
        together.wait()
        found.append([team.child(name, "$1") for name in names])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(others == found[0] for others in found)


def test_a_child_inherits_the_threshold_and_may_not_choose_the_store() -> None:
    team = Budget("$5", threshold=0.3)
    assert team.child("a").threshold == 0.3
    with pytest.raises(ValueError, match="belong to the root budget"):
        Budget(1, parent=team, store=MemoryStore())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"store": Path("budgets.db")}, "store must be a Store or its URL, such as 'sqlite:///"),
        ({"parent": "team"}, "parent must be a Budget, got 'team'"),
        ({"sink": "ledger.jsonl"}, "sink must be a function of a ledger record"),
    ],
)
def test_what_is_of_a_wrong_kind_is_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Budget("$5", **wrong)


def test_children_without_a_name_are_given_one_each_in_threads_too() -> None:
    team = Budget("$5")
    team.child("budget-3")
    together = threading.Barrier(4)

    def make() -> None:
        together.wait()
        for _ in range(25):
            Budget("$1", parent=team)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(team.children) == {f"budget-{number}" for number in range(1, 102)}


def test_what_a_child_spends_its_ancestors_have_spent() -> None:
    root = small(100)
    middle = root.child("middle")
    leaf = middle.child("leaf", nano(50))
    spend(leaf, 30)
    spend(middle, 5)
    assert [charged(b)[0] for b in (root, middle, leaf)] == [35, 35, 30]


@pytest.mark.parametrize("quantity", ["tokens", "input_tokens", "output_tokens", "calls"])
def test_every_limit_of_every_ancestor_holds(quantity: str) -> None:
    child = Budget("$1").child("a", **{quantity: 20}).child("b")
    for _ in range(2):
        with reserve(child, 10 if quantity != "input_tokens" else 0, input_tokens=10) as call:
            call.settle(Usage(*call.bound[2:]))
        if quantity == "tokens":
            break
    if quantity == "calls":
        for _ in range(18):
            spend(child, 1)
    with pytest.raises(BudgetExceeded) as refused:
        reserve(child, 1, input_tokens=1).admit()
    assert (refused.value.quantity, refused.value.limit) == (quantity, 20)
    assert refused.value.name.endswith("/a")


def test_budgets_that_share_a_store_do_not_end_each_others_calls() -> None:
    store = MemoryStore()
    one, other = (Budget("$1", name=name, store=store) for name in ("one", "other"))
    with reserve(one, 100) as first, reserve(other, 7) as second:
        first.settle(Usage(0, 60))
        assert charged(other) == (0, 7, 0)
        second.settle(Usage(0, 5))
    assert (charged(one), charged(other)) == ((60, 0, 0), (5, 0, 0))


# Changing it


def test_top_up_raises_limits_and_keeps_the_rest() -> None:
    budget = Budget("$1", tokens=10, calls=1)
    budget.top_up("$0.50", tokens=5, calls=2)
    assert budget.snapshot().limits == Limits(1_500_000_000, 3, 15)


def test_top_up_takes_a_limit_in_words() -> None:
    budget = Budget("50 calls/minute", tokens=1_000)
    budget.top_up("10 calls")
    budget.top_up("2k tokens", calls=5)
    assert budget.snapshot().limits == Limits(calls=65, tokens=3_000)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"usd": "$1/day"}, "keeps the window of budget 'budget': give the amount alone"),
        ({"usd": "20%"}, "adds amounts, not shares"),
        ({"calls": "20%"}, "adds amounts, not shares"),
        ({"usd": "5 calls", "calls": 3}, "calls are limited twice"),
    ],
)
def test_what_cannot_be_added_is_an_error_and_changes_nothing(given: Any, problem: str) -> None:
    budget = Budget("$5/day", calls=100)
    with pytest.raises(ValueError, match=problem):
        budget.top_up(**given)
    assert budget.snapshot().limits == Limits(5_000_000_000, 100)


def test_top_up_of_a_quantity_without_limit_is_an_error_and_changes_nothing() -> None:
    budget = Budget("$1")
    with pytest.raises(ValueError, match="no limit of tokens to raise"):
        budget.top_up("$1", tokens=5)
    with pytest.raises(ValueError, match="it is negative"):
        budget.top_up(-1)
    with pytest.raises(ValueError, match="calls must be a whole number"):
        budget.top_up(calls=-1)
    assert budget.snapshot().limits == Limits(1_000_000_000)


def test_a_top_up_makes_room() -> None:
    budget = small(10)
    spend(budget, 10)
    with pytest.raises(BudgetExceeded):
        spend(budget, 5)
    budget.top_up(nano(5))
    spend(budget, 5)
    assert budget.budget_exceeded


def test_reset_forgets_here_and_below_but_not_above() -> None:
    root = small(100)
    child = root.child("child")
    leaf = child.child("leaf")
    spend(leaf, 10)
    spend(child, 5)
    reserve(leaf, 20).admit().lose()
    child.reset()
    assert (charged(root), charged(child), charged(leaf)) == ((15, 0, 20), (0, 0, 0), (0, 0, 0))
    assert [b.ledger.total for b in (root, child, leaf)] == [15, 0, 0]


def test_calls_in_flight_go_on_through_a_reset() -> None:
    budget = small(100)
    spend(budget, 60)
    call = reserve(budget, 30).admit()
    budget.reset()
    assert charged(budget) == (0, 30, 0)
    call.settle(Usage(0, 25))
    assert charged(budget) == (25, 0, 0)
    assert budget.ledger.total == 25


def test_recorded_money_is_booked_even_above_the_limit() -> None:
    root = small(100)
    child = root.child("child", nano(10))
    child.record(nano(30))
    assert charged(root) == charged(child) == (30, 0, 0)
    assert child.calls == 1
    assert child.remaining == 0.0
    assert [(r.outcome, r.cost, r.call) for r in child.ledger] == [("recorded", 30, 0)]
    with pytest.raises(ValueError, match="it is negative"):
        child.record(-1)


# Looking at it


def test_what_a_budget_tells() -> None:
    budget = Budget("$2.00")
    budget.record("$0.50")
    reserve(budget, 250_000_000).admit().lose()
    call = reserve(budget, 125_000_000).admit()
    assert (budget.budget, budget.spent, budget.uncertain) == (2.0, 0.5, 0.25)
    assert (budget.reserved, budget.remaining) == (0.125, 1.125)
    assert (budget.calls, budget.usage_ratio) == (2, 0.375)
    assert budget.snapshot().remaining_usd == Decimal("1.125")
    call.release()


def test_without_a_dollar_limit() -> None:
    budget = Budget(calls=4, tokens=100)
    spend(budget, 50)
    assert (budget.budget, budget.remaining) == (math.inf, math.inf)
    assert budget.usage_ratio == 0.5
    assert budget.snapshot().remaining_usd is None
    assert Budget().usage_ratio == 0.0


@pytest.mark.parametrize(
    ("spent", "downgrade", "exceeded"),
    [(79, False, False), (80, True, False), (99, True, False), (100, True, True)],
)
def test_threshold_and_limit(spent: int, downgrade: bool, exceeded: bool) -> None:
    budget = small(100)
    spend(budget, spent)
    assert (budget.should_downgrade, budget.budget_exceeded) == (downgrade, exceeded)


def test_what_is_in_flight_is_not_settled() -> None:
    budget = small(100)
    call = reserve(budget, 100).admit()
    assert not budget.should_downgrade
    call.lose()
    assert budget.budget_exceeded


def test_a_snapshot_is_of_one_moment() -> None:
    budget = small(100)
    before = budget.snapshot()
    spend(budget, 10)
    assert before.spent == Amount()
    assert budget.snapshot().spent == Amount(10, 1, 0, 10)
    with pytest.raises(FrozenInstanceError):
        before.spent = Amount(5)  # type: ignore[misc]


def test_the_tree_as_text() -> None:
    team = Budget("$5.00", name="team")
    researcher = team.child("researcher", "$2.00", calls=9)
    researcher.child("web")
    team.child("writer", tokens=5_000)
    researcher.record("$0.25")
    call = reserve(researcher, 100).admit()
    reserve(team, 50).admit().lose()
    assert team.tree() == (
        "team: $0.25 of $5.00 spent, $0.0000001 reserved, $0.00000005 uncertain\n"
        "├─ researcher: $0.25 of $2.00 spent, $0.0000001 reserved; "
        "1 of 9 calls spent, 1 reserved\n"
        "│  └─ web: $0.00 spent\n"
        "└─ writer: 0 of 5,000 tokens spent"
    )
    assert repr(team) == f"<Budget {team.tree().splitlines()[0]}>"
    call.release()


# Listeners


def test_a_listener_hears_its_budget_and_those_below_until_it_is_removed() -> None:
    root = small(100)
    child = root.child("child")
    above, below = listen(root), []
    remove = child.on_event(below.append)
    spend(root, 1)
    assert not below
    spend(child, 1)
    assert [event.kind for event in below] == ["admitted", "settled"]
    remove()
    remove()
    spend(child, 1)
    assert len(below) == 2
    assert [event.budget for event in above] == ["budget"] * 2 + ["budget/child"] * 4


# Copies


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda b: copy.deepcopy([b])[0]])
def test_a_copy_is_the_same_account(copied: Callable[[Budget], Budget]) -> None:
    team = small(100)
    for budget in (team, team.child("a"), Budget(parent=team, kept=False)):
        other = copied(budget)
        spend(other, 10)
        assert charged(budget) == (10, 0, 0)
        del other
        spend(budget, 10)  # it has not passed because its copy has
        assert charged(budget) == (20, 0, 0)
        budget.reset()


def test_a_budget_does_not_travel_by_pickle() -> None:
    with pytest.raises(TypeError, match=r"'team/a' cannot be pickled.*store="):
        pickle.dumps(Budget("$1", name="team").child("a"))

"""Limits beside the budget's: a call fits both, and a refusal says which one it met."""

from typing import Any

import pytest

from tests.engine.helpers import BOOK, charged, small
from tokenfence_integrations import Budget, BudgetExceeded, Call
from tokenfence_integrations.engine.calls.policy import Policy, parse_fallback
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.engine.calls.sublimit import Sublimit
from tokenfence_integrations.stores.base import AccountState


def account(
    limit: int | None = None, spent: int = 0, *, limit_calls: int | None = None, calls: int = 0
) -> AccountState:
    """What somebody else keeps: nano-dollars and calls, limited and spent."""
    return AccountState(limit, limit_calls, None, None, None, spent, calls, *[0] * 10)


def ask(budget: Budget, size: int | None, *sublimits: AccountState, fallback: Any = None) -> Call:
    named = tuple(
        Sublimit(f"run {n}", state.limits, state.spent) for n, state in enumerate(sublimits)
    )
    request = CallRequest("model", lambda card: 0, None, size, sublimits=named)
    stages = parse_fallback(fallback, 0.8)
    policy = Policy(stages=stages, wait=0.0, min_output_tokens=size or 16)  # a maximum stays whole
    return Call(budget, request, policy, BOOK).admit()


def test_a_call_that_fits_both_is_admitted() -> None:
    budget = small(1_000)

    call = ask(budget, 60, account(100, 40))

    assert call.open
    assert charged(budget) == (0, 60, 0)


def test_a_call_that_passes_one_is_refused_by_its_name() -> None:
    budget = small(1_000)
    budget.record("0.000000001 USD")

    with pytest.raises(BudgetExceeded) as refusal:
        ask(budget, 61, account(None), account(100, 40))

    assert refusal.value.name == "run 1"
    assert (refusal.value.budget, refusal.value.spent) == (100e-9, 40e-9)
    assert charged(budget) == (1, 0, 0)


def test_calls_are_counted_too() -> None:
    with pytest.raises(BudgetExceeded) as refusal:
        ask(small(1_000), 1, account(None, limit_calls=3, calls=3))

    assert (refusal.value.quantity, refusal.value.budget) == ("calls", 3.0)


def test_a_call_without_a_maximum_is_capped_by_the_tighter_one() -> None:
    call = ask(small(1_000), None, account(100, 40))

    assert (call.max_output_tokens, call.capped) == (60, True)


def test_a_fallback_takes_over_by_the_tighter_ones_share() -> None:
    assert ask(small(1_000), 10, account(100, 79), fallback="mini").model == "model"
    assert ask(small(1_000), 10, account(100, 80), fallback="mini").model == "mini"


def test_the_budget_itself_still_holds() -> None:
    budget = small(50)
    budget.record("0.000000001 USD")

    with pytest.raises(BudgetExceeded) as refusal:
        ask(budget, 60, account(100))

    assert refusal.value.name == "budget"


def test_on_many_levels() -> None:
    child = small(1_000).child("a").child("b")

    with pytest.raises(BudgetExceeded, match="run 0"):
        ask(child, 60, account(59, 1))

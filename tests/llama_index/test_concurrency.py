"""A hundred queries at once on a budget for four of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.response.schema import Response

from tests.clients.helpers import check_books, in_dollars
from tests.llama_index import models
from tests.llama_index.entry_points import OWN_WARNINGS, QUESTION, query_engine
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = OWN_WARNINGS

QUERIES = 100
FIT = 4


@pytest.fixture
def plain(make: Callable[..., Any]) -> Any:
    return make(models.openai_llm, max_tokens=16)  # as long as its answers


async def _cost(plain: Any, provider: SimulatedProvider, mode: str = "compact") -> int:
    """Nano-dollars of one query."""
    await query_engine(plain, mode).aquery(QUESTION)
    provider.idle()
    cost = provider.billed
    provider.clear()
    return cost


async def _queries(llm: Any, mode: str = "compact") -> list[Any]:
    engine = query_engine(llm, mode)
    asked = [engine.aquery(QUESTION) for _ in range(QUERIES)]
    return await asyncio.gather(*asked, return_exceptions=True)


def _answered(results: list[Any]) -> int:
    return sum(isinstance(r, Response) and "[TokenFence]" not in str(r) for r in results)


@pytest.mark.parametrize("on_limit", ["stop", "raise"])
async def test_a_budget_for_four_is_spent_on_four(
    plain: Any, provider: SimulatedProvider, on_limit: Any
) -> None:
    """What is sure to be answered exactly so is counted exactly, so the fit is exact too."""
    cost = await _cost(plain, provider)
    budget = Budget(in_dollars(FIT * cost))

    results = await _queries(guard(plain, budget=budget, on_limit=on_limit, exact_input=True))

    check_books(budget, provider)
    assert provider.billed == FIT * cost
    assert provider.requests == _answered(results) == FIT
    refused = [r for r in results if isinstance(r, BudgetExceeded)]
    assert len(refused) == (QUERIES - FIT if on_limit == "raise" else 0)


async def test_a_nano_dollar_less_is_for_three(plain: Any, provider: SimulatedProvider) -> None:
    cost = await _cost(plain, provider)
    budget = Budget(in_dollars(FIT * cost - 1))

    llm = guard(plain, budget=budget, exact_input=True, min_output_tokens=16)
    results = await _queries(llm)

    check_books(budget, provider)
    assert provider.requests == _answered(results) == FIT - 1


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
async def test_without_exact_counts_it_is_never_passed(
    plain: Any, provider: SimulatedProvider, mode: str
) -> None:
    """A bound by bytes is a few times the cost: a budget for twelve, then."""
    cost = await _cost(plain, provider, mode)
    budget = Budget(in_dollars(3 * FIT * cost))

    results = await _queries(guard(plain, budget=budget), mode)

    check_books(budget, provider)
    assert 0 < provider.billed <= 3 * FIT * cost
    assert len(results) == QUERIES
    assert not any(isinstance(result, BaseException) for result in results)


async def test_a_fallback_takes_over_and_stays_within(
    plain: Any, provider: SimulatedProvider
) -> None:
    cost = await _cost(plain, provider)
    budget = Budget(in_dollars(FIT * cost))

    results = await _queries(guard(plain, budget=budget, fallback="gpt-4o-mini"))

    check_books(budget, provider)
    assert provider.billed <= FIT * cost
    assert _answered(results) > FIT

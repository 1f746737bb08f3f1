"""Every way from LlamaIndex's API to an LLM: one reservation per call, the books are the bill."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.helpers import check_books
from tests.llama_index import models
from tests.llama_index.entry_points import ENTRIES, MESSAGES, OWN_WARNINGS, Entry, answers
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = OWN_WARNINGS

SPACE = 200
"""An output maximum that no scripted answer reaches."""
NOTHING = "$0.000000001"

each_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


@pytest.fixture(autouse=True)
def scripted(provider: SimulatedProvider) -> None:
    provider.script = answers


@pytest.fixture
def plain(make: Callable[..., Any]) -> Any:
    return make(models.openai_llm, max_tokens=SPACE)


@each_entry
async def test_the_books_are_the_bill(
    entry: Entry, plain: Any, provider: SimulatedProvider, budget: Budget
) -> None:
    await entry.run(guard(plain, budget=budget))
    assert provider.requests == entry.calls
    assert {request.model for request in provider.received} == {"gpt-4o"}
    check_books(budget, provider)


@each_entry
async def test_the_books_of_a_fallback_are_the_bill(
    entry: Entry, plain: Any, provider: SimulatedProvider, budget: Budget
) -> None:
    llm = guard(plain, budget=budget, fallback="gpt-4o-mini", threshold=0.0)
    await llm.achat(MESSAGES)  # from here on, something is spent, and the fallback answers
    await entry.run(llm)
    assert [request.model for request in provider.received[1:]] == ["gpt-4o-mini"] * entry.calls
    check_books(budget, provider)


@each_entry
async def test_a_refusal_is_raised_as_it_is(
    entry: Entry, plain: Any, provider: SimulatedProvider
) -> None:
    budget = Budget(NOTHING)
    with pytest.raises(BudgetExceeded) as refused:
        await entry.run(guard(plain, budget=budget, on_limit="raise"))
    assert refused.value.model == "gpt-4o"
    assert provider.requests == 0
    check_books(budget, provider)


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, id=name) for name, entry in ENTRIES.items() if entry.form == "text"],
)
async def test_a_refusal_is_said(entry: Entry, plain: Any, provider: SimulatedProvider) -> None:
    budget = Budget(NOTHING)
    result = await entry.run(guard(plain, budget=budget, on_limit="stop"))
    assert "[TokenFence] Budget of" in str(result)
    assert provider.requests == 0
    check_books(budget, provider)


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, id=name) for name, entry in ENTRIES.items() if entry.form == "object"],
)
async def test_nothing_is_made_up_where_a_text_is_of_no_use(
    entry: Entry, plain: Any, provider: SimulatedProvider
) -> None:
    budget = Budget(NOTHING)
    with pytest.raises(BudgetExceeded):
        await entry.run(guard(plain, budget=budget, on_limit="stop"))
    assert provider.requests == 0
    check_books(budget, provider)

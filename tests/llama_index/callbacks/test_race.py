"""A hundred queries at once, on a budget for four: it holds, and the books are right."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core import Settings, SummaryIndex
from llama_index.core.schema import TextNode

from tests.clients.helpers import async_client, check_books, in_dollars, sync_client
from tests.llama_index.callbacks.helpers import PRICES, flat_llm, for_calls
from tests.llama_index.models import openai_llm
from tokenfence_integrations import Budget, BudgetExceeded, Event, guard
from tokenfence_integrations.llama_index import installed
from tokenfence_integrations.testing import SimulatedProvider


class Watch:
    """The highest share of a budget that was ever charged or reserved."""

    def __init__(self, budget: Budget) -> None:
        self.highest = 0.0
        self._budget = budget
        budget.on_event(self.look)

    def look(self, event: Event) -> None:
        now = self._budget.snapshot()
        charged = now.spent.usd + now.reserved.usd + now.uncertain.usd
        self.highest = max(self.highest, charged / (now.limits.usd or 0))


@pytest.fixture
def for_four() -> Budget:
    return for_calls(4)


@pytest.fixture(params=["handler alone", "and a guarded client", "and a guarded LLM", "and both"])
def llm(
    request: pytest.FixtureRequest,
    make: Callable[..., Any],
    for_four: Budget,
    provider: SimulatedProvider,
) -> Any:
    llm = make(flat_llm)
    if request.param in ("and a guarded client", "and both"):
        options = {"budget": for_four, "prices": PRICES, "on_limit": "raise"}
        llm._client = guard(sync_client(provider.base_url), **options)
        llm._aclient = guard(async_client(provider.base_url), **options)
    if request.param in ("and a guarded LLM", "and both"):
        return guard(llm, budget=for_four, prices=PRICES, on_limit="raise")
    return llm


def check(budget: Budget, provider: SimulatedProvider, watch: Watch, answers: list[Any]) -> None:
    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    assert len(answers) == 100
    assert len(refused) == 96
    assert provider.requests == 4
    assert watch.highest == 1.0
    assert budget.remaining == 0
    provider.idle()
    assert budget.snapshot().spent.usd == provider.billed
    assert budget.snapshot().uncertain.usd == 0


def engine(llm: Any) -> Any:
    return SummaryIndex([TextNode(text="Water is wet.")]).as_query_engine(llm=llm)


async def test_aquery(llm: Any, for_four: Budget, provider: SimulatedProvider) -> None:
    watch = Watch(for_four)
    with installed(for_four, prices=PRICES):
        asked = engine(llm)
        queries = [asked.aquery(f"Question {n}") for n in range(100)]
        answers = await asyncio.gather(*queries, return_exceptions=True)
    check(for_four, provider, watch, answers)


def test_query_in_threads(llm: Any, for_four: Budget, provider: SimulatedProvider) -> None:
    watch = Watch(for_four)

    def ask(number: int) -> Any:
        try:
            return asked.query(f"Question {number}")
        except BudgetExceeded as refusal:
            return refusal

    with installed(for_four, prices=PRICES), ThreadPoolExecutor(16) as pool:
        asked = engine(llm)
        answers = list(pool.map(ask, range(100)))
    check(for_four, provider, watch, answers)


async def test_streams(llm: Any, for_four: Budget, provider: SimulatedProvider) -> None:
    watch = Watch(for_four)

    async def ask(number: int) -> Any:
        stream = await Settings.llm.astream_complete(f"Question {number}")
        return [part async for part in stream]

    with installed(for_four, prices=PRICES):
        Settings.llm = llm
        answers = await asyncio.gather(*map(ask, range(100)), return_exceptions=True)
    check(for_four, provider, watch, answers)


def test_threads_wait_for_what_will_fit(
    make: Callable[..., Any], provider: SimulatedProvider
) -> None:
    """Answers of a sixteenth of their bound: sixteen fit a budget for two, one after another."""
    provider.behave(output_tokens=1)
    budget = for_calls(2)
    watch = Watch(budget)
    asked = engine(make(flat_llm))
    with installed(budget, prices=PRICES), ThreadPoolExecutor(16) as pool:
        list(pool.map(asked.query, ["Why?"] * 16))
    assert watch.highest <= 1.0
    check_books(budget, provider)


async def test_a_guarded_llm_waits_on_an_event_loop(
    make: Callable[..., Any], provider: SimulatedProvider
) -> None:
    """The handler, which cannot wait there, leaves it to the client that the LLM calls."""
    provider.behave(output_tokens=1)
    one = Budget("$1")
    await guard(make(openai_llm), budget=one).acomplete("Why?")
    two = Budget(in_dollars(2 * one.ledger[0].bound))

    with installed(two):
        llm = guard(make(openai_llm), budget=two, on_limit="raise")
        await asyncio.gather(*[llm.acomplete("Why?") for _ in range(16)])

    assert len(two.ledger) == 16
    assert provider.requests == 17
    assert two.uncertain == two.reserved == 0


async def test_a_loop_is_never_blocked(
    make: Callable[..., Any], provider: SimulatedProvider
) -> None:
    """What does not fit while a thread's call is in flight is refused at once, not waited for."""
    provider.hold()
    budget = for_calls(1)
    asked = engine(make(flat_llm))
    with installed(budget, prices=PRICES):
        first = asyncio.create_task(asyncio.to_thread(asked.query, "Why?"))
        await asyncio.to_thread(provider.wait_for, 1)
        try:
            with pytest.raises(BudgetExceeded) as refusal:
                await asked.aquery("Why?")
        finally:
            provider.release()
            await first
    assert refusal.value.waited == 0
    check_books(budget, provider)

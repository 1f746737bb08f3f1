"""LangChain's caches below a guarded model: hits are free, and hold what the model itself said."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books
from tests.langchain.models import LOCAL_PRICES, LocalChat
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = pytest.mark.parametrize("way", ["invoke", "ainvoke"])


async def ask(model: Any, way: str, text: str = "hello") -> Any:
    return model.invoke(text) if way == "invoke" else await model.ainvoke(text)


async def test_a_hit_costs_nothing(
    way: str,
    make_chat: Callable[..., ChatOpenAI],
    budget: Budget,
    provider: SimulatedProvider,
) -> None:
    model = guard(make_chat(cache=InMemoryCache()), budget=budget)

    first, second = await ask(model, way), await ask(model, way)

    assert first.content == second.content
    assert provider.requests == 1
    check_books(budget, provider, records=1)


async def test_a_hit_answers_when_the_budget_is_used_up(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    cache = InMemoryCache()
    await ask(guard(make_chat(cache=cache), budget="$1"), way)

    message = await ask(guard(make_chat(cache=cache), budget="$0.000001"), way)

    assert message.response_metadata["finish_reason"] == "stop"
    assert provider.requests == 1


async def test_guarded_and_plain_models_share_their_answers(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    cache = InMemoryCache()
    plain = make_chat(cache=cache)

    await ask(plain, way)
    await ask(guard(plain, budget="$1"), way)
    await ask(guard(plain, budget="$2", fallback="gpt-4o-mini"), way)

    assert provider.requests == 1


async def test_a_global_cache_is_used(
    way: str, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    set_llm_cache(InMemoryCache())
    try:
        model = guard(plain, budget=budget)
        await ask(model, way)
        await ask(model, way)
    finally:
        set_llm_cache(None)

    assert provider.requests == 1


async def test_a_downgraded_answer_is_kept_under_its_own_key(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    cache = InMemoryCache()
    plain = make_chat(cache=cache)
    small = Budget("$0.0004")
    cheap = await ask(guard(plain, budget=small, fallback="gpt-4o-mini"), way)

    dear = await ask(guard(plain, budget="$1"), way)
    again = await ask(guard(plain, budget=Budget("$0.0004"), fallback="gpt-4o-mini"), way)

    names = [message.response_metadata["model_name"] for message in (cheap, dear, again)]
    assert names == ["gpt-4o-mini", "gpt-4o", "gpt-4o"]  # the last is the expensive one's hit
    assert provider.requests == 2


async def test_a_downgraded_answer_is_found_by_the_next_downgrade(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    budget = Budget("$0.0004")
    model = guard(make_chat(cache=InMemoryCache()), budget=budget, fallback="gpt-4o-mini")

    await ask(model, way)
    await ask(model, way)

    assert provider.requests == 1
    assert [record.outcome for record in budget.ledger] == ["settled", "released"]
    assert budget.snapshot().reserved.usd == 0


async def test_a_refusal_is_not_kept(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    budget = Budget("$0.000001")
    model = guard(make_chat(cache=InMemoryCache()), budget=budget)

    refused = await ask(model, way)
    budget.top_up("$1")
    answered = await ask(model, way)

    reasons = [message.response_metadata["finish_reason"] for message in (refused, answered)]
    assert reasons == ["budget_exceeded", "stop"]


async def test_an_answer_that_our_cap_cut_is_not_kept(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=1_000)
    budget = Budget("$0.003")
    model = guard(make_chat(max_tokens=None, cache=InMemoryCache()), budget=budget)

    cut = await ask(model, way)
    budget.top_up("$10")
    whole = await ask(model, way)
    again = await ask(model, way)

    reasons = [m.response_metadata["finish_reason"] for m in (cut, whole, again)]
    assert reasons == ["length", "stop", "stop"]
    assert provider.requests == 2


async def test_a_capped_answer_that_was_not_cut_is_kept(
    way: str, make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    budget = Budget("$0.003")
    model = guard(make_chat(max_tokens=None, cache=InMemoryCache()), budget=budget)

    await ask(model, way)
    await ask(model, way)

    assert budget.ledger[0].cap
    assert provider.requests == 1


async def test_a_model_without_a_provider_keeps_its_answers_too(way: str) -> None:
    plain = LocalChat(max_tokens=20, cache=InMemoryCache())
    model = guard(plain, budget="$1", prices=LOCAL_PRICES)

    await ask(model, way)
    await ask(model, way)
    await ask(plain, way)

    assert len(plain.seen) == 1

"""A guarded LLM calls its provider as before, and its books are the provider's bill."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

from tests.llama_index import models
from tokenfence_integrations import Budget, UnknownModelError, guard
from tokenfence_integrations.llama_index import BudgetedLLM
from tokenfence_integrations.testing import SimulatedProvider

KINDS = [models.openai_llm, models.responses_llm, models.openai_like]


def test_a_guarded_llm_is_of_its_own_class(llm: OpenAI, budget: Budget) -> None:
    guarded = guard(llm, budget=budget)
    assert isinstance(guarded, OpenAI)
    assert isinstance(guarded, BudgetedLLM)
    assert guarded.tokenfence is budget
    assert not isinstance(llm, BudgetedLLM)
    assert guarded.to_payload() == llm.to_payload()


@pytest.mark.parametrize("fallback", [None, "gpt-4o-mini"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_books_are_the_bill(
    make: Callable[..., Any],
    provider: SimulatedProvider,
    budget: Budget,
    kind: Callable[..., Any],
    fallback: str | None,
) -> None:
    # From a threshold of nothing on the fallback answers.
    threshold = 0.0 if fallback else None
    llm = guard(make(kind), budget=budget, fallback=fallback, threshold=threshold)
    messages = [ChatMessage("Why?")]
    llm.chat(messages)
    llm.complete("Why?")
    list(llm.stream_chat(messages))
    list(llm.stream_complete("Why?"))
    await llm.achat(messages)
    await llm.acomplete("Why?")
    [_ async for _ in await llm.astream_chat(messages)]
    [_ async for _ in await llm.astream_complete("Why?")]
    assert provider.requests == 8
    assert {line.model for line in provider.bill} == {fallback or "gpt-4o"}
    assert budget.snapshot().spent.usd == provider.billed
    assert budget.snapshot().spent.calls == 8
    assert budget.snapshot().uncertain.usd == 0


def test_a_fallback_without_a_price_is_told_at_once() -> None:
    with pytest.raises(UnknownModelError, match="gpt-4o-mini"):
        guard(OpenAI(model="gpt-4o", api_key="unused"), budget="$1", fallback="gpt-4o-minni")

"""Clients that the user puts in the place of the guarded ones: their calls are metered as well."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books, check_covered, outcomes
from tests.langchain.models import close, openai_embeddings
from tokenfence_integrations import Budget, BudgetExceeded, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

CLIENTS = ["client", "async_client", "root_client", "root_async_client"]


async def answers(model: Any) -> None:
    model.invoke("hello")
    await model.ainvoke("hello")


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("replaced", [*[[name] for name in CLIENTS], CLIENTS])
async def test_an_unguarded_client(
    replaced: list[str],
    responses: bool,
    make_chat: Callable[..., ChatOpenAI],
    budget: Budget,
    provider: SimulatedProvider,
) -> None:
    model = guard(make_chat(use_responses_api=responses), budget=budget)
    other = make_chat()
    for name in replaced:
        setattr(model, name, getattr(other, name))

    await answers(model)

    assert outcomes(budget) == ["settled"] * 2
    check_books(budget, provider, records=2)


async def test_streams_of_an_unguarded_client(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    model, other = guard(make_chat(stream_usage=True), budget=budget), make_chat()
    model.client, model.async_client = other.client, other.async_client

    assert [*model.stream("hello")]
    assert [chunk async for chunk in model.astream("hello")]

    check_books(budget, provider, records=2)


async def test_in_a_copy(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    model, other = guard(make_chat(), budget=budget), make_chat()
    copy = model.model_copy(update={"client": other.client, "async_client": other.async_client})

    await answers(copy)
    await answers(model)

    check_books(budget, provider, records=4)


def test_it_is_refused_what_does_not_fit(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    model = guard(make_chat(), budget="$0.0000001", on_limit="raise")
    model.client = make_chat().client

    with pytest.raises(BudgetExceeded):
        model.invoke("hello")

    assert provider.requests == 0


def test_a_failure_after_sending_is_uncertain(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(drop="before")
    model = guard(make_chat(), budget=budget)
    model.client = make_chat().client

    with pytest.raises(openai.APIConnectionError):
        model.invoke("hello")

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


async def test_a_client_that_is_guarded_on_another_budget_charges_both(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    model, other, theirs = guard(make_chat(), budget=budget), make_chat(), Budget("$100")
    model.client = guard(other.root_client, budget=theirs).chat.completions
    model.async_client = async_guard(other.root_async_client, budget=theirs).chat.completions

    await answers(model)

    check_books(budget, provider, records=2)
    check_books(theirs, provider, records=2)


async def test_a_copy_of_the_guarded_client_reserves_alone(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    kinds = list[str]()
    budget.on_event(lambda event: kinds.append(event.kind))
    model = guard(make_chat(), budget=budget)
    model.client = model.root_client.with_options(timeout=9).chat.completions

    await answers(model)

    assert kinds == ["admitted", "settled"] * 2
    check_books(budget, provider, records=2)


async def test_of_embeddings(budget: Budget, provider: SimulatedProvider) -> None:
    plain, other = (openai_embeddings(provider.base_url) for _ in range(2))
    embeddings = guard(plain, budget=budget)
    embeddings.client, embeddings.async_client = other.client, other.async_client

    embeddings.embed_documents(["one", "two"])
    await embeddings.aembed_query("three")

    assert len(budget.ledger) == len(provider.bill) == 2
    check_covered(budget, provider)
    for each in (plain, other):
        await close(each)

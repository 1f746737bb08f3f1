"""Embeddings under a handler: refused before, booked by their count afterwards."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.schema import TextNode

from tests.clients.helpers import check_books, check_covered, in_dollars, sync_client
from tests.engine.helpers import FakeClock
from tests.llama_index import models
from tests.llama_index.callbacks.helpers import check_leased, outcomes
from tokenfence_integrations import Budget, BudgetExceeded, Price, guard
from tokenfence_integrations.llama_index import BudgetCallbackHandler, installed
from tokenfence_integrations.testing import SimulatedProvider

TEXTS = [f"This is the text of number {number}." for number in range(25)]

# Batches of a list that is refused were made, and are never awaited.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture
def embedding(make: Callable[..., Any], budget: Budget) -> Any:
    handler = BudgetCallbackHandler(budget)
    return make(models.openai_embedding, callback_manager=CallbackManager([handler]))


WAYS: dict[str, Callable[[Any], Any]] = {
    "text": lambda e: e.get_text_embedding("one"),
    "query": lambda e: e.get_query_embedding("one"),
    "batch": lambda e: e.get_text_embedding_batch(TEXTS),
    "queries": lambda e: e.get_agg_embedding_from_queries(["one", "two"]),
}
ASYNC_WAYS: dict[str, Callable[[Any], Any]] = {
    "atext": lambda e: e.aget_text_embedding("one"),
    "aquery": lambda e: e.aget_query_embedding("one"),
    "abatch": lambda e: e.aget_text_embedding_batch(TEXTS),
}
each_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)
each_async_way = pytest.mark.parametrize("call", ASYNC_WAYS.values(), ids=ASYNC_WAYS)


@each_way
def test_the_books_are_the_bill(embedding: Any, budget: Budget, provider: Any, call: Any) -> None:
    call(embedding)
    check_books(budget, provider)


@each_async_way
async def test_async(embedding: Any, budget: Budget, provider: Any, call: Any) -> None:
    await call(embedding)
    check_books(budget, provider)


@each_way
def test_refused(make: Any, provider: SimulatedProvider, call: Any) -> None:
    handler = BudgetCallbackHandler("$0")
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    with pytest.raises(BudgetExceeded):
        call(embedding)
    assert provider.requests == 0


@each_async_way
async def test_refused_async(make: Any, provider: SimulatedProvider, call: Any) -> None:
    budget = Budget(calls=2)
    handler = BudgetCallbackHandler(budget, wait=0)
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    await embedding.aget_text_embedding_batch(TEXTS[:20])
    with pytest.raises(BudgetExceeded):
        await call(embedding)
    assert provider.requests == 2
    assert budget.snapshot().reserved.calls == 0


async def test_a_list_is_refused_as_a_whole(make: Any, provider: SimulatedProvider) -> None:
    """LlamaIndex tells of all batches before it sends the first."""
    budget = Budget(calls=2)
    handler = BudgetCallbackHandler(budget)
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    with pytest.raises(BudgetExceeded):
        await embedding.aget_text_embedding_batch(TEXTS)
    assert provider.requests == 0
    assert outcomes(budget) == ["released", "released"]


def test_an_index(make: Any, provider: SimulatedProvider) -> None:
    """It stops at the batch that does not fit, and never goes over."""
    budget = Budget(in_dollars(10_000))
    Settings.embed_model = make(models.openai_embedding)
    with installed(budget), pytest.raises(BudgetExceeded):
        VectorStoreIndex([TextNode(text=text) for text in TEXTS * 4])
    assert 0 < provider.requests < 10
    check_books(budget, provider)


def test_a_failure(embedding: Any, budget: Budget, provider: SimulatedProvider) -> None:
    provider.behave(status=400)
    with pytest.raises(openai.BadRequestError):
        embedding.get_text_embedding("one")
    assert outcomes(budget) == ["released"]


async def test_a_list_that_fails_is_never_told_of(
    embedding: Any, budget: Budget, clock: FakeClock, provider: SimulatedProvider
) -> None:
    """LlamaIndex's own leak: only the leases end its batches."""
    provider.behave(status=400)
    with pytest.raises(openai.BadRequestError):
        await embedding.aget_text_embedding_batch(TEXTS)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    check_leased(budget, clock, calls=3)


def test_an_unknown_encoding_is_of_unknown_outcome(
    make: Any, budget: Budget, provider: SimulatedProvider
) -> None:
    handler = BudgetCallbackHandler(budget, prices={"mine": Price(input="$1/M", output=0)})
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    embedding.model_name = "mine"
    handler.on_event_start(
        CBEventType.EMBEDDING,
        {EventPayload.SERIALIZED: embedding.to_payload()},
        event_id="1",
    )
    handler.on_event_end(CBEventType.EMBEDDING, {EventPayload.CHUNKS: ["one"]}, event_id="1")
    [record] = budget.ledger
    assert record.cost >= 1_000  # texts that were not known before count by their bytes


@pytest.mark.parametrize("guarded", ["model", "client"])
def test_what_is_guarded_is_charged_once(
    make: Any, budget: Budget, provider: SimulatedProvider, guarded: str
) -> None:
    handler = BudgetCallbackHandler(budget)
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    if guarded == "model":
        embedding = guard(embedding, budget=budget, exact_input=True)
    else:
        client = guard(sync_client(provider.base_url), budget=budget)
        embedding._client.close()
        embedding._client = client
    embedding.get_text_embedding_batch(TEXTS)
    check_books(budget, provider)


def test_embeddings_of_other_budgets_are_charged_to_both(
    make: Any, budget: Budget, provider: SimulatedProvider
) -> None:
    other = Budget("$1")
    handler = BudgetCallbackHandler(budget)
    embedding = make(models.openai_embedding, callback_manager=CallbackManager([handler]))
    guard(embedding, budget=other, exact_input=True).get_text_embedding("one")
    check_books(budget, provider)
    check_covered(other, provider)

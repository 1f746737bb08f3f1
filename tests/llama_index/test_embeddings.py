"""Guarded embeddings: each batch is metered below the cache, and what was paid for is kept."""

import asyncio
import contextlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.openai import OpenAIEmbedding
from pydantic import Field

from tests.clients.helpers import check_books, check_covered, outcomes
from tests.llama_index import models
from tokenfence_integrations import Budget, BudgetExceeded, Price, UnknownModelError, guard
from tokenfence_integrations.llama_index import BudgetedEmbedding, LlamaIndexBudgetExceeded
from tokenfence_integrations.testing import Behavior, SimulatedProvider, in_turn

Make = Callable[..., Any]

PRICES = {"local": Price(input="$1/M", output="$1/M")}
TEXTS = [f"text number {number}" for number in range(7)]
MODES = [
    {"num_workers": None, "show_progress": False},
    {"num_workers": None, "show_progress": True},
    {"num_workers": 2, "show_progress": False},
    {"num_workers": 2, "show_progress": True},
]


class LocalEmbedding(BaseEmbedding):
    """Embeddings of no known provider: LlamaIndex's defaults over one method, which notes its use.

    The defaults come down to it: lists loop over single texts, async ways call the sync ones.
    """

    sent: list[str] = Field(default_factory=list)
    fails: bool = False

    def _get_text_embedding(self, text: str) -> list[float]:
        self.sent.append(text)
        if self.fails:
            raise ConnectionResetError
        return [float(len(text))]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class BatchingEmbedding(LocalEmbedding):
    """One that sends lists, and whose batches can be held."""

    gate: Any = None
    batches: list[list[str]] = Field(default_factory=list)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.batches.append(texts)
        return [[float(len(text))] for text in texts]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if self.gate is not None:
            await self.gate.wait()
        return self._get_text_embeddings(texts)


def local(kind: Any = LocalEmbedding, **options: Any) -> Any:
    return kind(**{"model_name": "local", "embed_batch_size": 3, **options})


async def embed(embedding: BaseEmbedding, way: str, texts: Sequence[str] = TEXTS) -> Any:
    """A list of texts, the one way or the other."""
    if way == "sync":
        return embedding.get_text_embedding_batch([*texts])
    return await embedding.aget_text_embedding_batch([*texts])


# What is charged


@pytest.mark.parametrize("mode", MODES)
async def test_each_batch_is_a_call_of_the_books(
    mode: dict[str, Any], make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make(models.openai_embedding, embed_batch_size=3, num_workers=mode["num_workers"])
    unguarded = plain.get_text_embedding_batch(TEXTS)
    provider.idle()
    cost = provider.billed
    provider.clear()
    embedding = guard(plain, budget=budget)

    progress = {"show_progress": mode["show_progress"]}
    assert embedding.get_text_embedding_batch(TEXTS, **progress) == unguarded
    assert await embedding.aget_text_embedding_batch(TEXTS, **progress) == unguarded

    assert isinstance(embedding, OpenAIEmbedding)
    assert isinstance(embedding, BudgetedEmbedding)
    check_books(budget, provider, records=6)
    assert provider.billed == 2 * cost


async def test_queries_and_single_texts_are_calls(
    make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make(models.openai_embedding)
    embedding = guard(plain, budget=budget)

    embedding.get_query_embedding("a question")
    await embedding.aget_query_embedding("a question")
    embedding.get_text_embedding("a text")
    await embedding.aget_text_embedding("a text")
    embedding.get_agg_embedding_from_queries(["one", "two"])
    await embedding.aget_agg_embedding_from_queries(["one", "two"])

    check_books(budget, provider, records=8)


async def test_what_the_cache_has_costs_nothing(
    make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make(models.openai_embedding, embed_batch_size=3, embeddings_cache=SimpleKVStore())
    embedding = guard(plain, budget=budget)

    first = embedding.get_text_embedding_batch(TEXTS)
    assert await embedding.aget_text_embedding_batch(TEXTS) == first
    assert embedding.get_text_embedding(TEXTS[0]) == first[0]
    assert await embedding.aget_query_embedding(TEXTS[0]) == first[0]

    check_books(budget, provider, records=3)


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize(("kind", "calls"), [(LocalEmbedding, 3), (BatchingEmbedding, 3)])
async def test_defaults_that_call_each_other_reserve_once(way: str, kind: Any, calls: int) -> None:
    plain = local(kind)
    budget = Budget("$1")
    embedding = guard(plain, budget=budget, prices=PRICES)

    assert await embed(embedding, way) == [[float(len(text))] for text in TEXTS]

    assert len(budget.ledger) == calls
    assert embedding.get_query_embedding("why") == await embedding.aget_text_embedding("why")
    assert len(budget.ledger) == calls + 2
    assert budget.reserved == 0


@pytest.mark.parametrize("exact", [True, False])
def test_without_a_known_way_to_count_the_bound_stays_charged(exact: bool) -> None:
    plain = local(model_name="gpt-4o", embed_batch_size=10)
    budget = Budget("$1")

    guard(plain, budget=budget, exact_input=exact).get_text_embedding_batch(TEXTS)

    record = budget.ledger[0]
    if exact:
        assert record.usage is not None
        assert (record.outcome, record.cost) == ("settled", 2_500 * record.usage.input_tokens)
        assert 0 < record.cost < record.bound
    else:
        assert (record.outcome, record.uncertain) == ("uncertain", record.bound)


def test_a_failure_ends_the_reservation() -> None:
    budget = Budget("$1")

    with pytest.raises(ConnectionResetError):
        guard(local(fails=True), budget=budget, prices=PRICES).get_query_embedding("why")

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]


def test_each_retry_is_an_attempt(
    make: Make, budget: Budget, provider: SimulatedProvider, no_pauses: None
) -> None:
    plain = make(models.openai_embedding, max_retries=2)
    provider.script = in_turn(*[Behavior(status=500)] * 3, Behavior())

    guard(plain, budget=budget).get_query_embedding("a question")

    # The SDK tries three times for each of LlamaIndex's own.
    assert outcomes(budget) == ["uncertain"] * 3 + ["settled"]
    assert provider.requests == 4
    check_covered(budget, provider)


# The limit


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_list_goes_on_where_the_limit_stopped_it(
    way: str, make: Make, provider: SimulatedProvider
) -> None:
    budget = Budget(calls=2)
    plain = make(models.openai_embedding, embed_batch_size=3)
    embedding = guard(plain, budget=budget)

    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        await embed(embedding, way)

    assert refusal.value.completed == 6
    assert not refusal.value.replaceable
    travelled = pickle.loads(pickle.dumps(refusal.value))
    assert (type(travelled), str(travelled)) == (type(refusal.value), str(refusal.value))
    assert travelled.completed == 6
    provider.idle()
    assert provider.requests == 2
    budget.top_up(calls=1)
    vectors = await embed(embedding, way)
    check_books(budget, provider, records=3)
    assert [line.input_tokens for line in provider.bill][2] < provider.bill[0].input_tokens
    assert vectors == plain.get_text_embedding_batch(TEXTS)


async def test_what_was_kept_is_dropped_when_its_list_is_done() -> None:
    budget = Budget(calls=1)
    plain = local(BatchingEmbedding)
    embedding = guard(plain, budget=budget, prices=PRICES)
    with pytest.raises(BudgetExceeded):
        embedding.get_text_embedding_batch(TEXTS)
    budget.top_up(calls=10)

    embedding.get_text_embedding_batch(TEXTS)
    embedding.get_text_embedding_batch(TEXTS)

    assert plain.batches == [TEXTS[:3], TEXTS[3:6], TEXTS[6:], TEXTS[:3], TEXTS[3:6], TEXTS[6:]]
    assert not embedding.tokenfence_terms.kept_vectors


async def test_another_batch_size_goes_on_as_well() -> None:
    budget = Budget(calls=1)
    plain = local(BatchingEmbedding)
    embedding = guard(plain, budget=budget, prices=PRICES)
    with pytest.raises(BudgetExceeded):
        embedding.get_text_embedding_batch(TEXTS)
    budget.top_up(calls=10)

    embedding.embed_batch_size = 2
    vectors = embedding.get_text_embedding_batch(TEXTS)

    assert vectors == [[float(len(text))] for text in TEXTS]
    assert plain.batches == [TEXTS[:3], TEXTS[3:4], TEXTS[4:6], TEXTS[6:]]


async def test_vectors_of_one_model_are_not_anothers() -> None:
    budget = Budget(calls=1)
    prices = {**PRICES, "other": PRICES["local"]}
    embedding = guard(local(BatchingEmbedding), budget=budget, prices=prices)
    with pytest.raises(BudgetExceeded):
        embedding.get_text_embedding_batch(TEXTS)
    budget.top_up(calls=10)

    embedding.model_copy(update={"model_name": "other"}).get_text_embedding_batch(TEXTS)

    assert embedding.batches == [TEXTS[:3], TEXTS[:3], TEXTS[3:6], TEXTS[6:]]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_equal_texts_count_each_and_are_sent_as_they_are(way: str) -> None:
    budget = Budget(calls=2)
    plain = local(BatchingEmbedding)
    embedding = guard(plain, budget=budget, prices=PRICES)
    texts = ["a", "a", "bb", "bb", "bb", "ccc", "a", "dddd"]

    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        await embed(embedding, way, texts)

    assert refusal.value.completed == 7  # the last but one is the first again
    budget.top_up(calls=1)
    assert await embed(embedding, way, texts) == [[float(len(text))] for text in texts]
    assert plain.batches == [texts[:3], texts[3:6], ["dddd"]]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_what_the_cache_had_is_completed_too(way: str) -> None:
    budget = Budget(calls=2)
    plain = local(BatchingEmbedding, embeddings_cache=SimpleKVStore())
    embedding = guard(plain, budget=budget, prices=PRICES)
    embedding.get_text_embedding_batch(TEXTS[:3])

    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        await embed(embedding, way)

    assert refusal.value.completed == 6
    budget.top_up(calls=1)
    await embed(embedding, way)
    assert plain.batches == [TEXTS[:3], TEXTS[3:6], TEXTS[6:]]


@pytest.mark.parametrize("mode", MODES)
async def test_async_batches_in_flight_are_waited_for(mode: dict[str, Any]) -> None:
    budget = Budget(calls=1)
    gate, refused = asyncio.Event(), asyncio.Event()
    workers = mode["num_workers"]
    plain = local(BatchingEmbedding, embed_batch_size=1, gate=gate, num_workers=workers)
    embedding = guard(plain, budget=budget, prices=PRICES, wait=0)
    budget.on_event(lambda event: refused.set() if event.kind == "refused" else None)
    loop_errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: loop_errors.append(told))

    going = asyncio.create_task(
        embedding.aget_text_embedding_batch(TEXTS, show_progress=mode["show_progress"])
    )
    await refused.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not going.done()
    gate.set()
    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        await going

    assert refusal.value.completed == 1
    assert len(plain.batches) == 1
    assert budget.reserved == 0
    assert len(budget.ledger) == 1
    budget.top_up(calls=6)
    assert len(await embedding.aget_text_embedding_batch(TEXTS)) == 7
    assert len(plain.batches) == 7
    del going, refusal
    assert loop_errors == []


async def test_two_lists_at_once_go_on_each() -> None:
    budget = Budget(calls=4)
    plain = local(BatchingEmbedding)
    embedding = guard(plain, budget=budget, prices=PRICES)
    others = [f"another text, number {number}" for number in range(9)]

    refusals = await asyncio.gather(
        embedding.aget_text_embedding_batch(TEXTS),
        embedding.aget_text_embedding_batch(others),
        return_exceptions=True,
    )
    sent = sum(len(batch) for batch in plain.batches)
    left = []
    for texts, refusal in zip((TEXTS, others), refusals, strict=True):
        if isinstance(refusal, LlamaIndexBudgetExceeded):
            left.append(texts)
            sent -= refusal.completed
        else:
            sent -= len(texts)
    assert left
    assert sent == 0

    budget.top_up(calls=10)
    await asyncio.gather(*[embedding.aget_text_embedding_batch(texts) for texts in left])
    assert sorted(text for batch in plain.batches for text in batch) == sorted([*TEXTS, *others])
    assert not embedding.tokenfence_terms.kept_vectors


async def test_a_cancelled_list_leaks_nothing() -> None:
    budget = Budget("$1")
    gate = asyncio.Event()
    embedding = guard(local(BatchingEmbedding, gate=gate), budget=budget, prices=PRICES)
    reserved = asyncio.Event()
    budget.on_event(lambda event: reserved.set() if event.kind == "admitted" else None)

    going = asyncio.create_task(embedding.aget_text_embedding_batch(TEXTS))
    await reserved.wait()
    going.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await going

    assert budget.reserved == 0
    assert set(outcomes(budget)) <= {"uncertain"}


# Indexes


def nodes() -> list[TextNode]:
    return [TextNode(text=text) for text in TEXTS]


@pytest.mark.parametrize("kind", ["index", "async index", "run", "arun"])
async def test_an_index_goes_on_after_a_top_up(
    kind: str, make: Make, provider: SimulatedProvider
) -> None:
    budget = Budget(calls=2)
    embedding = guard(make(models.openai_embedding, embed_batch_size=3), budget=budget)
    given = nodes()

    async def go() -> Any:
        if kind == "index":
            return VectorStoreIndex(given, embed_model=embedding)
        if kind == "async index":
            index = VectorStoreIndex([], embed_model=embedding)
            await index.ainsert_nodes(given)
            return index
        pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
        if kind == "run":
            return pipeline.run(nodes=given)
        return await pipeline.arun(nodes=given)

    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        await go()
    assert refusal.value.completed == 6
    assert provider.requests == 2

    budget.top_up(calls=1)
    made = await go()

    if "index" in kind:
        assert len(made.vector_store.data.embedding_dict) == 7
        budget.top_up(calls=1)
        assert made.as_retriever(similarity_top_k=2).retrieve("text number 3")
        check_books(budget, provider, records=4)
    else:
        assert all(node.embedding for node in made)
        check_books(budget, provider, records=3)


async def test_an_index_of_several_lists_goes_on_with_a_cache(
    make: Make, provider: SimulatedProvider
) -> None:
    budget = Budget(calls=2)
    cached = make(models.openai_embedding, embed_batch_size=2, embeddings_cache=SimpleKVStore())
    embedding = guard(cached, budget=budget)

    with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
        VectorStoreIndex(nodes(), embed_model=embedding, insert_batch_size=2)

    assert refusal.value.completed == 0  # of the third list
    budget.top_up(calls=2)
    VectorStoreIndex(nodes(), embed_model=embedding, insert_batch_size=2)
    check_books(budget, provider, records=4)


# As before


class Noting(BaseCallbackHandler):
    """Notes what is told of embeddings."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.told: list[Any] = []

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: Any = None, trace_map: Any = None) -> None: ...

    def on_event_start(
        self,
        event_type: Any,
        payload: Any = None,
        event_id: str = "",
        parent_id: str = "",
        **_: Any,
    ) -> str:
        if event_type is CBEventType.EMBEDDING:
            self.told.append(payload)
        return event_id

    def on_event_end(
        self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any
    ) -> None:
        if event_type is CBEventType.EMBEDDING:
            self.told.append(payload)


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_events_are_told_as_of_the_plain_one(way: str, make: Make, budget: Budget) -> None:
    told = []
    for guarded in (False, True):
        noting = Noting()
        plain = make(models.openai_embedding, embed_batch_size=3)
        plain.callback_manager = CallbackManager([noting])
        await embed(guard(plain, budget=budget) if guarded else plain, way)
        told.append(noting.told)

    assert told[0] == told[1]
    assert len(told[0]) == 6


def test_guarded_embeddings_look_like_themselves(budget: Budget) -> None:
    plain = MockEmbedding(embed_dim=4)
    embedding = guard(plain, budget=budget, prices={"MockEmbedding": Price(input=0, output=0)})

    assert embedding.get_query_embedding("why") == plain.get_query_embedding("why")
    assert embedding.to_payload() == plain.to_payload()
    assert embedding.to_dict() == plain.to_dict()
    assert repr(embedding) == repr(plain)
    assert embedding.tokenfence is budget


async def test_no_budget_means_no_request(make: Make, provider: SimulatedProvider) -> None:
    embedding = guard(make(models.openai_embedding), budget=0)
    for way in ("sync", "async"):
        with pytest.raises(LlamaIndexBudgetExceeded) as refusal:
            await embed(embedding, way)
        assert refusal.value.completed == 0
    with pytest.raises(BudgetExceeded):
        embedding.get_query_embedding("why")
    with pytest.raises(UnknownModelError):
        guard(local(), budget="$1").get_query_embedding("why")

    assert provider.requests == 0


async def test_a_budget_in_scope_counts(make: Make, provider: SimulatedProvider) -> None:
    embedding = guard(make(models.openai_embedding))
    budget = Budget("$1")

    with budget.scope():
        embedding.get_query_embedding("why")
        await embed(embedding, "async")

    check_books(budget, provider, records=2)


def test_a_budget_does_not_travel_to_another_process(budget: Budget) -> None:
    with pytest.raises(TypeError, match="process"):
        pickle.dumps(guard(local(), budget=budget))


def test_embeddings_cannot_fall_back() -> None:
    with pytest.raises(ValueError, match="not comparable"):
        guard(local(), budget="$1", fallback="other")


def test_guarding_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="guarded already"):
        guard(guard(local(), budget="$1"), budget="$1")

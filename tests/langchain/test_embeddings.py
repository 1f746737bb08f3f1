"""Guarded embeddings: each batch is metered, and what was paid for is never lost."""

import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_openai import OpenAIEmbeddings

from tests.clients.helpers import check_books, outcomes
from tests.langchain.models import close, openai_embeddings
from tokenfence_integrations import Budget, BudgetExceeded, Price, UnknownModelError, guard
from tokenfence_integrations.langchain import BudgetedEmbeddings, LangChainBudgetExceeded
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import SimulatedProvider

PRICES = {"local": Price(input="$1/M", output="$1/M")}
TEXTS = [f"text number {number}" for number in range(7)]


@pytest.fixture
async def make(provider: SimulatedProvider) -> AsyncIterator[Callable[..., OpenAIEmbeddings]]:
    made = []

    def make(**options: Any) -> OpenAIEmbeddings:
        made.append(openai_embeddings(provider.base_url, **options))
        return made[-1]

    yield make
    for embeddings in made:
        await close(embeddings)


class LocalEmbeddings(Embeddings):
    """Embeddings of no known provider, which note what they send."""

    def __init__(self, batch_size: int = 3) -> None:
        self.model = "local"
        self.batch_size = batch_size
        self.sent: list[list[str]] = []
        self.fails = False

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.sent.append(texts)
        if self.fails:
            raise ConnectionResetError
        return [[float(len(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


async def test_openai_embeddings_are_metered_by_the_request(
    make: Callable[..., OpenAIEmbeddings], budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make(chunk_size=3)
    embeddings = guard(plain, budget=budget)

    vectors = embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_documents(TEXTS) == vectors == plain.embed_documents(TEXTS)
    embeddings.embed_query("a question")
    await embeddings.aembed_query("a question")

    assert isinstance(embeddings, OpenAIEmbeddings)
    assert isinstance(embeddings, BudgetedEmbeddings)
    provider.idle()
    unguarded = sum(line.cost for line in provider.bill[6:9])
    assert len(budget.ledger) == 3 + 3 + 2
    assert budget.snapshot().spent.usd == provider.billed - unguarded


async def test_a_refusal_keeps_what_was_paid_for(
    make: Callable[..., OpenAIEmbeddings], provider: SimulatedProvider
) -> None:
    budget = Budget(calls=2)
    embeddings = guard(make(chunk_size=3), budget=budget)

    with pytest.raises(LangChainBudgetExceeded) as refusal:
        embeddings.embed_documents(TEXTS)

    assert len(refusal.value.embedded) == 6
    assert not refusal.value.replaceable
    travelled = pickle.loads(pickle.dumps(refusal.value))  # to a queue's result backend, say
    assert (type(travelled), str(travelled)) == (type(refusal.value), str(refusal.value))
    assert travelled.embedded == refusal.value.embedded
    assert provider.requests == 2
    budget.top_up(calls=1)
    rest = await embeddings.aembed_documents(TEXTS[6:])
    assert len(rest) == 1
    check_books(budget, provider, records=3)


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_any_embeddings_are_sent_in_their_own_batches(way: str) -> None:
    plain = LocalEmbeddings()
    budget = Budget("$1")
    embeddings = guard(plain, budget=budget, prices=PRICES, exact_input=True)

    if way == "sync":
        vectors = embeddings.embed_documents(TEXTS)
        embeddings.embed_query("a question")
    else:
        vectors = await embeddings.aembed_documents(TEXTS)
        await embeddings.aembed_query("a question")

    assert vectors == [[float(len(text))] for text in TEXTS]
    assert [len(batch) for batch in plain.sent] == [3, 3, 1, 1]
    # Their usage is what can be counted here: without a vocabulary nothing can.
    counted = encoding_for("local") is not None
    assert outcomes(budget) == ["settled" if counted else "uncertain"] * 4
    assert budget.snapshot().spent.usd == 1_000 * sum(
        record.usage.input_tokens for record in budget.ledger if record.usage
    )


def test_without_a_count_the_bound_stays_charged() -> None:
    budget = Budget("$1")

    guard(LocalEmbeddings(), budget=budget, prices=PRICES).embed_query("a question")

    record = budget.ledger[0]
    assert (record.outcome, record.uncertain) == ("uncertain", record.bound)


def test_a_failure_ends_the_reservation() -> None:
    budget = Budget("$1")
    plain = LocalEmbeddings()
    plain.fails = True

    with pytest.raises(ConnectionResetError):
        guard(plain, budget=budget, prices=PRICES).embed_query("a question")

    assert budget.reserved == 0
    assert [record.outcome for record in budget.ledger] == ["uncertain"]


def test_no_budget_means_no_request() -> None:
    plain = LocalEmbeddings()

    with pytest.raises(BudgetExceeded):
        guard(plain, budget=0, prices=PRICES).embed_query("a question")
    with pytest.raises(UnknownModelError):
        guard(plain, budget="$1").embed_query("a question")

    assert plain.sent == []


def test_pydantic_embeddings_look_like_themselves() -> None:
    plain = DeterministicFakeEmbedding(size=4)
    embeddings = guard(
        plain, budget="$1", prices={"DeterministicFakeEmbedding": Price(input=0, output=0)}
    )

    assert embeddings.embed_query("x") == plain.embed_query("x")
    assert repr(embeddings) == repr(plain)
    assert embeddings.model_dump() == plain.model_dump()


def test_embeddings_cannot_fall_back() -> None:
    with pytest.raises(ValueError, match="not comparable"):
        guard(LocalEmbeddings(), budget="$1", fallback="other")


def test_guarding_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="guarded already"):
        guard(guard(LocalEmbeddings(), budget="$1"), budget="$1")

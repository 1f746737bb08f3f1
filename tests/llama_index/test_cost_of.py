"""`cost_of()`: a dry run sends nothing, its estimate is what the query takes, its bound holds."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex, VectorStoreIndex
from llama_index.core.llms import MockLLM

from tests.llama_index import models
from tests.llama_index.engines import ANSWERS, answer_chats, nested
from tokenfence_integrations import Budget, Price, UnknownModelError, guard
from tokenfence_integrations.llama_index import budget_for, cost_of
from tokenfence_integrations.testing import SimulatedProvider

QUESTION = "What of the sea?"
LENGTH = 16
"""What the provider answers by default, in tokens."""


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text=f"Chapter {n} tells of the sea and the ships.") for n in range(8)]


@pytest.fixture
def vector_engine(make: Callable[..., Any], documents: list[Document]) -> Any:
    index = VectorStoreIndex.from_documents(documents, embed_model=make(models.openai_embedding))
    return index.as_query_engine(llm=make(models.openai_llm))


def check(engine: Any, provider: SimulatedProvider) -> None:
    """Ask nothing, then ask: as foretold, within the bound, and a budget of the bound suffices."""
    provider.clear()
    foretold = cost_of(engine, QUESTION, expected_output_tokens=LENGTH)
    assert provider.requests == 0
    cost = budget_for(engine, foretold.bound.usd, on_limit="raise").query(QUESTION)
    told = cost.metadata["tokenfence"]
    assert told["calls"] == provider.requests == foretold.bound.calls
    assert told["spent"] == pytest.approx(provider.billed / 1e9, abs=1e-12)
    assert told["spent"] <= foretold.bound.usd
    assert foretold.expected.usd == pytest.approx(told["spent"], rel=0.1)
    assert foretold.expected.input_tokens == pytest.approx(told["input_tokens"], rel=0.1)


def test_a_question_to_a_vector_index(vector_engine: Any, provider: SimulatedProvider) -> None:
    check(vector_engine, provider)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_every_mode(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider, mode: str
) -> None:
    index = SummaryIndex.from_documents(documents)
    check(index.as_query_engine(llm=make(models.openai_llm), response_mode=mode), provider)


def test_a_streamed_answer(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider
) -> None:
    index = SummaryIndex.from_documents(documents)
    plain = index.as_query_engine(llm=make(models.openai_llm), streaming=True)
    foretold = cost_of(plain, QUESTION, expected_output_tokens=LENGTH)
    assert foretold.expected.calls == 1
    assert foretold.expected.output_tokens == LENGTH
    assert provider.requests == 0


@pytest.mark.parametrize("kind", ANSWERS)
def test_engines_of_engines(
    make: Callable[..., Any], vector_engine: Any, provider: SimulatedProvider, kind: str
) -> None:
    plain = nested(make(models.openai_llm), vector_engine, kind)
    provider.clear()
    foretold = cost_of(plain, QUESTION, expected_output_tokens=LENGTH)
    assert provider.requests == 0
    answer_chats(provider, *ANSWERS[kind])
    told = budget_for(plain, "$1").query(QUESTION).metadata["tokenfence"]
    assert told["calls"] == foretold.bound.calls
    assert told["spent"] <= foretold.bound.usd


def test_more_sub_questions_cost_more(make: Callable[..., Any], vector_engine: Any) -> None:
    plain = nested(make(models.openai_llm), vector_engine, "sub_question")
    two, six = cost_of(plain, QUESTION), cost_of(plain, QUESTION, sub_questions=6)
    assert two.bound.calls == 1 + 2 * 2 + 1
    assert six.bound.calls == 1 + 6 * 2 + 1
    assert "6 sub-questions are asked" in six.assumptions


def test_longer_nodes_are_reckoned_with(
    make: Callable[..., Any], documents: list[Document]
) -> None:
    embed_model = make(models.openai_embedding)
    long = Document(text="The tide rises, the tide falls. " * 50)
    llm = make(models.openai_llm)
    short = VectorStoreIndex.from_documents(documents, embed_model=embed_model)
    both = VectorStoreIndex.from_documents([*documents, long], embed_model=embed_model)
    few, many = (cost_of(i.as_query_engine(llm=llm), QUESTION) for i in (short, both))
    assert many.bound.input_tokens > few.bound.input_tokens + 300


def test_a_guarded_engine_is_priced_by_its_guard_and_charged_nothing(
    make: Callable[..., Any], documents: list[Document]
) -> None:
    budget = Budget("$1")
    prices = {"house-model": Price(input="$10/M", output="$20/M", max_output_tokens=50)}
    llm = make(models.openai_like, model="house-model")
    guarded = guard(llm, budget=budget, prices=prices)
    plain = SummaryIndex.from_documents(documents).as_query_engine(llm=guarded)
    foretold = cost_of(plain, QUESTION, expected_output_tokens=10)
    given = foretold.expected
    assert given.usd == pytest.approx((given.input_tokens * 10 + 10 * 20) / 1e6)
    assert budget.snapshot().spent.calls == 0


def test_an_unknown_model_has_no_cost(documents: list[Document]) -> None:
    plain = SummaryIndex.from_documents(documents).as_query_engine(llm=MockLLM())
    with pytest.raises(UnknownModelError):
        cost_of(plain, QUESTION)
    prices = {"MockLLM": Price(input="$1/M", output="$1/M", max_output_tokens=50)}
    assert cost_of(plain, QUESTION, prices=prices).bound.output_tokens == 50


def test_what_cannot_be_foreseen_is_said(make: Callable[..., Any], vector_engine: Any) -> None:
    with pytest.raises(TypeError, match="takes a query engine"):
        cost_of(make(models.openai_llm), QUESTION)
    with pytest.raises(ValueError, match="expected_output_tokens"):
        cost_of(vector_engine, QUESTION, expected_output_tokens=0)
    with pytest.raises(ValueError, match="sub_questions"):
        cost_of(vector_engine, QUESTION, sub_questions=0)

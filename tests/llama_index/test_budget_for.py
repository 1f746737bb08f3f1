"""`budget_for()`: each query of an engine has a budget of its own, and says what it cost."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex, VectorStoreIndex
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
)

from tests.llama_index import models
from tests.llama_index.engines import ANSWERS, answer_chats, nested
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.llama_index import BudgetedQueryEngine, budget_for
from tokenfence_integrations.testing import SimulatedProvider

TEXTS = [f"Document {number} tells of the sea, the ships and the wind." for number in range(8)]


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text=text) for text in TEXTS]


@pytest.fixture
def engine(make: Callable[..., Any], documents: list[Document]) -> Any:
    """A plain engine over a vector index, which has been paid for already."""
    index = VectorStoreIndex.from_documents(documents, embed_model=make(models.openai_embedding))
    return index.as_query_engine(llm=make(models.openai_llm))


@pytest.fixture(autouse=True)
def only_queries(engine: Any, provider: SimulatedProvider) -> None:
    """A bill of the queries alone."""
    provider.clear()


def billed(provider: SimulatedProvider) -> float:
    return provider.billed / 1e9


def test_each_query_says_what_it_cost(engine: Any, provider: SimulatedProvider) -> None:
    budgeted = budget_for(engine, "$0.05")
    assert isinstance(budgeted, BudgetedQueryEngine)
    assert isinstance(budgeted, RetrieverQueryEngine)
    first = budgeted.query("What of the sea?").metadata["tokenfence"]
    assert first["spent"] == pytest.approx(billed(provider), abs=1e-12)
    assert first["calls"] == 2  # the question's embedding, and the answer
    second = budgeted.query("What of the ships?").metadata["tokenfence"]
    assert first["spent"] + second["spent"] == pytest.approx(billed(provider), abs=1e-12)


async def test_an_async_query_as_well(engine: Any, provider: SimulatedProvider) -> None:
    response = await budget_for(engine, "$0.05").aquery("What of the sea?")
    assert response.metadata["tokenfence"]["spent"] == pytest.approx(billed(provider), abs=1e-12)


def test_the_plain_engine_stays_as_it_is(engine: Any) -> None:
    before = {name: id(part) for name, part in vars(engine).items()}
    budget_for(engine, "$0.05").query("What of the sea?")
    assert {name: id(part) for name, part in vars(engine).items()} == before
    assert "tokenfence" not in (engine.query("What of the sea?").metadata or {})


def test_one_query_cannot_spend_anothers_budget(engine: Any, provider: SimulatedProvider) -> None:
    cost = budget_for(engine, "$1").query("What?").metadata["tokenfence"]["spent"]
    provider.clear()
    budgeted = budget_for(engine, cost * 3, on_limit="raise", exact_input=True)
    for _ in range(5):  # five times a third of it
        budgeted.query("What?")
    assert billed(provider) == pytest.approx(5 * cost, abs=1e-9)


def test_a_query_that_does_not_fit_sends_nothing(engine: Any, provider: SimulatedProvider) -> None:
    with pytest.raises(BudgetExceeded):
        budget_for(engine, "$0.000000001", on_limit="raise").query("What?")
    assert provider.requests == 0


def test_a_streamed_answer_tells_its_cost_once_it_is_read(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider
) -> None:
    index = VectorStoreIndex.from_documents(documents, embed_model=make(models.openai_embedding))
    provider.clear()
    plain = index.as_query_engine(llm=make(models.openai_llm), streaming=True)
    response = budget_for(plain, "$0.05").query("What of the sea?")
    assert response.metadata["tokenfence"]["calls"] == 1
    assert "".join(response.response_gen)
    cost = response.metadata["tokenfence"]
    assert cost["calls"] == 2
    assert cost["spent"] == pytest.approx(billed(provider), abs=1e-12)


async def test_a_streamed_async_answer_as_well(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider
) -> None:
    index = VectorStoreIndex.from_documents(documents, embed_model=make(models.openai_embedding))
    provider.clear()
    plain = index.as_query_engine(llm=make(models.openai_llm), streaming=True)
    response = await budget_for(plain, "$0.05").aquery("What of the sea?")
    assert "".join([text async for text in response.response_gen])
    assert response.metadata["tokenfence"]["spent"] == pytest.approx(billed(provider), abs=1e-12)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_every_mode_is_metered_whole(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider, mode: str
) -> None:
    # A refining synthesizer makes its programs by a bound method: of the copy, not of the original.
    index = SummaryIndex.from_documents(documents)
    plain = index.as_query_engine(llm=make(models.openai_llm), response_mode=mode)
    cost = budget_for(plain, "$1").query("What of the sea?").metadata["tokenfence"]
    assert cost["calls"] == provider.requests
    assert cost["spent"] == pytest.approx(billed(provider), abs=1e-12)


@pytest.mark.parametrize("kind", ANSWERS)
def test_engines_of_engines_are_metered_whole(
    make: Callable[..., Any], engine: Any, provider: SimulatedProvider, kind: str
) -> None:
    plain = nested(make(models.openai_llm), engine, kind)
    answer_chats(provider, *ANSWERS[kind])
    cost = budget_for(plain, "$1").query("What of the sea?").metadata["tokenfence"]
    assert cost["calls"] == provider.requests
    assert cost["spent"] == pytest.approx(billed(provider), abs=1e-12)


def test_a_fallback_is_the_llms_where_only_the_embeddings_are_guarded(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider, budget: Budget
) -> None:
    embed_model = guard(make(models.openai_embedding), budget=budget)
    index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)
    plain = index.as_query_engine(llm=make(models.openai_llm), response_mode="accumulate")
    provider.clear()
    before = budget.snapshot().spent.usd
    budget_for(plain, "$1", fallback="gpt-4o-mini", threshold=0.0001).query("What of the sea?")
    assert {line.model for line in provider.bill} >= {"gpt-4o", "gpt-4o-mini"}
    assert budget.snapshot().spent.usd - before == provider.billed


def test_a_fallback_takes_over_within_one_query(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider
) -> None:
    index = SummaryIndex.from_documents(documents)
    llm = make(models.openai_llm)
    plain = index.as_query_engine(llm=llm, response_mode="accumulate")
    budget_for(plain, "$1", fallback="gpt-4o-mini", threshold=0.0001).query("What of the sea?")
    asked = [line.model for line in provider.bill]
    assert asked[0] == "gpt-4o"
    assert asked[-1] == "gpt-4o-mini"


def test_queries_of_a_guarded_engine_are_children_of_its_budget(
    make: Callable[..., Any], documents: list[Document], provider: SimulatedProvider
) -> None:
    team = Budget("$1", name="team")
    llm = guard(make(models.openai_llm), budget=team)
    plain = SummaryIndex.from_documents(documents).as_query_engine(llm=llm)
    cost = budget_for(plain, "$0.05").query("What?").metadata["tokenfence"]
    assert cost["budget"].startswith("team/")
    assert team.spent == pytest.approx(billed(provider), abs=1e-12)
    assert cost["spent"] == team.spent


def test_queries_count_against_their_parent(engine: Any, provider: SimulatedProvider) -> None:
    team = Budget("$1", name="team")
    budgeted = budget_for(engine, "$0.05", parent=team)
    budgeted.query("What?")
    budgeted.query("Why?")
    assert team.spent == pytest.approx(billed(provider), abs=1e-12)


def test_queries_leave_nothing_but_their_part_in_their_parents_books(
    engine: Any, provider: SimulatedProvider
) -> None:
    team = Budget("$1", name="team")
    budgeted = budget_for(engine, "$0.05", parent=team)
    costs = [budgeted.query("What?").metadata["tokenfence"] for _ in range(3)]
    gc.collect()
    assert team.children == {}
    assert len({cost["budget"] for cost in costs}) == 3
    assert team.snapshot().spent.usd == provider.billed == team.ledger.total


def test_a_query_after_a_restart_has_a_whole_budget(
    engine: Any, provider: SimulatedProvider, tmp_path: Path
) -> None:
    """Names that are counted anew in each process would name accounts of queries long over."""
    store = f"sqlite:///{tmp_path / 'budgets.db'}"
    first = budget_for(engine, "$1", parent=Budget("$5", name="team", store=store))
    spent = first.query("What?").metadata["tokenfence"]["spent"]
    again = budget_for(engine, "$1", parent=Budget("$5", name="team", store=store))
    assert again.query("What?").metadata["tokenfence"]["spent"] == spent


def test_queries_count_against_the_budget_in_scope(
    engine: Any, provider: SimulatedProvider
) -> None:
    request = Budget("$1", name="request")
    budgeted = budget_for(engine, "$0.05")
    with request.scope():
        budgeted.query("What?")
    assert request.spent == pytest.approx(billed(provider), abs=1e-12)


def test_what_cannot_work_is_refused_at_once(engine: Any, make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="needs a limit"):
        budget_for(engine)
    with pytest.raises(ValueError, match="a lot"):
        budget_for(engine, "a lot")
    with pytest.raises(ValueError, match="cannot have a window, got '\\$1/day'"):
        budget_for(engine, "$1/day")
    for given in ({"usd": Budget("$1")}, {"budget": "$1"}, {"usd": "$1", "budget": Budget("$9")}):
        with pytest.raises(TypeError, match="a budget for each query: give what one"):
            budget_for(engine, **given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="already"):
        budget_for(budget_for(engine, "$1"), "$1")
    with pytest.raises(TypeError, match="takes a query engine"):
        budget_for(make(models.openai_llm), "$1")
    index = SummaryIndex.from_documents([])
    guarded = index.as_query_engine(llm=guard(make(models.openai_llm), budget=Budget("$1")))
    with pytest.raises(ValueError, match="guarded already"):
        budget_for(guarded, "$1", fallback="gpt-4o-mini")
    with pytest.raises(ValueError, match="counts against"):
        budget_for(guarded, "$1", parent=Budget("$1", name="other"))

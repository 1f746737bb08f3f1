"""Structured predictions: each is a call, also those that go past every guarded method."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import LLM
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ValidationError

from tests.clients.anthropic_server import COST, Server, tool_use
from tests.clients.helpers import check_books, outcomes
from tests.llama_index import models
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider, ToolCall

Make = Callable[..., Any]


class City(BaseModel):
    """A city."""

    name: str


OSLO = '{"name": "Oslo"}'
SAID = [{"type": "text", "text": OSLO}]
PROMPT = PromptTemplate("The capital of {country}?")
WAYS = ["plain", "async", "stream", "async stream"]
OPENAI = [models.openai_llm, models.responses_llm]


async def predict(llm: LLM, way: str, **llm_kwargs: Any) -> Any:
    given: Any = {"llm_kwargs": llm_kwargs or None, "country": "Norway"}
    if way == "plain":
        return llm.structured_predict(City, PROMPT, **given)
    if way == "async":
        return await llm.astructured_predict(City, PROMPT, **given)
    if way == "stream":
        return [*llm.stream_structured_predict(City, PROMPT, **given)][-1]
    stream = await llm.astream_structured_predict(City, PROMPT, **given)
    return [each async for each in stream][-1]


def expected(kind: Any, way: str) -> str | None:
    """LlamaIndex reads nothing out of a Responses stream: its object stays empty."""
    return None if kind is models.responses_llm and "stream" in way else "Oslo"


def says_oslo(provider: SimulatedProvider) -> None:
    """Answer with the object, in whatever way it is asked for."""
    provider.behave(output_tokens=200)
    provider.script = lambda request: (
        ToolCall("City", {"name": "Oslo"}) if request.body.get("tools") else OSLO
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OPENAI)
@pytest.mark.parametrize("fallback", [None, "gpt-4o-mini", "gpt-3.5-turbo"])
async def test_the_books_are_the_bill(
    way: str, kind: Any, fallback: str | None, make: Make, provider: SimulatedProvider
) -> None:
    says_oslo(provider)
    budget = Budget("$100")
    llm = guard(make(kind), budget=budget, fallback=fallback, threshold=0.0 if fallback else None)
    budget.reserve(model="gpt-4o", input_tokens=1, max_output_tokens=1).admit().lose()
    begun = budget.snapshot().uncertain.usd

    found = await predict(llm, way)

    assert found.name == expected(kind, way)
    provider.idle()
    assert provider.requests == 1
    assert provider.received[0].model == (fallback or "gpt-4o")
    assert budget.snapshot().spent.usd == provider.billed > 0
    assert budget.snapshot().uncertain.usd == begun
    assert budget.reserved == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OPENAI)
async def test_a_refusal_raises(
    way: str, kind: Any, make: Make, provider: SimulatedProvider
) -> None:
    with pytest.raises(BudgetExceeded):
        await predict(guard(make(kind), budget=0), way)

    assert provider.requests == 0


@pytest.mark.parametrize("way", ["plain", "async"])
async def test_responses_are_capped_by_the_budget(
    way: str, make: Make, provider: SimulatedProvider
) -> None:
    says_oslo(provider)
    budget = Budget("$0.01")
    llm = guard(make(models.responses_llm, max_output_tokens=None), budget=budget)

    await predict(llm, way)

    assert 0 < provider.received[0].body["max_output_tokens"] < 1_000
    check_books(budget, provider, records=1)


async def test_as_structured_llm(make: Make, provider: SimulatedProvider, budget: Budget) -> None:
    says_oslo(provider)
    for kind in OPENAI:
        answer = guard(make(kind), budget=budget).as_structured_llm(City).complete("Norway?")
        assert answer.raw == City(name="Oslo")
    check_books(budget, provider, records=2)


# Anthropic, whose class asks its client directly


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_is_settled_by_what_its_client_receives(
    way: str, server: Server, budget: Budget
) -> None:
    server.turns = [SAID]
    llm = guard(models.anthropic_llm(server), budget=budget)

    assert (await predict(llm, way)).name == "Oslo"

    assert len(server.bodies) == 1
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == COST == server.billed
    assert "output_format" in str(server.bodies[0]) or "output_config" in str(server.bodies[0])


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_is_refused_before_it_is_asked(way: str, server: Server) -> None:
    with pytest.raises(BudgetExceeded):
        await predict(guard(models.anthropic_llm(server), budget="$0.001"), way)

    assert server.bodies == []


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_is_capped_by_the_budget(way: str, server: Server) -> None:
    server.turns = [SAID]
    budget = Budget("$0.05")

    await predict(guard(models.anthropic_llm(server), budget=budget), way)
    await predict(guard(models.anthropic_llm(server), budget="$1"), way)
    await predict(guard(models.anthropic_llm(server), budget="$1"), way, max_tokens=50)

    caps = [body["max_tokens"] for body in server.bodies]
    assert 0 < caps[0] < 8_192
    assert caps[1:] == [8_192, 50]
    assert budget.ledger[0].cost == COST


@pytest.mark.parametrize("way", WAYS)
async def test_each_retry_of_anthropics_sdk_is_an_attempt(way: str, server: Server) -> None:
    server.turns = [500, 429, SAID]
    budget = Budget("$1")

    await predict(guard(models.anthropic_llm(server, max_retries=2), budget=budget), way)

    assert outcomes(budget) == ["uncertain", "released", "settled"]
    assert budget.snapshot().spent.usd == COST
    assert budget.reserved == 0


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_that_is_no_object_is_paid_for(way: str, server: Server) -> None:
    budget = Budget("$1")

    with pytest.raises(ValidationError):
        await predict(guard(models.anthropic_llm(server), budget=budget), way)

    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == COST


@pytest.mark.parametrize("way", WAYS)
async def test_an_older_claude_predicts_by_a_tool(way: str, server: Server) -> None:
    server.turns = [[tool_use("City", name="Oslo")]]
    budget = Budget("$1")
    plain = models.anthropic_llm(server, model="claude-3-haiku-20240307")

    found = await predict(guard(plain, budget=budget), way)

    assert outcomes(budget) == ["settled"]
    assert len(server.bodies) == 1
    assert found.model_dump() == (await predict(plain, way)).model_dump()
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_smaller_claude_takes_over(way: str, server: Server) -> None:
    server.turns = [SAID]
    budget = Budget("$1")
    llm = guard(
        models.anthropic_llm(server), budget=budget, fallback="claude-haiku-4-5", threshold=0.0
    )
    budget.reserve(model="gpt-4o", input_tokens=1, max_output_tokens=1).admit().lose()

    await predict(llm, way)

    assert server.bodies[0]["model"] == "claude-haiku-4-5"
    assert budget.ledger[-1].model == "claude-haiku-4-5"
    assert budget.ledger[-1].cost == COST // 3


# Over providers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OPENAI)
@pytest.mark.parametrize("turned", [False, True])
async def test_a_fallback_of_another_provider_predicts_in_its_own_way(
    way: str, kind: Any, turned: bool, make: Make, provider: SimulatedProvider, server: Server
) -> None:
    says_oslo(provider)
    server.turns = [SAID]
    budget = Budget("$1")
    if turned:
        other = make(kind, model="gpt-4o-mini")
        llm = guard(models.anthropic_llm(server), budget=budget, fallback=other, threshold=0.0)
    else:
        other = models.anthropic_llm(server, model="claude-haiku-4-5")
        first = make(kind, model="gpt-4")
        llm = guard(first, budget=budget, fallback=other, threshold=0.0)
    budget.reserve(model="gpt-4o", input_tokens=1, max_output_tokens=1).admit().lose()

    found = await predict(llm, way)

    assert found.name == expected(kind if turned else None, way)
    provider.idle()
    asked = (provider.requests, len(server.bodies))
    assert asked == ((1, 0) if turned else (0, 1))
    assert [record.outcome for record in budget.ledger][1:] == ["settled"]
    assert budget.snapshot().spent.usd == (provider.billed if turned else COST // 3)
    assert budget.reserved == 0


@pytest.mark.parametrize("way", WAYS)
async def test_the_first_of_two_providers_answers_while_there_is_money(
    way: str, make: Make, provider: SimulatedProvider, server: Server, budget: Budget
) -> None:
    says_oslo(provider)
    other = models.anthropic_llm(server, model="claude-haiku-4-5")
    llm = guard(make(models.openai_llm), budget=budget, fallback=other)

    assert (await predict(llm, way)).name == "Oslo"

    assert server.bodies == []
    check_books(budget, provider, records=1)


async def test_a_stream_that_nobody_reads_costs_nothing(
    make: Make, provider: SimulatedProvider, server: Server, budget: Budget
) -> None:
    other = models.anthropic_llm(server, model="claude-haiku-4-5")
    llm = guard(make(models.openai_llm), budget=budget, fallback=other)

    stream = llm.stream_structured_predict(City, PROMPT, country="Norway")
    later = await llm.astream_structured_predict(City, PROMPT, country="Norway")
    del stream, later

    assert provider.requests == 0
    assert budget.reserved == 0
    assert budget.spent + budget.uncertain == 0


def test_it_says_what_the_unguarded_one_says(make: Make, provider: SimulatedProvider) -> None:
    says_oslo(provider)
    for kind in OPENAI:
        plain = make(kind)
        bodies = []
        for llm in (plain, guard(plain, budget="$1")):
            llm.structured_predict(City, PROMPT, country="Norway")
            bodies.append(json.dumps(provider.received[-1].body, sort_keys=True))
        assert bodies[0] == bodies[1]

"""A reservation handed down is taken once, by a layer whose budget it charges."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.clients.helpers import CALL, HELLO, check_books, outcomes, sync_client
from tests.engine.helpers import charged, reserve, small
from tokenfence_integrations import Budget, Call, guard
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture
def tree() -> Budget:
    return small(1_000, name="team")


def test_a_call_of_the_same_budget_is_taken_once(tree: Budget) -> None:
    call = reserve(tree, 10).admit()
    handover = Handover(call)

    assert handover.has(call)
    assert handover.take(tree) is call
    assert not handover.has(call)
    assert handover.take(tree) is None
    assert call.open


def test_a_call_of_a_child_charges_its_parents(tree: Budget) -> None:
    call = reserve(tree.child("agent"), 10).admit()

    assert Handover(call).take(tree) is call


def test_a_call_of_a_parent_makes_room_for_one_of_the_child(tree: Budget) -> None:
    call = reserve(tree, 10).admit()

    assert Handover(call).take(tree.child("agent")) is None

    assert call.outcome == "released"
    assert charged(tree) == (0, 0, 0)


def test_calls_of_siblings_and_of_other_trees_are_left_alone(tree: Budget) -> None:
    call = reserve(tree.child("one"), 10).admit()
    handover = Handover(call)

    assert handover.take(tree.child("two")) is None
    assert handover.take(small(1_000, name="team")) is None

    assert handover.has(call)
    assert call.open


def test_a_call_that_has_ended_is_not_taken(tree: Budget) -> None:
    call = reserve(tree, 10).admit()
    call.lose()

    assert Handover(call).take(tree) is None
    assert charged(tree) == (0, 0, 10)


def test_several_calls_are_taken_in_their_order(tree: Budget) -> None:
    calls = [reserve(tree, size).admit() for size in (10, 20)]
    handover = Handover(calls[0])
    handover.add(calls[1])

    assert [handover.take(tree) for _ in range(3)] == [*calls, None]


# What a guarded client does with one


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as provider:
        yield provider


@pytest.fixture
def bare(provider: SimulatedProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with sync_client(provider.base_url) as client:
        yield client


@contextmanager
def on_offer(call: Call) -> Iterator[Handover]:
    handover = Handover(call)
    token = offered.set(handover)
    try:
        yield handover
    finally:
        offered.reset(token)


def outer(budget: Budget, **options: Any) -> Call:
    given = {"model": "gpt-4o", "input_tokens": 500, "max_output_tokens": 16, **options}
    return budget.reserve(**given).admit()


def test_a_client_settles_what_it_takes(bare: openai.OpenAI, provider: SimulatedProvider) -> None:
    budget = Budget("$1")
    client = guard(bare, budget=budget)

    with on_offer(outer(budget)):
        client.chat.completions.create(**CALL)
        client.chat.completions.create(**CALL)  # nothing is left to take: a call of its own

    check_books(budget, provider, records=2)
    assert budget.ledger[0].bound > budget.ledger[1].bound


def test_a_retry_of_a_taken_call_reserves_for_the_same_model(
    bare: openai.OpenAI, provider: SimulatedProvider
) -> None:
    provider.script = lambda request: provider.behavior if request.index else {"drop": "before"}
    budget = Budget("$1")
    client = guard(bare.with_options(max_retries=1), budget=budget)

    # The outer layer's fallback is nothing that this client could call.
    with on_offer(outer(budget, fallback={0.0: "gpt-4o-mini"})) as handover:
        client.chat.completions.create(**{**CALL, "model": "gpt-4o-mini"})

    assert outcomes(budget) == ["uncertain", "settled"]
    assert {record.model for record in budget.ledger} == {"gpt-4o-mini"}
    assert handover.take(budget) is None


async def test_an_offer_is_seen_in_the_context_that_made_it(
    bare: openai.OpenAI, provider: SimulatedProvider
) -> None:
    budget = Budget("$1")
    client = guard(bare, budget=budget)
    call = outer(budget)

    async def offers() -> None:
        with on_offer(call):
            await asyncio.sleep(0)

    await asyncio.gather(offers(), asyncio.to_thread(ask, client))

    assert call.open
    call.release()
    provider.idle()
    assert budget.snapshot().spent.usd == provider.billed


def ask(client: Any) -> None:
    client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=16)

"""Retries inside the SDK: each is an attempt with a reservation of its own."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    CALL,
    EXACT,
    HELLO,
    async_client,
    check_books,
    check_covered,
    cost_of,
    in_dollars,
    outcomes,
    sync_client,
)
from tokenfence_integrations import Budget, BudgetExceeded, async_guard, guard
from tokenfence_integrations.testing import Behavior, Request, SimulatedProvider


def first(*behaviors: Behavior) -> Callable[[Request], Behavior | None]:
    """The first requests fail like this, the others do not."""
    return lambda request: behaviors[request.index] if request.index < len(behaviors) else None


RETRIED = [
    pytest.param(Behavior(status=429), "released", id="429"),
    pytest.param(Behavior(status=409), "released", id="409"),
    pytest.param(Behavior(status=408), "uncertain", id="408"),
    pytest.param(Behavior(status=500), "uncertain", id="500"),
    pytest.param(Behavior(status=503, bill_errors=True), "uncertain", id="503 billed"),
    pytest.param(Behavior(drop="before"), "uncertain", id="drop"),
    pytest.param(Behavior(drop="during"), "uncertain", id="drop halfway"),
]


@pytest.mark.parametrize(("fault", "outcome"), RETRIED)
class TestEachAttemptIsBooked:
    def test_sync(
        self, provider: SimulatedProvider, budget: Budget, fault: Behavior, outcome: str
    ) -> None:
        provider.script = first(fault)
        with sync_client(provider.base_url, max_retries=2) as client:
            reply = guard(client, budget=budget).chat.completions.create(**CALL)
        assert reply.choices[0].message.content
        assert provider.requests == 2
        assert outcomes(budget) == [outcome, "settled"]
        check_covered(budget, provider)
        assert budget.snapshot().spent.usd == provider.bill[-1].cost

    async def test_async(
        self, provider: SimulatedProvider, budget: Budget, fault: Behavior, outcome: str
    ) -> None:
        provider.script = first(fault, fault)
        async with async_client(provider.base_url, max_retries=2) as client:
            await async_guard(client, budget=budget).chat.completions.create(**CALL)
        assert outcomes(budget) == [outcome, outcome, "settled"]
        check_covered(budget, provider)

    def test_until_the_last(
        self, provider: SimulatedProvider, budget: Budget, fault: Behavior, outcome: str
    ) -> None:
        provider.script = lambda request: fault
        with (
            sync_client(provider.base_url, max_retries=2) as client,
            pytest.raises((openai.APIStatusError, openai.APIConnectionError)),
        ):
            guard(client, budget=budget).chat.completions.create(**CALL)
        assert outcomes(budget) == [outcome] * 3
        check_covered(budget, provider)


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_raw_responses_are_retried_alike(
    provider: SimulatedProvider, budget: Budget, stream: bool
) -> None:
    provider.script = first(Behavior(status=500))
    with sync_client(provider.base_url, max_retries=1) as client:
        guarded = guard(client, budget=budget)
        raw = guarded.chat.completions.with_raw_response.create(**CALL, stream=stream)
        if stream:
            assert list(raw.parse())
    assert outcomes(budget) == ["uncertain", "settled"]
    check_covered(budget, provider)
    # The retry, too, asks for its usage.
    bodies = [request.body for request in provider.received]
    assert bodies[0] == bodies[1]


def test_retry_after_is_kept(provider: SimulatedProvider, budget: Budget) -> None:
    provider.script = first(Behavior(status=429, retry_after=0.2))
    with sync_client(provider.base_url, max_retries=1) as client:
        begun = time.monotonic()
        guard(client, budget=budget).chat.completions.create(**CALL)
    assert time.monotonic() - begun >= 0.2
    assert outcomes(budget) == ["released", "settled"]


def test_nothing_is_reserved_between_attempts(provider: SimulatedProvider, budget: Budget) -> None:
    held: list[int] = []
    budget.on_event(lambda event: held.append(budget.snapshot().reserved.calls))
    provider.script = first(Behavior(status=429), Behavior(status=429))
    with sync_client(provider.base_url, max_retries=2) as client:
        guard(client, budget=budget).chat.completions.create(**CALL)
    assert held == [1, 0, 1, 0, 1, 0]


class TestRefusedRetry:
    """An uncertain first attempt leaves no room for a second."""

    @pytest.fixture
    def tight(self, provider: SimulatedProvider, bare: openai.OpenAI) -> Budget:
        """A budget for one call."""
        cost = cost_of(provider, bare)
        provider.script = first(Behavior(drop="before"))
        return Budget(in_dollars(cost))

    @pytest.fixture
    def patient(self, provider: SimulatedProvider) -> Any:
        with sync_client(provider.base_url, max_retries=2) as client:
            yield client

    def test_raise(
        self, provider: SimulatedProvider, patient: openai.OpenAI, tight: Budget
    ) -> None:
        guarded = guard(patient, budget=tight, on_limit="raise")
        with pytest.raises(BudgetExceeded) as caught:
            guarded.completions.create(**EXACT)
        assert provider.requests == 1
        assert caught.value.uncertain == tight.budget
        assert isinstance(caught.value, openai.OpenAIError)
        assert not isinstance(caught.value, openai.APIError)
        check_covered(tight, provider)

    def test_stop(self, provider: SimulatedProvider, patient: openai.OpenAI, tight: Budget) -> None:
        guarded = guard(patient, budget=tight)
        reply = guarded.completions.create(**EXACT)
        assert reply.model == "tokenfence"
        assert provider.requests == 1
        check_covered(tight, provider)

    async def test_async(self, provider: SimulatedProvider, tight: Budget) -> None:
        async with async_client(provider.base_url, max_retries=2) as client:
            guarded = async_guard(client, budget=tight, on_limit="raise")
            with pytest.raises(BudgetExceeded):
                await guarded.completions.create(**EXACT)
        assert provider.requests == 1
        check_covered(tight, provider)

    def test_fallback_for_the_retry(
        self, provider: SimulatedProvider, patient: openai.OpenAI, bare: openai.OpenAI
    ) -> None:
        provider.script = None
        room = cost_of(provider, bare) + cost_of(provider, bare, model="babbage-002")
        provider.script = first(Behavior(drop="before"))
        budget = Budget(in_dollars(room))
        guarded = guard(patient, budget=budget, fallback="babbage-002")
        reply = guarded.completions.create(**EXACT)
        assert reply.choices[0].text
        assert [line.model for line in provider.bill] == [EXACT["model"], "babbage-002"]
        assert outcomes(budget) == ["uncertain", "settled"]
        check_covered(budget, provider)


def test_budget_exceeded_is_never_retried(
    provider: SimulatedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[Any] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with sync_client(provider.base_url, max_retries=5) as client:
        guarded = guard(client, budget="$0.000001", on_limit="raise", wait=0)
        refused: list[str] = []
        guarded.tokenfence.on_event(lambda event: refused.append(event.kind))
        with pytest.raises(BudgetExceeded) as caught:
            guarded.chat.completions.create(**CALL)
    assert caught.value.__cause__ is None
    assert refused == ["refused"]
    assert provider.requests == 0
    assert slept == []


async def test_client_timeout_and_retries_are_each_uncertain(
    provider: SimulatedProvider, budget: Budget
) -> None:
    provider.hold()
    async with async_client(provider.base_url, max_retries=2, timeout=0.1) as client:
        with pytest.raises(openai.APITimeoutError):
            await async_guard(client, budget=budget).chat.completions.create(**CALL)
    provider.release()
    await asyncio.to_thread(provider.idle, requests=3)
    assert outcomes(budget) == ["uncertain"] * 3
    assert len(provider.bill) == 3
    check_covered(budget, provider)


def test_one_call_then_a_good_one(provider: SimulatedProvider, budget: Budget) -> None:
    provider.script = first(Behavior(status=400))
    with sync_client(provider.base_url, max_retries=2) as client:
        guarded = guard(client, budget=budget)
        with pytest.raises(openai.BadRequestError):
            guarded.chat.completions.create(**CALL)
        guarded.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert outcomes(budget) == ["released", "settled"]
    check_books(budget, provider, records=2)

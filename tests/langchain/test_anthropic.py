"""ChatAnthropic under a budget: its SDK's retries, its caches' prices, its streams."""

from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from langchain_anthropic import ChatAnthropic

from tests.clients.anthropic_server import COST, MODEL, Server
from tests.clients.helpers import outcomes
from tokenfence_integrations import Budget, guard

LONG = "word " * 400


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("anthropic._base_client.MAX_RETRY_DELAY", 0.001)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def chat(server: Server) -> Callable[..., Any]:
    """Makes ChatAnthropic models of the server."""

    def make(**options: Any) -> Any:
        model: Any = ChatAnthropic(
            **{"model": MODEL, "api_key": "unused", "max_tokens": 50, **options}
        )
        model.__dict__["_client"] = server.sync_client()
        model.__dict__["_async_client"] = server.async_client()
        return model

    return make


async def _ask(model: Any, way: str, text: str = LONG) -> Any:
    if way == "invoke":
        return model.invoke(text)
    if way == "ainvoke":
        return await model.ainvoke(text)
    if way == "stream":
        return list(model.stream(text))
    return [chunk async for chunk in model.astream(text)]


WAYS = ["invoke", "ainvoke", "stream", "astream"]


@pytest.mark.parametrize("way", WAYS)
async def test_the_books_tell_cached_tokens_apart(way: str, chat: Callable[..., Any]) -> None:
    budget = Budget("$1")

    await _ask(guard(chat(), budget=budget), way)

    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == COST


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_stream_is_asked_for_its_usage(way: str, chat: Callable[..., Any]) -> None:
    budget = Budget("$1")
    plain = chat(stream_usage=False)

    await _ask(guard(plain, budget=budget), way)
    await _ask(guard(plain, budget=budget, stream_usage=False), way)

    assert outcomes(budget) == ["settled", "uncertain"]
    assert not plain.stream_usage


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_stream_that_tells_no_input_stays_charged_for_it(
    way: str, chat: Callable[..., Any], server: Server
) -> None:
    server.final_usage = {"output_tokens": 10}
    budget = Budget("$1")

    await _ask(guard(chat(), budget=budget), way)

    record = budget.ledger[0]
    assert record.outcome == "uncertain"
    assert record.uncertain == record.bound - 40 * 15_000  # 10 of the 50 output tokens


@pytest.mark.parametrize("way", WAYS)
async def test_each_retry_is_an_attempt(way: str, chat: Callable[..., Any], server: Server) -> None:
    server.turns = [500, 429, 200]
    budget = Budget("$1")

    await _ask(guard(chat(), budget=budget), way)

    assert outcomes(budget) == ["uncertain", "released", "settled"]
    assert len(server.bodies) == 3
    lost = budget.ledger[0]
    assert lost.uncertain == lost.bound
    assert budget.snapshot().spent.usd == COST
    assert budget.snapshot().reserved.usd == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_retry_that_does_not_fit_is_not_made(
    way: str, chat: Callable[..., Any], server: Server
) -> None:
    server.turns = [500, 200]
    # A bound is some 2,100 bytes at the dearest rate of writing to the cache, $6, and 50 tokens at
    # $15: $0.0134. Two of them do not fit.
    budget = Budget("$0.02")

    answer = await _ask(guard(chat(), budget=budget), way)

    last = answer[-1] if isinstance(answer, list) else answer
    reasons = [
        message.response_metadata.get("finish_reason")
        for message in (answer if isinstance(answer, list) else [last])
    ]
    assert "budget_exceeded" in reasons
    assert len(server.bodies) == 1
    assert outcomes(budget) == ["uncertain"]


def test_failures_to_connect_are_free(chat: Callable[..., Any], server: Server) -> None:
    server.turns = [httpx2.ConnectError("refused")]
    budget = Budget("$1")

    with pytest.raises(anthropic.APIConnectionError):
        guard(chat(), budget=budget).invoke("hello")

    assert outcomes(budget) == ["released"] * 3
    assert budget.snapshot().spent.usd == 0


def test_a_cap_is_sent(chat: Callable[..., Any], server: Server) -> None:
    guard(chat(max_tokens=64_000), budget="$0.01").invoke("hello")

    assert 0 < server.bodies[0]["max_tokens"] < 700


def test_a_call_past_the_model_is_nobodys(chat: Callable[..., Any], server: Server) -> None:
    budget = Budget("$1")
    model = guard(chat(), budget=budget)

    model._client.messages.create(
        model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}]
    )

    assert outcomes(budget) == []
    assert len(server.bodies) == 1

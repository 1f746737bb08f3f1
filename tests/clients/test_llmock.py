"""Faults by a server that others wrote (llmock). Its counts are estimates: good for faults only.

It keeps no bill, so the truth is what it reported: the usage of the same call without a fault, for
each request that it began to answer.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from llmock.pytest_plugin import LLMock

from tests.clients.helpers import HELLO, async_client, outcomes, sync_client
from tokenfence_integrations import Budget, Usage, async_guard, guard
from tokenfence_integrations.pricing.book import book_of
from tokenfence_integrations.stores.base import NOTHING

TEXT = "The sky is blue because of how air scatters light."
CALL: dict[str, Any] = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 100}
Ask = Callable[[openai.OpenAI], object]


def chat(client: openai.OpenAI) -> object:
    return client.chat.completions.create(**CALL)


def stream(client: openai.OpenAI) -> object:
    return list(client.chat.completions.create(**CALL, stream=True))


def helper(client: openai.OpenAI) -> object:
    with client.chat.completions.stream(**CALL) as events:
        return events.get_final_completion()


def responses(client: openai.OpenAI) -> object:
    return client.responses.create(model="gpt-4o", input="Hello", max_output_tokens=100)


def responses_stream(client: openai.OpenAI) -> object:
    return list(
        client.responses.create(model="gpt-4o", input="Hello", max_output_tokens=100, stream=True)
    )


def raw(client: openai.OpenAI) -> object:
    return client.chat.completions.with_raw_response.create(**CALL)


WHOLE = pytest.mark.parametrize("ask", [chat, responses, raw])
STREAMED = pytest.mark.parametrize("ask", [stream, helper, responses_stream])
EACH = pytest.mark.parametrize("ask", [chat, responses, raw, stream, helper, responses_stream])


@pytest.fixture
def client(llmock: LLMock) -> Iterator[openai.OpenAI]:
    with sync_client(llmock.base_url()) as client:
        yield client


def truth(llmock: LLMock, client: openai.OpenAI, ask: Ask) -> int:
    """Nano-dollars of one undisturbed call, by the usage that the server reports."""
    llmock.reply(TEXT)
    if ask in (responses, responses_stream):
        found = client.responses.create(model="gpt-4o", input="Hello")
        assert found.usage
        usage = Usage(found.usage.input_tokens, found.usage.output_tokens)
    else:
        reply = client.chat.completions.create(**CALL)
        assert reply.usage
        usage = Usage(reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert usage.output_tokens > 0
    return book_of().card("gpt-4o").cost(usage)


def check_covered(budget: Budget, llmock: LLMock, cost: int) -> None:
    """Nothing is reserved, and the books cover what was begun: not the 4xx, but all the rest."""
    records = llmock.requests[1:]  # the first was made to find out the truth
    billed = [r for r in records if r.status == 408 or not 400 <= r.status < 500]
    state = budget.snapshot()
    assert state.reserved == NOTHING
    assert state.spent.usd + state.uncertain.usd >= len(billed) * cost
    assert state.spent.usd == budget.ledger.total
    assert len(budget.ledger) == len(records)


@EACH
def test_undisturbed(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.reply(TEXT)
    ask(guard(client, budget=budget))
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == cost


@EACH
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529])
def test_error(
    llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask, status: int
) -> None:
    cost = truth(llmock, client, ask)
    llmock.fail(status)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(guard(client, budget=budget))
    assert caught.value.status_code == status
    check_covered(budget, llmock, cost)
    free = 400 <= status < 500 and status != 408
    assert outcomes(budget) == ["released" if free else "uncertain"]


@EACH
def test_retry_after(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.rate_limit(times=2, retry_after=0.05).reply(TEXT)
    ask(guard(client, budget=budget).with_options(max_retries=2))
    llmock.assert_resilient()
    check_covered(budget, llmock, cost)
    assert outcomes(budget) == ["released", "released", "settled"]
    assert budget.snapshot().spent.usd == cost


def test_context_overflow(llmock: LLMock, client: openai.OpenAI, budget: Budget) -> None:
    llmock.context_overflow()
    with pytest.raises(openai.BadRequestError, match="context"):
        chat(guard(client, budget=budget))
    assert outcomes(budget) == ["released"]
    assert budget.reserved == budget.uncertain == 0


def test_quota_of_requests(llmock: LLMock, client: openai.OpenAI, budget: Budget) -> None:
    llmock.limits(rpm=3)
    guarded = guard(client, budget=budget)
    for _ in range(3):
        chat(guarded)
    for _ in range(2):
        with pytest.raises(openai.RateLimitError):
            chat(guarded)
    assert outcomes(budget) == ["settled"] * 3 + ["released"] * 2
    assert budget.reserved == budget.uncertain == 0


def test_quota_of_tokens(llmock: LLMock, client: openai.OpenAI, budget: Budget) -> None:
    llmock.limits(tpm=150)
    guarded = guard(client, budget=budget)
    chat(guarded)
    with pytest.raises(openai.RateLimitError):
        stream(guarded)
    assert outcomes(budget) == ["settled", "released"]


@WHOLE
def test_delay(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.delay(0.3).reply(TEXT)
    with pytest.raises(openai.APITimeoutError):
        ask(guard(client, budget=budget).with_options(timeout=0.1))
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, llmock, cost)


@EACH
def test_delay_and_retry(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.delay(0.4).reply(TEXT, times=None)
    ask(guard(client, budget=budget).with_options(timeout=0.2, max_retries=1))
    assert outcomes(budget) == ["uncertain", "settled"]
    check_covered(budget, llmock, cost)


@STREAMED
def test_slow_first_token(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.slow_first_token(0.05).reply(TEXT)
    ask(guard(client, budget=budget))
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == cost
    llmock.slow_first_token(0.4).reply(TEXT)
    with pytest.raises(Exception, match="timed out"):
        ask(guard(client, budget=budget).with_options(timeout=0.1))
    assert outcomes(budget) == ["settled", "uncertain"]
    check_covered(budget, llmock, cost)


BROKEN = {
    "disconnect": {"RemoteProtocolError"},
    "stall": {"ReadTimeout"},
    "corrupt": {"JSONDecodeError"},
    # A stream that merely ends raises only in helpers, which miss what they wait for.
    "truncate": {"", "AssertionError", "RuntimeError"},
}


@STREAMED
@pytest.mark.parametrize("chunks", [0, 1, 3])
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_stream(
    llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask, fault: str, chunks: int
) -> None:
    cost = truth(llmock, client, ask)
    llmock.reply(TEXT)
    getattr(llmock, fault)(after_chunks=chunks)
    guarded = guard(client, budget=budget).with_options(timeout=0.2)
    assert raised_by(lambda: ask(guarded)) in BROKEN[fault]
    check_covered(budget, llmock, cost)
    assert outcomes(budget) == ["uncertain"]


def raised_by(function: Callable[[], object]) -> str:
    """The name of the exception that it raises, if any."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return ""


@EACH
def test_outage(llmock: LLMock, client: openai.OpenAI, budget: Budget, ask: Ask) -> None:
    cost = truth(llmock, client, ask)
    llmock.fail(503, times=None, retry_after=0.01)
    guarded = guard(client, budget=budget).with_options(max_retries=1)
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            ask(guarded)
    check_covered(budget, llmock, cost)
    assert outcomes(budget) == ["uncertain"] * 6


def test_an_outage_uses_up_the_budget_and_no_more(llmock: LLMock, client: openai.OpenAI) -> None:
    llmock.outage()
    budget = Budget("$0.01")
    guarded = guard(client, budget=budget, on_limit="stop")
    for _ in range(20):
        with contextlib.suppress(openai.InternalServerError):
            reply: Any = chat(guarded)
            assert reply.model == "tokenfence"
    assert len(llmock.requests) < 10
    assert 0 < budget.uncertain <= 0.01
    assert budget.reserved == 0


def test_tool_calls_that_make_no_sense(
    llmock: LLMock, client: openai.OpenAI, budget: Budget
) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    guarded = guard(client, budget=budget)
    for kind in ("malformed_arguments", "unknown_tool"):
        llmock.break_tool_call(kind)
        assert guarded.chat.completions.create(**CALL, tools=[tool])
        llmock.break_tool_call(kind)
        assert list(guarded.chat.completions.create(**CALL, tools=[tool], stream=True))
    assert outcomes(budget) == ["settled"] * 4


async def test_faults_side_by_side(llmock: LLMock, budget: Budget) -> None:
    llmock.reply(TEXT, times=None)
    llmock.fail(500, times=5).fail(429, times=5).disconnect(after_chunks=2, times=5)
    llmock.truncate(after_chunks=2, times=5).corrupt(after_chunks=2, times=5)
    async with async_client(llmock.base_url()) as client:
        guarded = async_guard(client, budget=budget)

        async def read() -> None:
            async for _ in await guarded.chat.completions.create(**CALL, stream=True):
                pass

        await asyncio.gather(*[read() for _ in range(40)], return_exceptions=True)
    state = budget.snapshot()
    assert state.reserved == NOTHING
    ended = outcomes(budget)
    counts = [ended.count(outcome) for outcome in ("released", "uncertain", "settled")]
    assert counts == [5, 5 + 15, 15]

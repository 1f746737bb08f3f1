"""However a guarded LLM's call ends, its reservation ends with it, once."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

from tests.clients.helpers import async_client, check_books, check_covered, outcomes, sync_client
from tests.llama_index import models
from tests.llama_index.models import WAYS, ask
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.stores.base import NOTHING
from tokenfence_integrations.testing import Behavior, SimulatedProvider, in_turn

Make = Callable[..., Any]

KINDS = [models.openai_llm, models.responses_llm]
STREAMS = [way for way in WAYS if "stream" in way]
MESSAGES = [ChatMessage("Why?")]


async def opened(llm: Any, way: str) -> Any:
    """A stream that nobody has read yet."""
    stream = getattr(llm, way)(MESSAGES if "chat" in way else "Why?")
    return await stream if way.startswith("a") else stream


async def step(stream: Any) -> Any:
    return await anext(stream) if hasattr(stream, "__anext__") else next(stream)


# Retries: LlamaIndex's own times the SDK's


@pytest.mark.parametrize("way", ["chat", "complete", "achat", "acomplete"])
@pytest.mark.parametrize("kind", KINDS)
async def test_each_attempt_has_a_reservation_of_its_own(
    way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider, no_pauses: None
) -> None:
    # Two of LlamaIndex's, of three of the SDK's each.
    provider.script = in_turn(*[Behavior(status=429)] * 5, Behavior())

    await ask(guard(make(kind, max_retries=2), budget=budget), way)

    assert provider.requests == 6
    assert outcomes(budget) == ["released"] * 5 + ["settled"]
    assert budget.snapshot().spent.usd == provider.billed
    assert budget.snapshot().uncertain == NOTHING
    assert budget.reserved == 0


@pytest.mark.parametrize("way", ["chat", "achat"])
@pytest.mark.parametrize("kind", KINDS)
async def test_attempts_that_may_be_billed_stay_charged(
    way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider, no_pauses: None
) -> None:
    broken = [Behavior(drop="before"), Behavior(status=500, bill_errors=True)]
    provider.script = in_turn(*broken, *broken, Behavior())

    await ask(guard(make(kind, max_retries=2), budget=budget), way)

    assert provider.requests == 5
    assert outcomes(budget) == ["uncertain"] * 4 + ["settled"]
    check_covered(budget, provider)


async def test_attempts_end_where_they_no_longer_fit(
    make: Make, provider: SimulatedProvider, no_pauses: None
) -> None:
    provider.behave(drop="before")
    budget = Budget("$0.0015")  # for two calls of some $0.0007

    answer = guard(make(models.openai_llm, max_retries=2), budget=budget).chat(MESSAGES)

    assert answer.additional_kwargs["finish_reason"] == "budget_exceeded"
    assert 0 < provider.requests < 6
    assert budget.snapshot().uncertain.usd <= 1_500_000
    check_covered(budget, provider)


@pytest.mark.parametrize("way", STREAMS)
async def test_a_streams_attempts_are_the_sdks_alone(
    way: str, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.script = in_turn(Behavior(status=429), Behavior(status=500), Behavior())

    await ask(guard(make(models.openai_llm, max_retries=2), budget=budget), way)

    assert outcomes(budget) == ["released", "uncertain", "settled"]
    check_covered(budget, provider)


# Failures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "released"), (404, "released"), (429, "released"), (500, "uncertain")],
)
async def test_an_error_of_the_provider(
    kind: Any, status: int, outcome: str, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(status=status)
    llm = guard(make(kind), budget=budget)

    for way in WAYS:
        with pytest.raises(openai.APIStatusError):
            await ask(llm, way)

    assert outcomes(budget) == [outcome] * len(WAYS)
    check_covered(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_stays_charged(
    way: str, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(hold=True)
    clients = {
        "openai_client": sync_client(provider.base_url, timeout=0.02),
        "async_openai_client": async_client(provider.base_url, timeout=0.02),
    }
    plain = OpenAI(model="gpt-4o", max_tokens=40, api_key="none", max_retries=0, **clients)

    with pytest.raises(openai.APITimeoutError):
        await ask(guard(plain, budget=budget), way)
    provider.release()

    record = budget.ledger[0]
    assert (record.outcome, record.uncertain) == ("uncertain", record.bound)
    check_covered(budget, provider)
    await models.close(plain)


@pytest.mark.parametrize("leftover", [None, Handover()])
@pytest.mark.parametrize("way", WAYS)
async def test_an_error_before_anything_is_sent(
    way: str, leftover: Handover | None, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    offered.set(leftover)  # of an earlier call in this context, whose offer was taken
    with pytest.raises(TypeError):
        await ask(guard(make(models.openai_llm), budget=budget), way, no_such_option=True)

    assert provider.requests == 0
    # For a whole answer its client reserves, which was not asked; for a stream the LLM does.
    assert outcomes(budget) == (["released"] if way in STREAMS else [])
    assert budget.reserved == budget.spent == 0


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_breaks(
    way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(drop="during")

    with pytest.raises(Exception, match=r"."):
        await ask(guard(make(kind), budget=budget), way)

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


# Whoever leaves


@pytest.mark.parametrize("way", ["achat", "acomplete"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_answer(
    way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(hold=True)
    task = asyncio.create_task(ask(guard(make(kind), budget=budget), way))
    await asyncio.to_thread(provider.wait_for, 1)

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    provider.release()

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.parametrize("end", ["close", "collect"])
@pytest.mark.parametrize("way", ["stream_chat", "stream_complete"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_nobody_reads_on(
    end: str, way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.001)
    stream = await opened(guard(make(kind), budget=budget), way)
    next(stream)

    if end == "close":
        stream.close()
    del stream
    gc.collect()

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.parametrize("end", ["break", "cancel", "aclose"])
@pytest.mark.parametrize("way", ["astream_chat", "astream_complete"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_async_stream_that_nobody_reads_on(
    end: str, way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.001)
    llm = guard(make(kind), budget=budget)
    begun, ended = asyncio.Event(), asyncio.Event()
    budget.on_event(lambda event: ended.set() if event.kind == "uncertain" else None)

    async def read() -> None:
        stream = await opened(llm, way)
        async for _ in stream:
            begun.set()
            if end == "break":
                break
            if end == "aclose":
                await stream.aclose()
                break
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await begun.wait()
    if end == "cancel":
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    gc.collect()
    await ended.wait()  # the loop closes one generator after another

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_is_never_begun_costs_nothing(
    way: str, kind: Any, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    stream = await opened(guard(make(kind), budget=budget), way)
    del stream
    gc.collect()

    assert provider.requests == 0
    assert budget.reserved == 0
    state = budget.snapshot()
    assert state.spent.usd == state.uncertain.usd == 0


# The usage of streams


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("asked", [False, True])
async def test_the_usage_is_asked_for_and_hidden_from_who_did_not_ask(
    way: str, asked: bool, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    extra = {"stream_options": {"include_usage": True}} if asked else {}
    plain = make(models.openai_llm, additional_kwargs=extra)
    unguarded = await ask(plain, way)

    last = await ask(guard(plain, budget=budget), way)

    assert provider.received[1].body["stream_options"] == {"include_usage": True}
    assert ("stream_options" in provider.received[0].body) == asked
    assert (last.raw.usage is not None) == asked
    assert ("prompt_tokens" in last.additional_kwargs) == asked
    told = ("text", "delta", "message", "additional_kwargs")
    for name in told:
        assert getattr(last, name, None) == getattr(unguarded, name, None)
    different = {"id": "", "created": 0}
    assert last.raw.model_copy(update=different) == unguarded.raw.model_copy(update=different)
    provider.idle()
    assert budget.snapshot().spent.usd == provider.bill[1].cost
    assert outcomes(budget) == ["settled"]


@pytest.mark.parametrize("way", STREAMS)
async def test_the_usage_asked_for_in_a_call(
    way: str, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    llm = guard(make(models.openai_llm), budget=budget)

    last = await ask(llm, way, stream_options={"include_usage": True})

    assert last.raw.usage.prompt_tokens > 0
    check_books(budget, provider, records=1)


@pytest.mark.parametrize("way", STREAMS)
async def test_without_a_usage_a_stream_stays_charged(
    way: str, make: Make, budget: Budget, provider: SimulatedProvider
) -> None:
    await ask(guard(make(models.openai_llm), budget=budget, stream_usage=False), way)

    assert "stream_options" not in provider.received[0].body
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)

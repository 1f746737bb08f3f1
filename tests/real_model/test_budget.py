"""The main job on real input: a real (small) model, real HTTP, and a budget that is kept.

It is priced as the models that it is asked for. The truth is what its server reported.
"""

import asyncio
import time
from typing import Any

import openai
import pytest

from tests.real_model.helpers import check_ended
from tokenfence_integrations import Budget, BudgetExceeded, Usage, async_guard, guard
from tokenfence_integrations.pricing.book import book_of

pytestmark = pytest.mark.real_model

CARD = book_of().card("gpt-4o")
QUESTION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
CALL: dict[str, Any] = {"model": "gpt-4o", "messages": QUESTION, "max_tokens": 12}


def cost_of(usage: Any, model: str = "gpt-4o") -> int:
    """Nano-dollars of what a chat completion (or chunk) reported, at the plain rates."""
    assert usage is not None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    reported = Usage(usage.prompt_tokens, usage.completion_tokens, cached_tokens=cached)
    return book_of().card(model).cost(reported)


async def test_ten_at_once_under_a_budget_for_about_four(bare_async: openai.AsyncOpenAI) -> None:
    first = await bare_async.chat.completions.create(**CALL)
    budget = Budget((4.5 * cost_of(first.usage)) / 1e9)
    guarded = async_guard(bare_async, budget=budget, fallback="gpt-4o-mini", threshold=1.0)

    async def ask(number: int) -> tuple[str, int]:
        messages = [{"role": "user", "content": f"Question {number}: why is the sky blue?"}]
        if number % 2:
            options = {"stream": True, "stream_options": {"include_usage": True}}
            stream = await guarded.chat.completions.create(
                **{**CALL, "messages": messages}, **options
            )
            chunks = [chunk async for chunk in stream]
            return chunks[0].model, chunks[-1].usage
        reply = await guarded.chat.completions.create(**{**CALL, "messages": messages})
        return reply.model, reply.usage

    replies = await asyncio.gather(*[ask(number) for number in range(10)])
    check_ended(budget)
    answered = [usage for name, usage in replies if name != "tokenfence"]
    settled = [record for record in budget.ledger if record.outcome == "settled"]
    assert len(settled) == len(answered) == len(budget.ledger)
    reported = sorted((usage.prompt_tokens, usage.completion_tokens) for usage in answered)
    booked = sorted((r.usage.input_tokens, r.usage.output_tokens) for r in settled if r.usage)
    assert booked == reported
    assert {record.model for record in settled} == {"gpt-4o", "gpt-4o-mini"}
    assert len(answered) > 4


def test_books_are_what_was_reported(bare: openai.OpenAI) -> None:
    guarded = guard(bare, budget="$1")
    reply = guarded.chat.completions.create(**CALL)
    assert guarded.tokenfence.snapshot().spent.usd == cost_of(reply.usage)
    again = guarded.chat.completions.create(**CALL)
    assert again.usage
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens  # the server really caches
    assert guarded.tokenfence.snapshot().spent.usd == cost_of(reply.usage) + cost_of(again.usage)
    check_ended(guarded.tokenfence)


def test_the_chat_template_stays_within_the_bound(bare: openai.OpenAI) -> None:
    """Its template adds a system prompt of its own: more tokens than the text has bytes."""
    guarded = guard(bare, budget="$1")
    reply = guarded.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert reply.usage
    assert reply.usage.prompt_tokens > len(b"Hi")
    check_ended(guarded.tokenfence)


@pytest.mark.parametrize("asked", [False, True])
def test_stream(bare: openai.OpenAI, asked: bool) -> None:
    guarded = guard(bare, budget="$1")
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(guarded.chat.completions.create(**CALL, stream=True, **options))
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    assert all(chunk.choices for chunk in chunks[: -1 if asked else None])
    [record] = guarded.tokenfence.ledger
    assert record.outcome == "settled"
    assert record.usage is not None
    assert record.usage.output_tokens == 12
    if asked:
        assert record.cost == cost_of(chunks[-1].usage)
    check_ended(guarded.tokenfence)


def test_closed_stream(bare: openai.OpenAI) -> None:
    guarded = guard(bare, budget="$1")
    with guarded.chat.completions.create(**{**CALL, "max_tokens": 60}, stream=True) as stream:
        seen = [next(stream) for _ in range(5)]
    assert len(seen) == 5
    [record] = guarded.tokenfence.ledger
    assert record.outcome == "uncertain"
    assert record.uncertain == record.bound
    check_ended(guarded.tokenfence)


async def test_closed_streams_side_by_side(bare_async: openai.AsyncOpenAI) -> None:
    budget = Budget("$1")
    guarded = async_guard(bare_async, budget=budget)

    async def read(chunks: int) -> None:
        async with await guarded.chat.completions.create(**CALL, stream=True) as stream:
            async for _ in stream:
                chunks -= 1
                if not chunks:
                    return

    await asyncio.gather(*[read(chunks) for chunks in (1, 3, 5, 1000)])
    outcomes = sorted(record.outcome for record in budget.ledger)
    assert outcomes == ["settled", "uncertain", "uncertain", "uncertain"]
    check_ended(budget)


def test_client_timeout(bare: openai.OpenAI) -> None:
    """The server runs the call to its end, and would bill it."""
    guarded = guard(bare, budget="$1")
    begun = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        guarded.chat.completions.create(**{**CALL, "max_tokens": 40}, timeout=0.05)
    assert time.monotonic() - begun < 5
    [record] = guarded.tokenfence.ledger
    assert record.outcome == "uncertain"
    assert record.uncertain == record.bound
    undisturbed = bare.chat.completions.create(**{**CALL, "max_tokens": 40})
    assert record.uncertain >= cost_of(undisturbed.usage)
    check_ended(guarded.tokenfence)


async def test_cancelled(bare_async: openai.AsyncOpenAI) -> None:
    guarded = async_guard(bare_async, budget="$1")
    admitted = asyncio.Event()
    guarded.tokenfence.on_event(lambda event: admitted.set())
    task = asyncio.create_task(guarded.chat.completions.create(**CALL))
    await admitted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [record] = guarded.tokenfence.ledger
    assert record.outcome in ("released", "uncertain")
    check_ended(guarded.tokenfence)


def test_too_long_a_prompt(bare: openai.OpenAI) -> None:
    guarded = guard(bare, budget="$1")
    with pytest.raises(openai.BadRequestError, match="context size"):
        guarded.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "word " * 1500}], max_tokens=8
        )
    [record] = guarded.tokenfence.ledger
    assert record.outcome == "released"
    assert guarded.tokenfence.spent == guarded.tokenfence.uncertain == 0
    check_ended(guarded.tokenfence)


@pytest.mark.parametrize("stream", [False, True])
def test_two_choices(bare: openai.OpenAI, stream: bool) -> None:
    """It reports one choice of a whole answer, and a usage chunk for each choice of a stream."""
    guarded = guard(bare, budget="$1")
    options: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply: Any = guarded.chat.completions.create(**CALL, n=2, **options)
    usages = [part.usage for part in reply if part.usage] if stream else [reply.usage]
    [record] = guarded.tokenfence.ledger
    assert record.outcome == "settled"
    assert record.usage is not None
    assert record.usage.output_tokens == sum(usage.completion_tokens for usage in usages)
    if stream:
        assert record.usage.output_tokens == 24
    check_ended(guarded.tokenfence)


def test_responses(bare: openai.OpenAI) -> None:
    guarded = guard(bare, budget="$1")
    call: Any = {"model": "gpt-4o", "input": "Why is the sky blue?", "max_output_tokens": 12}
    reply = guarded.responses.create(**call)
    assert reply.output_text
    last = list(guarded.responses.create(**call, stream=True))[-1]
    assert last.type in ("response.completed", "response.incomplete")
    for record, usage in zip(
        guarded.tokenfence.ledger, (reply.usage, last.response.usage), strict=True
    ):
        assert usage
        assert record.outcome == "settled"
        assert record.usage is not None
        assert record.usage.input_tokens == usage.input_tokens
        assert record.usage.output_tokens == usage.output_tokens == 12
        assert record.usage.cached_tokens == usage.input_tokens_details.cached_tokens
        assert record.cost == CARD.cost(record.usage)
    check_ended(guarded.tokenfence)


def test_embeddings(bare: openai.OpenAI) -> None:
    guarded = guard(bare, budget="$1")
    model = "text-embedding-3-small"
    reply = guarded.embeddings.create(model=model, input=["a cat", "a dog", "a cat"])
    assert len(reply.data) == 3
    tokens = reply.usage.prompt_tokens
    assert guarded.tokenfence.snapshot().spent.usd == book_of().card(model).cost(Usage(tokens))
    check_ended(guarded.tokenfence)


def test_refused_at_the_limit(bare: openai.OpenAI) -> None:
    first = bare.chat.completions.create(**CALL)
    assert first.usage
    budget = Budget(calls=2)
    guarded = guard(bare, budget=budget)
    assert [guarded.chat.completions.create(**CALL).model == "tokenfence" for _ in range(3)] == [
        False,
        False,
        True,
    ]
    with pytest.raises(BudgetExceeded):
        guard(bare, budget=budget, on_limit="raise").chat.completions.create(**CALL)


async def test_without_maxima_under_a_small_budget(bare_async: openai.AsyncOpenAI) -> None:
    """Every answer gets a cap that the budget can pay, and all four fit."""
    budget = Budget("$0.002")
    guarded = async_guard(bare_async, budget=budget, min_output_tokens=4)
    replies = await asyncio.gather(
        *[guarded.chat.completions.create(model="gpt-4o", messages=QUESTION) for _ in range(3)]
    )
    check_ended(budget)
    reported = [reply.usage for reply in replies if reply.model != "tokenfence"]
    assert reported
    assert budget.snapshot().spent.usd == sum(cost_of(usage) for usage in reported)

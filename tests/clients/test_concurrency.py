"""Many calls at once: the budget holds, and what fits is not refused."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import Behavior, SimulatedProvider


@pytest.fixture
def for_four(provider: SimulatedProvider, bare: openai.OpenAI) -> Budget:
    """To the nano-dollar the price of four calls."""
    return Budget(in_dollars(4 * cost_of(provider, bare)))


def landed(replies: list[Any]) -> int:
    return sum(reply.model != "tokenfence" for reply in replies)


class TestGather:
    async def test_exactly_four_of_a_hundred_land(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        guarded = async_guard(bare_async, budget=for_four)
        calls = [guarded.completions.create(**EXACT) for _ in range(100)]
        replies = await asyncio.gather(*calls)
        assert landed(replies) == 4
        assert provider.requests == 4
        assert for_four.remaining == 0
        check_books(for_four, provider)

    async def test_all_of_a_hundred_land_if_they_fit(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        budget = Budget(in_dollars(25 * for_four.snapshot().limits.usd))  # type: ignore[operator]
        guarded = async_guard(bare_async, budget=budget)
        calls = [guarded.completions.create(**EXACT) for _ in range(101)]
        assert landed(await asyncio.gather(*calls)) == 100
        assert budget.remaining == 0
        check_books(budget, provider)

    async def test_streams(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        guarded = async_guard(bare_async, budget=for_four)

        async def read() -> str:
            stream = await guarded.completions.create(**EXACT, stream=True)
            return [chunk.model async for chunk in stream][-1]

        models = await asyncio.gather(*[read() for _ in range(50)])
        assert models.count("gpt-3.5-turbo-instruct") == 4
        check_books(for_four, provider)

    async def test_without_maxima_what_is_in_flight_is_waited_for(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI
    ) -> None:
        """Nobody knows how long the answers will be; short ones all fit, one after another."""
        budget = Budget("$0.02")
        guarded = async_guard(bare_async, budget=budget)
        calls = [guarded.chat.completions.create(model="gpt-4o", messages=HELLO) for _ in range(40)]
        assert landed(await asyncio.gather(*calls)) == 40
        assert all(line.output_tokens == 16 for line in provider.bill)
        check_books(budget, provider)

    async def test_responses_and_embeddings_share_it(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI
    ) -> None:
        budget = Budget("$0.001")
        guarded = async_guard(bare_async, budget=budget, on_limit="raise")

        async def ask(number: int) -> None:
            if number % 3 == 0:
                await guarded.responses.create(model="gpt-4o", input="Hello")
            elif number % 3 == 1:
                await guarded.embeddings.create(model="text-embedding-3-small", input="Hello")
            else:
                await guarded.chat.completions.create(**CALL, n=2)

        await asyncio.gather(*[ask(n) for n in range(30)], return_exceptions=True)
        assert 0 < provider.billed <= 1_000_000
        check_books(budget, provider)

    async def test_text_is_counted_exactly_near_the_limit(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI
    ) -> None:
        """Where the vocabulary is installed; else the bytes bound it, and two of them fit."""
        budget = Budget(in_dollars(4 * (8 * 2_500 + 16 * 10_000)))
        guarded = async_guard(bare_async, budget=budget, exact_input=True)
        calls = [guarded.chat.completions.create(**CALL) for _ in range(20)]
        replies = await asyncio.gather(*calls)
        assert landed(replies) == (4 if encoding_for("gpt-4o") else 2)
        check_books(budget, provider)


class TestLeaving:
    async def test_cancelled_while_in_flight_and_while_waiting(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        provider.hold()
        guarded = async_guard(bare_async, budget=for_four)
        tasks = [asyncio.create_task(guarded.completions.create(**EXACT)) for _ in range(10)]
        await asyncio.to_thread(provider.wait_for, 4)
        assert for_four.snapshot().reserved.calls == 4
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(f, asyncio.CancelledError) for f in found)
        assert outcomes(for_four) == ["uncertain"] * 4
        provider.release()
        await asyncio.to_thread(provider.idle, requests=4)
        assert len(provider.bill) == 4
        check_covered(for_four, provider)

    async def test_a_cancelled_waiter_does_not_hold_up_the_next(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        provider.hold()
        guarded = async_guard(bare_async, budget=for_four)
        tasks = [asyncio.create_task(guarded.completions.create(**EXACT)) for _ in range(6)]
        await asyncio.to_thread(provider.wait_for, 4)
        tasks[4].cancel()
        provider.release()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[4], asyncio.CancelledError)
        assert landed(found[:4]) == 4
        assert found[5].model == "tokenfence"  # type: ignore[union-attr]
        check_books(for_four, provider)

    async def test_client_timeouts(self, provider: SimulatedProvider, for_four: Budget) -> None:
        provider.hold()
        async with async_client(provider.base_url, timeout=0.2) as client:
            guarded = async_guard(client, budget=for_four)
            calls = [guarded.completions.create(**EXACT) for _ in range(20)]
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(f, openai.APITimeoutError) for f in found) == 4
        provider.release()
        await asyncio.to_thread(provider.idle, requests=4)
        assert provider.requests == 4
        check_covered(for_four, provider)
        assert for_four.remaining == 0

    async def test_released_calls_make_room(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
    ) -> None:
        """Four are refused by the provider, free of charge: four others take their place."""
        provider.script = lambda r: Behavior(status=400) if r.index < 4 else None
        guarded = async_guard(bare_async, budget=for_four)
        calls = [guarded.completions.create(**EXACT) for _ in range(20)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(f, openai.BadRequestError) for f in found) == 4
        assert landed([f for f in found if not isinstance(f, BaseException)]) == 4
        check_books(for_four, provider, records=8)


class TestThreads:
    def test_exactly_four_land(self, provider: SimulatedProvider, for_four: Budget) -> None:
        start = threading.Barrier(32)
        with sync_client(provider.base_url) as client:
            guarded = guard(client, budget=for_four)

            def ask(_: int) -> Any:
                start.wait()
                return guarded.completions.create(**EXACT)

            with ThreadPoolExecutor(32) as pool:
                replies = list(pool.map(ask, range(32)))
        assert landed(replies) == 4
        check_books(for_four, provider)

    def test_streams_in_threads(self, provider: SimulatedProvider, for_four: Budget) -> None:
        with sync_client(provider.base_url) as client:
            guarded = guard(client, budget=for_four)

            def ask(_: int) -> str:
                return list(guarded.completions.create(**EXACT, stream=True))[-1].model

            with ThreadPoolExecutor(16) as pool:
                models = list(pool.map(ask, range(32)))
        assert models.count("gpt-3.5-turbo-instruct") == 4
        check_books(for_four, provider)

    async def test_sync_and_async_on_one_budget(
        self,
        provider: SimulatedProvider,
        bare: openai.OpenAI,
        bare_async: openai.AsyncOpenAI,
        for_four: Budget,
    ) -> None:
        sync = guard(bare, budget=for_four)
        aio = async_guard(bare_async, budget=for_four)
        create: Callable[..., Any] = sync.completions.create
        replies = await asyncio.gather(
            *[aio.completions.create(**EXACT) for _ in range(10)],
            *[asyncio.to_thread(create, **EXACT) for _ in range(10)],
        )
        assert landed(replies) == 4
        check_books(for_four, provider)

    def test_loops_in_threads(self, provider: SimulatedProvider, for_four: Budget) -> None:
        async def ask_five() -> int:
            async with async_client(provider.base_url) as client:
                guarded = async_guard(client, budget=for_four)
                calls = [guarded.completions.create(**EXACT) for _ in range(5)]
                return landed(await asyncio.gather(*calls))

        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(lambda _: asyncio.run(ask_five()), range(4)))
        assert sum(counts) == 4
        check_books(for_four, provider)


async def test_children_share_what_their_parent_has(
    provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
) -> None:
    children = [for_four.child(name) for name in "abcde"]
    clients = [async_guard(bare_async, budget=child) for child in children]
    calls = [client.completions.create(**EXACT) for client in clients for _ in range(4)]
    assert landed(await asyncio.gather(*calls)) == 4
    check_books(for_four, provider)
    assert sum(child.snapshot().spent.usd for child in children) == provider.billed


async def test_dollars_never_exceed_the_limit_at_any_moment(
    provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, for_four: Budget
) -> None:
    limit = for_four.snapshot().limits.usd
    charged: list[int] = []

    def look(event: Any) -> None:
        state = for_four.snapshot()
        charged.append(state.spent.usd + state.uncertain.usd + state.reserved.usd)

    for_four.on_event(look)
    guarded = async_guard(bare_async, budget=for_four)
    await asyncio.gather(*[guarded.completions.create(**EXACT) for _ in range(30)])
    assert limit is not None
    assert max(charged) == limit

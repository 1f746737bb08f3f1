"""Streams: what is injected and hidden, and every way in which a stream can end."""

import asyncio
import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    CALL,
    HELLO,
    OPENAI_3,
    check_covered,
    outcomes,
    sync_client,
)
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

Ask = Callable[[Any], Any]
ASKS: dict[str, Ask] = {
    "chat": lambda c: c.chat.completions.create(**CALL, stream=True),
    "completions": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Once", stream=True
    ),
    "responses": lambda c: c.responses.create(model="gpt-4o", input="Hello", stream=True),
}
HELPERS: dict[str, Ask] = {
    "chat": lambda c: c.chat.completions.stream(**CALL),
    "responses": lambda c: c.responses.stream(model="gpt-4o", input="Hello"),
}
each_kind = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
each_helper = pytest.mark.parametrize("ask", HELPERS.values(), ids=HELPERS)

GPT_4O_INPUT, GPT_4O_OUTPUT = 2_500, 10_000
"""Nano-dollars per token; OpenAI's price list, as genai-prices has it."""


@pytest.fixture
def guarded(bare: openai.OpenAI, budget: Budget) -> openai.OpenAI:
    return guard(bare, budget=budget)


@pytest.fixture
def aguarded(bare_async: openai.AsyncOpenAI, budget: Budget) -> openai.AsyncOpenAI:
    return async_guard(bare_async, budget=budget)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """The garbage collector does not come by."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def unfinished(provider: SimulatedProvider, budget: Budget) -> Iterator[None]:
    """The provider stops halfway until the client leaves, and bills all of it.

    Afterwards: the call has ended once, as one of unknown outcome, and covers the bill.
    """
    provider.behave(stall=True, bill_full_on_disconnect=True)
    yield
    provider.idle(requests=1)
    assert len(provider.bill) == 1
    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.usefixtures("unfinished")
class TestLeavingEarly:
    @each_kind
    def test_close(self, guarded: openai.OpenAI, budget: Budget, ask: Ask) -> None:
        stream = ask(guarded)
        next(stream)
        assert budget.reserved > 0
        stream.close()
        assert budget.reserved == 0
        stream.close()

    @each_kind
    def test_with_exit(self, guarded: openai.OpenAI, ask: Ask) -> None:
        with ask(guarded) as stream:
            next(stream)

    @each_kind
    def test_exception_within(self, guarded: openai.OpenAI, ask: Ask) -> None:
        def fail_midway() -> None:
            with ask(guarded) as stream:
                for _ in stream:
                    raise KeyError

        with pytest.raises(KeyError):
            fail_midway()

    @each_kind
    def test_response_closed(self, guarded: openai.OpenAI, ask: Ask) -> None:
        stream = ask(guarded)
        next(stream)
        stream.response.close()

    @each_kind
    @pytest.mark.usefixtures("without_collector")
    def test_dropped(self, guarded: openai.OpenAI, budget: Budget, ask: Ask) -> None:
        for _ in ask(guarded):
            break
        assert budget.reserved == 0

    @each_kind
    def test_never_started(self, guarded: openai.OpenAI, budget: Budget, ask: Ask) -> None:
        stream = ask(guarded)
        response = stream.response
        del stream
        gc.collect()
        response.close()
        assert budget.reserved == 0

    @each_helper
    def test_helper(self, guarded: openai.OpenAI, ask: Ask) -> None:
        with ask(guarded) as stream:
            next(iter(stream))

    @each_helper
    def test_helper_never_read(self, guarded: openai.OpenAI, ask: Ask) -> None:
        with ask(guarded):
            pass

    def test_streaming_response(self, guarded: openai.OpenAI) -> None:
        with guarded.chat.completions.with_streaming_response.create(
            **CALL, stream=True
        ) as response:
            next(response.iter_lines())

    def test_streaming_response_never_read(self, guarded: openai.OpenAI) -> None:
        with guarded.chat.completions.with_streaming_response.create(**CALL, stream=True):
            pass

    @each_kind
    async def test_async_close(
        self, aguarded: openai.AsyncOpenAI, budget: Budget, ask: Ask
    ) -> None:
        stream = await ask(aguarded)
        await anext(stream)
        assert budget.reserved > 0
        await stream.close()
        assert budget.reserved == 0

    @each_kind
    async def test_async_with_exit(self, aguarded: openai.AsyncOpenAI, ask: Ask) -> None:
        async with await ask(aguarded) as stream:
            await anext(stream)

    @each_helper
    async def test_async_helper(self, aguarded: openai.AsyncOpenAI, ask: Ask) -> None:
        async with ask(aguarded) as stream:
            await anext(aiter(stream))

    @each_kind
    async def test_cancelled_while_reading(
        self, aguarded: openai.AsyncOpenAI, budget: Budget, ask: Ask
    ) -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in await ask(aguarded):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        assert budget.reserved > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget.reserved == 0

    async def test_timed_out_while_reading(
        self, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        async def read() -> None:
            async for _ in await aguarded.chat.completions.create(**CALL, stream=True):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.2)
        assert budget.reserved == 0

    @each_kind
    @pytest.mark.usefixtures("without_collector")
    def test_raw_dropped(self, guarded: openai.OpenAI, budget: Budget, ask: Ask) -> None:
        raw: Any = ask(guarded.with_raw_response)
        for _ in raw.parse():
            break
        del raw
        assert budget.reserved == 0

    @pytest.mark.usefixtures("without_collector")
    async def test_async_dropped(self, aguarded: openai.AsyncOpenAI, budget: Budget) -> None:
        async for _ in await aguarded.chat.completions.create(**CALL, stream=True):
            break
        for _ in range(50):  # the loop ends abandoned generators in tasks of its own
            await asyncio.sleep(0)
            if budget.reserved == 0:
                break
        assert budget.reserved == 0

    @pytest.mark.parametrize("ask", [*ASKS.values(), *HELPERS.values()])
    def test_read_timeout(self, provider: SimulatedProvider, budget: Budget, ask: Ask) -> None:
        with sync_client(provider.base_url, timeout=0.2) as client:
            guarded = guard(client, budget=budget)
            expected = "APITimeoutError" if OPENAI_3 else "ReadTimeout"
            with pytest.raises(Exception, match="timed out") as caught, ask(guarded) as stream:
                list(stream)
        assert caught.type.__name__ == expected


@pytest.mark.usefixtures("without_collector")
def test_what_a_dropped_stream_gives_back_is_there_for_the_next_call(
    provider: SimulatedProvider, bare: openai.OpenAI
) -> None:
    guarded = guard(bare, budget=Budget(calls=1), on_limit="raise", on_unknown="release")
    for _ in guarded.chat.completions.create(**CALL, stream=True):
        break
    guarded.chat.completions.create(**CALL)
    assert outcomes(guarded.tokenfence) == ["released", "settled"]


def test_closed_after_the_last_word(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
) -> None:
    """A caller who stops at the finish reason has seen all of the answer: that much is charged."""
    call: Any = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 1000}
    with guarded.chat.completions.create(**call, stream=True) as stream:
        for part in stream:
            if part.choices[0].finish_reason:
                break
    [record] = budget.ledger
    assert record.outcome == "uncertain"
    check_covered(budget, provider)
    assert record.uncertain < record.bound - 900 * GPT_4O_OUTPUT


def test_hidden_reasoning_may_follow_what_was_seen(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
) -> None:
    provider.behave(reasoning_tokens=500)
    call: Any = {"model": "gpt-5", "messages": HELLO, "max_completion_tokens": 1000}
    with guarded.chat.completions.create(**call, stream=True) as stream:
        for part in stream:
            if part.choices[0].finish_reason:
                break
    check_covered(budget, provider)


class TestFaults:
    """Errors halfway: raised as the SDK raises them, and booked."""

    @staticmethod
    def read(ask: Ask, client: openai.OpenAI) -> None:
        with ask(client) as stream:
            list(stream)

    @pytest.mark.parametrize("ask", [*ASKS.values(), *HELPERS.values()])
    @pytest.mark.parametrize("fault", ["drop", "corrupt"])
    def test_raised(
        self,
        provider: SimulatedProvider,
        bare: openai.OpenAI,
        guarded: openai.OpenAI,
        budget: Budget,
        ask: Ask,
        fault: str,
    ) -> None:
        provider.behave(**{"drop": "during"} if fault == "drop" else {"corrupt": True})
        with pytest.raises(Exception, match=r"(?i)incomplete|connection|json|string") as expected:
            self.read(ask, bare)
        provider.idle()
        provider.clear()
        with pytest.raises(expected.type, match=r"(?i)incomplete|connection|json|string"):
            self.read(ask, guarded)
        if fault == "drop" and not OPENAI_3:
            assert expected.type.__name__ == "RemoteProtocolError"
        if fault == "corrupt":
            assert expected.type is json.JSONDecodeError
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    @each_kind
    def test_silent_early_end(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, ask: Ask
    ) -> None:
        provider.behave(end_early=True)
        self.read(ask, guarded)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_silent_early_end_with_a_running_total(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(end_early=True, continuous_usage=True)
        self.read(ASKS["chat"], guarded)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    async def test_async(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        for number, behavior in enumerate(
            ({"drop": "during"}, {"corrupt": True}, {"end_early": True}), 1
        ):
            provider.behave(**{"drop": None, "corrupt": False, **behavior})
            with contextlib.suppress(Exception):
                async for _ in await aguarded.chat.completions.create(**CALL, stream=True):
                    pass
            assert outcomes(budget) == ["uncertain"] * number
            assert budget.reserved == 0
        check_covered(budget, provider)

    def test_released_if_so_wished(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(end_early=True)
        self.read(ASKS["chat"], guard(bare, budget=budget, on_unknown="release"))
        assert outcomes(budget) == ["released"]
        assert budget.spent == budget.uncertain == budget.reserved == 0


@pytest.mark.parametrize("status", [400, 500])
@each_kind
def test_refused_streams(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, ask: Ask, status: int
) -> None:
    provider.behave(status=status)
    with pytest.raises(openai.APIStatusError):
        ask(guarded)
    assert outcomes(budget) == ["released" if status == 400 else "uncertain"]
    assert budget.reserved == 0


async def test_streams_side_by_side(
    provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
) -> None:
    async def read(close_after: int | None) -> None:
        stream = await aguarded.chat.completions.create(**CALL, stream=True)
        async with stream:
            count = 0
            async for _ in stream:
                count += 1
                if count == close_after:
                    break

    await asyncio.gather(*[read(None if n % 2 else n) for n in range(1, 17)])
    assert sorted(outcomes(budget)) == ["settled"] * 8 + ["uncertain"] * 8
    check_covered(budget, provider)

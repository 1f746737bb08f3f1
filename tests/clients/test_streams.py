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
    check_books,
    check_covered,
    outcomes,
    scripted_client,
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


class TestUsage:
    def test_is_asked_for_and_hidden(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        chunks = list(guarded.chat.completions.create(**CALL, stream=True))
        assert provider.received[0].body["stream_options"] == {"include_usage": True}
        assert all(len(chunk.choices) == 1 for chunk in chunks)
        check_books(budget, provider)

    def test_other_stream_options_are_kept(
        self, provider: SimulatedProvider, guarded: openai.OpenAI
    ) -> None:
        given = {"include_obfuscation": False}
        list(guarded.chat.completions.create(**CALL, stream=True, stream_options=given))
        sent = provider.received[0].body["stream_options"]
        assert sent == {"include_obfuscation": False, "include_usage": True}
        assert given == {"include_obfuscation": False}

    def test_the_callers_own_is_shown(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        *_, last = guarded.chat.completions.create(
            **CALL, stream=True, stream_options={"include_usage": True}
        )
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == 16
        check_books(budget, provider)

    def test_not_asked_for_when_switched_off(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        guarded = guard(bare, budget=budget, stream_usage=False)
        assert list(guarded.chat.completions.create(**CALL, stream=True))
        assert "stream_options" not in provider.received[0].body
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_not_asked_for_where_the_caller_reads_bytes(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        with guarded.chat.completions.with_streaming_response.create(
            **CALL, stream=True
        ) as response:
            assert list(response.iter_lines())
        assert "stream_options" not in provider.received[0].body
        check_covered(budget, provider)

    def test_not_asked_for_of_the_responses_api(
        self, provider: SimulatedProvider, guarded: openai.OpenAI
    ) -> None:
        list(guarded.responses.create(model="gpt-4o", input="Hello", stream=True))
        assert "stream_options" not in provider.received[0].body

    @pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
    def test_a_running_total_on_every_chunk(
        self,
        provider: SimulatedProvider,
        guarded: openai.OpenAI,
        budget: Budget,
        options: dict[str, Any],
    ) -> None:
        provider.behave(continuous_usage=True)
        chunks = list(guarded.chat.completions.create(**CALL, stream=True, **options))
        assert [chunk.usage for chunk in chunks if chunk.usage is None] == []
        check_books(budget, provider)

    def test_a_running_total_without_a_final_chunk(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(continuous_usage=True)
        guarded = guard(bare, budget=budget, stream_usage=False)
        assert list(guarded.chat.completions.create(**CALL, stream=True))
        check_books(budget, provider)

    def test_a_running_total_is_no_final_one(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(continuous_usage=True, bill_full_on_disconnect=True, stall=True)
        with guarded.chat.completions.create(**CALL, stream=True) as stream:
            for _, chunk in zip(range(4), stream, strict=False):
                assert chunk.usage is not None
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_azures_empty_first_chunk_is_shown(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(include_empty_first_chunk=True)
        first, *others = guarded.chat.completions.create(**CALL, stream=True)
        assert first.choices == []
        assert all(chunk.choices for chunk in others)
        check_books(budget, provider)

    def test_omitted_by_the_server(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(omit_usage=True)
        assert list(guarded.chat.completions.create(**CALL, stream=True))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)


def chunk(
    delta: dict[str, Any] | None = None,
    *,
    index: int = 0,
    finish: str | None = None,
    usage: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """One chunk of a scripted stream; without a delta it has no choices."""
    made: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "created": 0}
    made |= {"model": "gpt-4o", "choices": []}
    if delta is not None:
        made["choices"] = [{"index": index, "delta": delta, "finish_reason": finish}]
    if usage is not None:
        into, out = usage
        made["usage"] = {
            "prompt_tokens": into,
            "completion_tokens": out,
            "total_tokens": into + out,
        }
    return made


class TestScriptedStreams:
    """What servers other than OpenAI's send."""

    def test_one_usage_chunk_for_each_choice(self, budget: Budget) -> None:
        chunks = [
            chunk({"content": "a"}, index=0),
            chunk({"content": "b"}, index=1),
            chunk({}, index=0, finish="stop"),
            chunk({}, index=1, finish="stop"),
            chunk(usage=(10, 30)),
            chunk(usage=(10, 30)),
        ]
        with scripted_client(chunks) as client:
            stream = guard(client, budget=budget).chat.completions.create(**CALL, n=2, stream=True)
            assert [part.choices[0].index for part in stream] == [0, 1, 0, 1]
        assert budget.snapshot().spent.usd == 10 * GPT_4O_INPUT + 60 * GPT_4O_OUTPUT

    def test_usage_with_the_last_choice(self, budget: Budget) -> None:
        chunks = [chunk({"content": "a"}), chunk({}, finish="stop", usage=(10, 1))]
        with scripted_client(chunks) as client:
            stream = guard(client, budget=budget).chat.completions.create(**CALL, stream=True)
            assert len(list(stream)) == 2
        assert budget.snapshot().spent.usd == 10 * GPT_4O_INPUT + GPT_4O_OUTPUT

    @pytest.mark.parametrize(
        ("delta", "most"),
        [
            ({"content": "yes yes"}, 7 + 16),
            ({"content": "日本"}, 6 + 16),
            ({"content": "yes", "reasoning_content": None}, 3 + 16),
            # What is not plain text cannot be counted: then the whole bound is charged.
            ({"content": "yes", "reasoning_content": "I think"}, 100),
            ({"content": "yes", "tool_calls": [{"index": 0}]}, 100),
            ({"content": "", "refusal": "No."}, 100),
            ({"audio": {"data": "AAAA"}}, 100),
            ({"content": [{"type": "text", "text": "yes"}]}, 100),
        ],
    )
    def test_finished_but_without_usage(
        self, budget: Budget, delta: dict[str, Any], most: int
    ) -> None:
        with scripted_client([chunk(delta, finish="stop")]) as client:
            stream = guard(client, budget=budget).chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=100, stream=True
            )
            assert len(list(stream)) == 1
        [record] = budget.ledger
        assert record.outcome == "uncertain"
        assert record.bound - record.uncertain == (100 - most) * GPT_4O_OUTPUT

    @pytest.mark.parametrize(
        "usage",
        [
            {"prompt_tokens": "ten", "completion_tokens": 5},
            {"prompt_tokens": 10, "completion_tokens": -5},
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"x": None}},
            {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": "all"}},
            {"total": 15},
            {},
            [],
            "none",
        ],
    )
    def test_usage_that_makes_no_sense_breaks_nothing(self, budget: Budget, usage: Any) -> None:
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "gpt-4o"}
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        with scripted_client({**answer, "choices": [choice], "usage": usage}) as client:
            guarded = guard(client, budget=budget)
            reply = guarded.chat.completions.create(**CALL)
            assert reply.choices[0].message.content == "yes"
            guarded.chat.completions.with_raw_response.create(**CALL)
        with scripted_client(
            [{**chunk({"content": "yes"}, finish="stop"), "usage": usage}]
        ) as client:
            stream = guard(client, budget=budget).chat.completions.create(**CALL, stream=True)
            assert len(list(stream)) == 1
        sane = isinstance(usage, dict) and "prompt_tokens_details" in usage and "x" in str(usage)
        assert outcomes(budget) == ["settled" if sane else "uncertain"] * 3
        assert budget.reserved == 0

    def test_pictures_as_they_are_made(self, budget: Budget) -> None:
        usage = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281}
        usage_details = {"input_tokens_details": {"text_tokens": 9, "image_tokens": 0}}
        events = [
            {
                "type": "image_generation.partial_image",
                "b64_json": "AA==",
                "partial_image_index": 0,
            },
            {
                "type": "image_generation.completed",
                "b64_json": "AA==",
                "usage": usage | usage_details,
            },
        ]
        call: Any = {"model": "gpt-image-1", "prompt": "A cat", "size": "1024x1024"}
        with scripted_client(
            {"created": 0, "data": [{}], "usage": usage | usage_details}
        ) as client:
            guard(client, budget=budget).images.generate(**call)
        with scripted_client(events) as client:
            assert len(list(guard(client, budget=budget).images.generate(**call, stream=True))) == 2
        whole, streamed = budget.ledger
        assert streamed.outcome == whole.outcome == "settled"
        assert streamed.cost == whole.cost > 0

    def test_a_body_too_long_to_keep(self, budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
        # A running total from the part that was kept must not pass for the whole.
        monkeypatch.setattr("tokenfence_integrations.clients.openai.streams.MOST_CAPTURED", 1500)
        chunks = [chunk({"content": "yes"}, usage=(10, n)) for n in range(1, 17)]
        with (
            scripted_client(chunks) as client,
            guard(client, budget=budget).chat.completions.with_streaming_response.create(
                **CALL, stream=True
            ) as response,
        ):
            assert len(response.read()) > 1500
        assert outcomes(budget) == ["uncertain"]


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
    def test_dropped(self, guarded: openai.OpenAI, budget: Budget, ask: Ask) -> None:
        for _ in ask(guarded):
            break
        gc.collect()
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

    async def test_async_dropped(self, aguarded: openai.AsyncOpenAI, budget: Budget) -> None:
        async for _ in await aguarded.chat.completions.create(**CALL, stream=True):
            break
        # The loop ends abandoned generators in tasks of its own; the last of them are in a cycle.
        for _ in range(50):
            await asyncio.sleep(0)
            gc.collect()
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

    def test_an_error_event(self, budget: Budget) -> None:
        events = [chunk({"content": "a"}), {"error": {"message": "overloaded", "code": 529}}]
        with scripted_client(events) as client:
            stream = guard(client, budget=budget).chat.completions.create(**CALL, stream=True)
            with pytest.raises(openai.APIError, match="overloaded"):
                list(stream)
        assert outcomes(budget) == ["uncertain"]

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

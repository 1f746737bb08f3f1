"""The usage of streams: asked for, hidden if the caller did not, and made sense of."""

from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    CALL,
    HELLO,
    check_books,
    check_covered,
    outcomes,
    scripted_client,
)
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.testing import SimulatedProvider

GPT_4O_INPUT, GPT_4O_OUTPUT = 2_500, 10_000
"""Nano-dollars per token; OpenAI's price list, as genai-prices has it."""


@pytest.fixture
def guarded(bare: openai.OpenAI, budget: Budget) -> openai.OpenAI:
    return guard(bare, budget=budget)


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

    def test_an_error_event(self, budget: Budget) -> None:
        events = [chunk({"content": "a"}), {"error": {"message": "overloaded", "code": 529}}]
        with scripted_client(events) as client:
            stream = guard(client, budget=budget).chat.completions.create(**CALL, stream=True)
            with pytest.raises(openai.APIError, match="overloaded"):
                list(stream)
        assert outcomes(budget) == ["uncertain"]

"""What is billed unlike a plain chat: sound, plain text, tiers, hidden reasoning."""

import base64
from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    ANSWER,
    CALL,
    HELLO,
    check_books,
    check_covered,
    outcomes,
    scripted_client,
)
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# One second of sound, in the provider's eyes.
SOUND = ("a.wav", b"\0" * 32_000)


def test_moderations_are_free(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
) -> None:
    assert guarded.moderations.create(input="Hello").results
    assert provider.requests == 1
    assert len(budget.ledger) == 0


class TestSpeech:
    """Sound comes without usage: what is priced by its characters is known, the rest is not."""

    def test_by_characters(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        reply = guarded.audio.speech.create(model="tts-1", voice="alloy", input="Hello there")
        assert reply.content == bytes(64)
        check_books(budget, provider)

    def test_streaming_response(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        with guarded.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello there"
        ) as reply:
            assert b"".join(reply.iter_bytes()) == bytes(64)
        check_books(budget, provider)

    def test_by_tokens(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        guarded.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello there")
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_as_events_it_tells_its_usage(self, budget: Budget) -> None:
        usage = {"input_tokens": 5, "output_tokens": 40, "total_tokens": 45}
        events = [{"type": "speech.audio.delta", "audio": ""}]
        with scripted_client([*events, {"type": "speech.audio.done", "usage": usage}]) as client:
            guard(client, budget=budget).audio.speech.create(
                model="gpt-4o-mini-tts", voice="alloy", input="Hello", stream_format="sse"
            )
        # At $0.60 and $12 a million.
        assert budget.snapshot().spent.usd == 5 * 600 + 40 * 12_000

    def test_characters_of_three_bytes_take_longer(self, budget: Budget) -> None:
        with scripted_client({}) as client:
            guard(client, budget=budget).audio.speech.create(
                model="gpt-4o-mini-tts", voice="alloy", input="\u6c34" * 100
            )
        slowly = 100 // 2 * 20  # two characters a second, 20 tokens a second
        assert budget.snapshot().uncertain.usd >= slowly * 12_000


class TestAnswersThatAreNoObjects:
    async def test_async_transcription_as_text(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        text = await aguarded.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=SOUND, response_format="text"
        )
        assert isinstance(text, str)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_transcription_as_text(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        text = guarded.audio.transcriptions.create(
            model="whisper-1", file=SOUND, response_format="text"
        )
        assert isinstance(text, str)
        check_covered(budget, provider)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("details", [{"completion_tokens_details": {"reasoning_tokens": 100}}, {}])
def test_reasoning_that_is_in_the_total_alone_is_paid(
    budget: Budget, stream: bool, details: dict[str, Any]
) -> None:
    """As xAI and Google report it: 4 tokens are shown, and 104 are billed."""
    usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 112, **details}
    answer = {"id": "a", "choices": [], "usage": usage}
    with scripted_client([answer] if stream else answer) as client:
        reply: Any = guard(client, budget=budget).chat.completions.create(
            model="gpt-5", messages=HELLO, max_completion_tokens=200, stream=stream
        )
        if stream:
            list(reply)
    [record] = budget.ledger
    assert record.usage is not None
    assert (record.usage.output_tokens, record.outcome) == (104, "settled")
    assert record.cost == 8 * 1_250 + 104 * 10_000


def test_minutes_do_not_settle_what_is_paid_by_tokens(budget: Budget) -> None:
    with scripted_client({"text": "Hello", "duration": 12.5, "segments": []}) as client:
        guard(client, budget=budget).audio.transcriptions.create(
            model="gpt-4o-transcribe-diarize", file=SOUND, response_format="diarized_json"
        )
    assert outcomes(budget) == ["uncertain"]


class TestServiceTier:
    @pytest.mark.parametrize("stream", [False, True])
    def test_the_reported_tier_is_paid(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, stream: bool
    ) -> None:
        provider.behave(service_tier="flex")
        reply: Any = guarded.chat.completions.create(
            model="gpt-5", messages=HELLO, service_tier="auto", stream=stream
        )
        if stream:
            assert list(reply)
        assert provider.bill[0].service_tier == "flex"
        check_books(budget, provider)

    def test_of_answers_that_nobody_parsed(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(service_tier="flex")
        call: Any = {"model": "gpt-5", "messages": HELLO}
        guarded.chat.completions.with_raw_response.create(**call)
        with guarded.chat.completions.with_streaming_response.create(**call) as response:
            response.read()
        with guarded.responses.with_streaming_response.create(
            model="gpt-5", input="Hello", stream=True
        ) as lines:
            assert list(lines.iter_lines())
        check_books(budget, provider)

    def test_the_dearer_tier_is_bounded(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        events: list[str] = []
        budget.on_event(lambda event: events.append(event.kind))
        guarded.chat.completions.create(model="gpt-5", messages=HELLO, service_tier="priority")
        check_books(budget, provider)
        assert "bound_exceeded" not in events


def test_cached_and_reasoning_tokens(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
) -> None:
    provider.behave(cached_tokens=5, reasoning_tokens=40)
    guarded.chat.completions.create(model="gpt-5", messages=HELLO)
    guarded.responses.create(model="gpt-5", input="Hello")
    for chunk in guarded.chat.completions.create(model="gpt-5", messages=HELLO, stream=True):
        assert chunk.choices
    check_books(budget, provider)
    assert all(record.usage and record.usage.cached_tokens == 5 for record in budget.ledger)
    assert all(record.usage and record.usage.reasoning_tokens == 40 for record in budget.ledger)


async def test_previous_response_is_within_the_bound(
    provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
) -> None:
    provider.behave(output_tokens=3000)
    first = await aguarded.responses.create(model="gpt-4o", input="Hello")
    await aguarded.responses.create(
        model="gpt-4o", input="And?", previous_response_id=first.id, max_output_tokens=16
    )
    check_books(budget, provider)
    assert all(record.cost <= record.bound for record in budget.ledger)


THOUGHT = 20_000
"""Tokens of reasoning: far more than the bytes of all that is sent and shown."""


def _answer(number: int, into: int, thought: int = THOUGHT) -> dict[str, Any]:
    """A Responses answer that has thought, and shows an id for it."""
    usage = {
        "input_tokens": into,
        "output_tokens": thought + 10,
        "total_tokens": into + thought + 10,
        "output_tokens_details": {"reasoning_tokens": thought},
    }
    item = {"id": f"rs_answer_{number}", "type": "reasoning", "summary": []}
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "model": "gpt-5",
        "status": "completed",
        "output": [item],
        "usage": usage,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_that_is_given_back_is_within_the_bound(budget: Budget, stream: bool) -> None:
    """An item of reasoning is an id, and counts as all that was thought."""
    first = _answer(int(stream), 10)
    events = [{"type": "response.completed", "sequence_number": 1, "response": first}]
    with scripted_client(events if stream else first) as client:
        answer: Any = guard(client, budget=budget).responses.create(
            model="gpt-5", input="Why?", stream=stream
        )
        output = [event.response for event in answer][-1].output if stream else answer.output
    with scripted_client(_answer(9, 10 + THOUGHT)) as client:
        guard(client, budget=budget).responses.create(model="gpt-5", input=[*HELLO, *output])
    _, again = budget.ledger
    ceiling, input_price, output_price = 128_000, 1_250, 10_000  # gpt-5, nano-dollars a token
    assert again.usage is not None
    assert again.usage.input_tokens * input_price <= again.bound - ceiling * output_price
    assert again.bound - ceiling * output_price < (THOUGHT + 1_000) * input_price


def test_reasoning_of_no_tokens_is_not_unknown(budget: Budget) -> None:
    with scripted_client(_answer(4, 10, thought=0)) as client:
        guarded = guard(client, budget=budget)
        answer = guarded.responses.create(model="gpt-5", input="Why?", max_output_tokens=16)
        given: Any = [*HELLO, *answer.output]
        guarded.responses.create(model="gpt-5", input=given, max_output_tokens=16)
    assert budget.ledger[1].bound < 1_000 * 1_250


@pytest.mark.parametrize(
    ("item", "window"),
    [
        ({"type": "reasoning", "id": "rs_of_nobody", "summary": []}, True),
        ({"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"}, False),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a"}}]}, True),
        ({"type": "image_generation_call", "id": "ig_1"}, True),
    ],
)
def test_what_cannot_be_seen_is_bounded_by_the_window(
    budget: Budget, item: dict[str, Any], window: bool
) -> None:
    with scripted_client(_answer(3, 10)) as client:
        guard(client, budget=budget).responses.create(
            model="gpt-5",
            input=[*HELLO, item],  # type: ignore[list-item]
            max_output_tokens=16,
        )
    [record] = budget.ledger
    assert (record.bound > 400_000 * 1_250) == window


@pytest.mark.parametrize("choices", ["3", 3.0, 3])
def test_choices_as_compatible_servers_take_them(budget: Budget, choices: Any) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 48, "total_tokens": 56}
    with scripted_client({"id": "a", "choices": [], "usage": usage}) as client:
        guard(client, budget=budget).chat.completions.create(
            model="gpt-4o", messages=HELLO, max_tokens=16, n=choices
        )
    [record] = budget.ledger
    assert 0 < record.cost <= record.bound


SECONDS = 3


@pytest.mark.parametrize(
    ("coding", "per_second"), [("wav", 8_000), ("wav", 96_000), ("mp3", 1_000), ("mp3", 40_000)]
)
def test_a_recording_is_bounded_by_its_length(budget: Budget, coding: str, per_second: int) -> None:
    """From telephone to studio: a token for each tenth of a second, and not one for each byte."""
    data = base64.b64encode(bytes(SECONDS * per_second)).decode()
    heard = {"type": "input_audio", "input_audio": {"data": data, "format": coding}}
    message: Any = {"role": "user", "content": [heard]}
    true = {"prompt_tokens": SECONDS * 10 + 8, "completion_tokens": 16, "total_tokens": 54}
    usage = {**true, "prompt_tokens_details": {"audio_tokens": SECONDS * 10}}
    with scripted_client({"id": "a", "choices": [], "usage": usage}) as client:
        guard(client, budget=budget).chat.completions.create(
            model="gpt-audio", messages=[message], max_tokens=16
        )
    [record] = budget.ledger
    assert 0 < record.cost <= record.bound
    audio_price = 32_000  # gpt-audio, nano-dollars a token
    assert record.bound < len(data) * audio_price / 3


def test_one_call_of_a_loop_of_tools(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
) -> None:
    provider.behave(tool_call=True)
    asked = guarded.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[TOOL])
    [call] = asked.choices[0].message.tool_calls or []
    answered: Any = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    guarded.chat.completions.create(
        model="gpt-4o", messages=[*HELLO, asked.choices[0].message, answered], tools=[TOOL]
    )
    check_books(budget, provider)
    assert all(record.cost <= record.bound for record in budget.ledger)


def test_a_tier_that_is_asked_for_and_not_told_is_paid(budget: Budget) -> None:
    with scripted_client(ANSWER) as client:
        guard(client, budget=budget).chat.completions.create(**CALL, service_tier="priority")
    # At $4.25 and $17 a million.
    assert budget.snapshot().spent.usd == 8 * 4_250 + 16 * 17_000


def test_a_compaction_is_settled_by_its_usage_and_needs_room_for_the_longest(
    budget: Budget,
) -> None:
    usage = {"input_tokens": 12, "output_tokens": 40, "total_tokens": 52}
    answer = {"id": "c", "created_at": 1, "object": "response.compaction", "output": []}
    call: dict[str, Any] = {"model": "gpt-4.1", "input": "What we said so far."}
    with scripted_client({**answer, "usage": usage}) as client:
        guard(client, budget=budget, strict=True).responses.compact(**call)
        # At $2 and $8 a million.
        assert budget.snapshot().spent.usd == 12 * 2_000 + 40 * 8_000
        short = guard(client, budget="$0.10", strict=True)  # the ceiling is 32,768 tokens: $0.26
        with pytest.raises(BudgetExceeded):
            short.responses.compact(**call)


def test_the_picture_of_a_screen_counts_as_a_picture(budget: Budget) -> None:
    shot = {"type": "computer_screenshot", "image_url": "https://example.com/screen.png"}
    item: Any = {"type": "computer_call_output", "call_id": "call_1", "output": shot}
    with scripted_client(_answer(5, 1_000)) as client:
        guard(client, budget=budget).responses.create(
            model="gpt-5", input=[*HELLO, item], max_output_tokens=16
        )
    [record] = budget.ledger
    # A screen of 1920 x 1080 is six tiles of gpt-5: 70 + 6 x 140 tokens.
    assert record.bound - 16 * 10_000 >= (70 + 6 * 140) * 1_250

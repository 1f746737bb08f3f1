"""What is billed unlike a plain chat: sound, plain text, background work, tiers, pictures."""

from typing import Any

import openai
import pytest

from tests.clients.helpers import HELLO, check_books, check_covered, outcomes
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# One second of sound, in the provider's eyes.
SOUND = ("a.wav", b"\0" * 32_000)


@pytest.fixture
def guarded(bare: openai.OpenAI, budget: Budget) -> openai.OpenAI:
    return guard(bare, budget=budget)


@pytest.fixture
def aguarded(bare_async: openai.AsyncOpenAI, budget: Budget) -> openai.AsyncOpenAI:
    return async_guard(bare_async, budget=budget)


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


class TestBackground:
    def test_settled_when_retrieved(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        assert queued.status == "queued"
        assert budget.reserved > 0
        assert len(budget.ledger) == 0
        done = guarded.with_options(timeout=5).responses.retrieve(queued.id)
        assert done.status == "completed"
        check_books(budget, provider)
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    def test_raw_retrieval(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        raw = guarded.responses.with_raw_response.retrieve(queued.id)
        assert raw.parse().status == "completed"
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    def test_other_questions_about_it_end_nothing(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        with pytest.raises(openai.NotFoundError):
            guarded.responses.input_items.list(queued.id)
        assert budget.reserved > 0
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    async def test_async(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        await aguarded.responses.retrieve(queued.id)
        check_books(budget, provider)


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


PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("url", [PIXEL, "https://example.com/cat.png"])
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-5"])
def test_pictures_are_within_the_bound(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, url: str, model: str
) -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    message: Any = {"role": "user", "content": parts}
    guarded.chat.completions.create(model=model, messages=[message])
    check_books(budget, provider)
    [record] = budget.ledger
    assert record.cost <= record.bound


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

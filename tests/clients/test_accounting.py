"""What is billed unlike a plain chat: sound, plain text, background work, tiers, pictures."""

from typing import Any

import openai
import pytest

from tests.clients.helpers import HELLO, check_books, check_covered, outcomes, scripted_client
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


class TestBackgroundStreams:
    """A background response that is retrieved as a stream: its last event tells what it cost."""

    @pytest.fixture
    def queued(self, guarded: openai.OpenAI, budget: Budget) -> str:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        assert budget.reserved > 0
        return queued.id

    def test_settled_by_the_last_event(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        for event in guarded.responses.retrieve(queued, stream=True):
            assert (budget.reserved == 0) == (event.type == "response.completed")
            if budget.reserved == 0:
                break
        check_books(budget, provider)
        guarded.responses.retrieve(queued)
        list(guarded.responses.retrieve(queued, stream=True))
        check_books(budget, provider)

    def test_who_looks_away_ends_nothing_and_may_go_on(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        stream = guarded.responses.retrieve(queued, stream=True)
        seen = [next(iter(stream)).sequence_number for _ in range(4)]
        stream.close()
        del stream
        assert len(budget.ledger) == 0
        assert budget.reserved > 0
        copy = guarded.with_options(timeout=5)
        list(copy.responses.retrieve(queued, stream=True, starting_after=seen[-1]))
        check_books(budget, provider)

    def test_two_that_are_read_at_the_same_time(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        streams = [guarded.responses.retrieve(queued, stream=True) for _ in range(2)]
        for pair in zip(*streams, strict=True):
            assert pair[0] == pair[1]
        check_books(budget, provider)

    def test_the_helper(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        with guarded.responses.stream(response_id=queued) as stream:
            stream.until_done()
        check_books(budget, provider)

    def test_raw(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        raw = guarded.responses.with_raw_response.retrieve(queued, stream=True)
        assert budget.reserved > 0
        assert [event.type for event in raw.parse()][-1] == "response.completed"
        check_books(budget, provider)

    @pytest.mark.parametrize("parsed", [False, True])
    @pytest.mark.parametrize("stream", [False, True])
    def test_streaming_response(
        self,
        provider: SimulatedProvider,
        guarded: openai.OpenAI,
        budget: Budget,
        queued: str,
        stream: bool,
        parsed: bool,
    ) -> None:
        asked: Any = {"stream": True} if stream else {}
        streaming = guarded.responses.with_streaming_response
        with streaming.retrieve(queued, **asked) as reply:
            assert budget.reserved > 0
            if parsed:
                found: Any = reply.parse()
                assert found.id == queued if not stream else len(list(found)) > 3
            else:
                assert queued.encode() in b"".join(reply.iter_bytes())
        check_books(budget, provider)

    def test_its_failure_is_told_by_an_event_too(
        self, budget: Budget, queued: str, guarded: openai.OpenAI
    ) -> None:
        event = {"response": {"id": queued, "status": "failed", "usage": None}}
        answers = scripted_client([{"type": "response.failed", **event}])
        copy = guarded.with_options(http_client=answers._client)
        list(copy.responses.retrieve(queued, stream=True))
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    async def test_async(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        raw = await aguarded.responses.with_raw_response.retrieve(queued.id, stream=True)
        async for _ in raw.parse():
            break
        assert budget.reserved > 0
        async for _ in await aguarded.responses.retrieve(queued.id, stream=True):
            pass
        check_books(budget, provider)
        await aguarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    async def test_async_streaming_response(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        streaming = aguarded.responses.with_streaming_response
        async with streaming.retrieve(queued.id, stream=True) as reply:
            async for _ in reply.iter_bytes():
                pass
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

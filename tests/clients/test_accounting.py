"""What is billed unlike a plain chat: sound, plain text, background work, tiers, pictures."""

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
from tokenfence_integrations import Budget, BudgetExceeded, Price, async_guard, guard
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


class TestPictures:
    """Those of gpt-image are billed by tokens: an answer that does not tell them is not free."""

    @pytest.mark.parametrize("model", [{}, {"model": "gpt-image-1"}])
    def test_without_usage(
        self,
        provider: SimulatedProvider,
        guarded: openai.OpenAI,
        budget: Budget,
        model: dict[str, Any],
    ) -> None:
        provider.behave(omit_usage=True)
        guarded.images.generate(prompt="A cat", **model)
        guarded.images.with_raw_response.generate(prompt="A cat", **model)
        assert provider.billed > 0
        assert outcomes(budget) == ["uncertain", "uncertain"]
        check_covered(budget, provider)

    # What OpenAI's own calculator says of gpt-image-2, and the tables of its guide of the others.
    @pytest.mark.parametrize(
        ("model", "size", "quality", "tokens"),
        [
            ("gpt-image-2", "1024x1024", "high", 7_024),
            ("gpt-image-2", "1536x1024", "high", 5_488),
            ("gpt-image-2-2026-04-21", "1792x1024", "high", 5_063),
            ("gpt-image-2", "3584x2048", "high", 12_329),
            ("gpt-image-2", "auto", "auto", 12_329),
            ("gpt-image-1", "1024x1536", "high", 6_240),
            ("gpt-image-1-mini", "1024x1024", "low", 272),
            ("gpt-image-1.5", "auto", "auto", 6_240),
        ],
    )
    def test_is_within_its_bound(
        self, budget: Budget, model: str, size: Any, quality: Any, tokens: int
    ) -> None:
        usage = {
            "input_tokens": 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
            "output_tokens": 2 * tokens,
            "total_tokens": 5 + 2 * tokens,
        }
        answer = {"created": 1, "data": [{"b64_json": ""}] * 2, "usage": usage}
        with scripted_client(answer) as client:
            guard(client, budget=budget).images.generate(
                model=model, prompt="A cat", size=size, quality=quality, n=2
            )
        [record] = budget.ledger
        assert 0 < record.cost <= record.bound

    @pytest.mark.parametrize("size", [70, 2_000_000])
    def test_pictures_to_edit_count_by_their_pixels(self, budget: Budget, size: int) -> None:
        """An icon has fewer bytes than tokens, and a photograph many more."""
        tokens = 65 + 4 * 129 + 6_240  # of gpt-image-1, at a high fidelity: the most there are
        usage = {
            "input_tokens": 3 * tokens + 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 3 * tokens},
            "output_tokens": 272,
            "total_tokens": 3 * tokens + 277,
        }
        with scripted_client({"created": 1, "data": [{"b64_json": ""}], "usage": usage}) as client:
            guard(client, budget=budget).images.edit(
                model="gpt-image-1",
                prompt="A cat",
                image=[("a.png", bytes(size)), ("b.png", bytes(size))],
                mask=("mask.png", bytes(size)),
                input_fidelity="high",
                size="1024x1024",
                quality="low",
            )
        [record] = budget.ledger
        # At $5, $10 and $40 a million: text, pictures to edit, and drawn ones.
        assert record.cost == 5 * 5_000 + 3 * tokens * 10_000 + 272 * 40_000
        assert record.cost <= record.bound <= 2 * record.cost

    def test_text_that_is_made_with_them_has_its_own_price(self, budget: Budget) -> None:
        usage = {
            "input_tokens": 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
            "output_tokens": 1_156,
            "output_tokens_details": {"text_tokens": 100, "image_tokens": 1_056},
            "total_tokens": 1_161,
        }
        with scripted_client({"created": 1, "data": [{"b64_json": ""}], "usage": usage}) as client:
            guard(client, budget=budget).images.generate(model="gpt-image-1.5", prompt="A cat")
        # At $5, $10 and $32 a million.
        assert budget.snapshot().spent.usd == 5 * 5_000 + 100 * 10_000 + 1_056 * 32_000

    def test_with_a_price_each(self, budget: Budget) -> None:
        prices = {"dall-e-3": Price(per_image="$0.04")}
        with scripted_client({"created": 1, "data": [{"url": "a"}, {"url": "b"}]}) as client:
            guard(client, budget=budget, prices=prices).images.generate(
                model="dall-e-3", prompt="A cat", n=2
            )
        assert budget.spent == pytest.approx(0.08)
        assert outcomes(budget) == ["settled"]


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


def test_pictures_without_usage_are_not_free_by_any_name(budget: Budget) -> None:
    prices = {"my-deployment": Price(input="$5/M", output="$40/M")}
    with scripted_client({"created": 1, "data": [{"url": "a"}]}) as client:
        guard(client, budget=budget, prices=prices).images.generate(
            model="my-deployment", prompt="A cat"
        )
    assert outcomes(budget) == ["uncertain"]


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

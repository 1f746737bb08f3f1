"""on_limit="stop": a refused call answers in the endpoint's own types, however it is made."""

from datetime import UTC, datetime
from typing import Any

import openai
import pydantic
import pytest

from tests.clients.helpers import CALL
from tests.engine.helpers import FakeClock
from tokenfence_integrations import Budget, BudgetExceeded, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

TEXT = "[TokenFence] Budget of $0.00 exceeded (spent $0.00). Request blocked."


def test_the_reply_says_when_there_will_be_room(bare: openai.OpenAI) -> None:
    clock = FakeClock(datetime(2026, 11, 24, 10, tzinfo=UTC).timestamp())
    client = guard(bare, budget=Budget("1 call/day", clock=clock.clock))
    client.chat.completions.create(**CALL)
    reply = client.chat.completions.create(**CALL)
    assert reply.choices[0].message.content == (
        "[TokenFence] Budget of 1 call exceeded (spent 1). Request blocked. "
        "The next window opens in 14 h 0 min, at 2026-11-25 00:00:00+00:00."
    )
    clock.advance(86_400)
    assert client.chat.completions.create(**CALL).model != "tokenfence"


def test_the_reply_says_what_is_gone_but_not_spent(
    provider: SimulatedProvider, bare: openai.OpenAI
) -> None:
    client = guard(bare, budget=Budget(calls=2))
    provider.behave(status=500)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**CALL)
    provider.behave(status=None)
    with client.chat.completions.create(**CALL, stream=True) as stream:
        next(stream)
        reply = client.chat.completions.create(**CALL)
    assert reply.choices[0].message.content == (
        "[TokenFence] Budget of 2 calls exceeded (spent 0, uncertain 1, in flight 1). "
        "Request blocked."
    )


def test_a_guard_takes_a_limit_in_words(bare: openai.OpenAI) -> None:
    assert guard(bare, budget="$5/day").tokenfence.window is not None


class Weather(pydantic.BaseModel):
    city: str


@pytest.fixture
def stopped(bare: openai.OpenAI) -> openai.OpenAI:
    """A client with nothing to spend."""
    return guard(bare, budget="$0", on_limit="stop")


@pytest.fixture
def nothing_is_sent(provider: SimulatedProvider) -> Any:
    yield
    assert provider.requests == 0


@pytest.mark.usefixtures("nothing_is_sent")
class TestStop:
    """A synthetic reply of the endpoint's own type."""

    def test_chat(self, stopped: openai.OpenAI) -> None:
        reply = stopped.chat.completions.create(**CALL)
        assert type(reply) is openai.types.chat.ChatCompletion
        assert reply.choices[0].message.content == TEXT
        assert reply.choices[0].finish_reason == "stop"
        assert reply.model == "tokenfence"
        assert reply.usage is not None
        assert reply.usage.total_tokens == 0
        assert stopped.tokenfence.calls == 0

    async def test_async_chat(self, bare_async: openai.AsyncOpenAI) -> None:
        stopped = async_guard(bare_async, budget="$0")
        reply = await stopped.chat.completions.create(**CALL)
        assert reply.choices[0].message.content == TEXT
        stream = await stopped.chat.completions.create(**CALL, stream=True)
        assert type(stream) is openai.AsyncStream
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(text) == TEXT
        async with stopped.responses.stream(model="gpt-4o", input="Hello") as events:
            assert (await events.get_final_response()).output_text == TEXT

    @pytest.mark.parametrize("asked", [False, True])
    def test_chat_stream(self, stopped: openai.OpenAI, asked: bool) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if asked else {}
        stream = stopped.chat.completions.create(**CALL, stream=True, **options)
        assert type(stream) is openai.Stream
        chunks = list(stream)
        spoken = [chunk for chunk in chunks if chunk.choices]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == TEXT
        assert spoken[0].choices[0].delta.role == "assistant"
        assert spoken[-1].choices[0].finish_reason == "stop"
        assert {chunk.model for chunk in chunks} == {"tokenfence"}
        assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [0] * asked

    def test_chat_stream_helper(self, stopped: openai.OpenAI) -> None:
        with stopped.chat.completions.stream(**CALL) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            assert "".join(deltas) == TEXT
            assert stream.get_final_completion().choices[0].message.content == TEXT

    def test_chat_parse_is_a_refusal(self, stopped: openai.OpenAI) -> None:
        reply = stopped.chat.completions.parse(**CALL, response_format=Weather)
        assert reply.choices[0].message.parsed is None
        assert reply.choices[0].message.refusal == TEXT

    def test_chat_stream_of_an_object_is_a_refusal(self, stopped: openai.OpenAI) -> None:
        with stopped.chat.completions.stream(**CALL, response_format=Weather) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.parsed is None
        assert message.refusal == TEXT

    def test_json_object_is_a_refusal(self, stopped: openai.OpenAI) -> None:
        reply = stopped.chat.completions.create(**CALL, response_format={"type": "json_object"})
        assert reply.choices[0].message.refusal == TEXT

    def test_responses(self, stopped: openai.OpenAI) -> None:
        reply = stopped.responses.create(model="gpt-4o", input="Hello")
        assert type(reply) is openai.types.responses.Response
        assert reply.output_text == TEXT
        assert reply.status == "completed"
        assert reply.model == "tokenfence"
        assert reply.usage is not None
        assert reply.usage.total_tokens == 0

    def test_responses_parse(self, stopped: openai.OpenAI) -> None:
        reply = stopped.responses.parse(model="gpt-4o", input="Hello", text_format=Weather)
        assert reply.output_parsed is None
        [message] = reply.output
        assert message.type == "message"
        assert message.content[0].type == "refusal"
        assert message.content[0].refusal == TEXT

    def test_responses_stream(self, stopped: openai.OpenAI) -> None:
        events = list(stopped.responses.create(model="gpt-4o", input="Hello", stream=True))
        assert [event.sequence_number for event in events] == [*range(len(events))]
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == TEXT
        assert events[-1].type == "response.completed"

    @pytest.mark.parametrize("format", [None, Weather])
    def test_responses_stream_helper(self, stopped: openai.OpenAI, format: Any) -> None:
        given: Any = {} if format is None else {"text_format": format}
        with stopped.responses.stream(model="gpt-4o", input="Hello", **given) as stream:
            final = stream.get_final_response()
        assert final.output_parsed is None
        assert final.output_text == (TEXT if format is None else "")

    def test_completions(self, stopped: openai.OpenAI) -> None:
        call: Any = {"model": "gpt-3.5-turbo-instruct", "prompt": "Once"}
        reply = stopped.completions.create(**call)
        assert type(reply) is openai.types.Completion
        assert reply.choices[0].text == TEXT
        assert [part.choices[0].text for part in stopped.completions.create(**call, stream=True)]

    def test_raw(self, stopped: openai.OpenAI) -> None:
        raw = stopped.chat.completions.with_raw_response.create(**CALL)
        assert raw.parse().choices[0].message.content == TEXT
        assert raw.status_code == 200
        with stopped.chat.completions.with_streaming_response.create(**CALL) as response:
            assert response.parse().choices[0].message.content == TEXT
        with stopped.chat.completions.with_streaming_response.create(
            **CALL, stream=True
        ) as response:
            assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"

    def test_without_a_reply_to_make_up_it_raises(self, stopped: openai.OpenAI) -> None:
        less = r"top_up\(\), or send less\.$"  # and no fallback, which could not answer
        with pytest.raises(BudgetExceeded, match=less):
            stopped.embeddings.create(model="text-embedding-3-small", input="Hello")
        with pytest.raises(BudgetExceeded, match=less):
            stopped.images.generate(model="gpt-image-1", prompt="A cat")
        with pytest.raises(BudgetExceeded, match=less):
            stopped.audio.speech.create(model="tts-1", voice="alloy", input="Hello")

    def test_other_limits_say_what_is_used_up(self, bare: openai.OpenAI) -> None:
        reply = guard(bare, budget=Budget(calls=0)).chat.completions.create(**CALL)
        assert "Budget of 0 calls exceeded (spent 0)" in (reply.choices[0].message.content or "")

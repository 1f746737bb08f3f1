"""The Responses API, through the SDK."""

import openai
import pydantic
import pytest

from tests.testing.conftest import count
from tokenfence_integrations.testing import SimulatedProvider

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["unit"],
    },
}


def test_usage_is_what_came_back(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    reply = client.responses.create(model="gpt-4o", input="Hello there", instructions="Be brief")
    assert reply.status == "completed"
    assert reply.usage.output_tokens == count(reply.output_text) == 16
    texts = ("user", "Hello there", "developer", "Be brief")
    assert reply.usage.input_tokens == sum(map(count, texts)) + 2 * 3 + 3
    assert reply.usage.total_tokens == reply.usage.input_tokens + 16
    assert provider.bill[0].input_tokens == reply.usage.input_tokens


async def test_async(provider: SimulatedProvider, async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.responses.create(model="gpt-4o", input="Hello there")
    async with async_client.responses.stream(model="gpt-4o", input="Hello there") as stream:
        streamed = await stream.get_final_response()
    assert streamed.output_text == reply.output_text
    assert streamed.usage == reply.usage


def test_the_cap_makes_it_incomplete(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.behave(output_tokens=10, reasoning_tokens=5)
    reply = client.responses.create(model="gpt-5", input="Hello", max_output_tokens=8)
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage.output_tokens == 8
    assert reply.usage.output_tokens_details.reasoning_tokens == 5
    assert count(reply.output_text, "gpt-5") == 3
    with client.responses.create(
        model="gpt-5", input="Hello", max_output_tokens=8, stream=True
    ) as stream:
        *_, last = stream
    assert last.type == "response.incomplete"
    assert last.response.usage == reply.usage


def test_events_of_a_stream(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    with client.responses.create(model="gpt-4o", input="Hello", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[0].response.usage is None
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == text
    assert events[-1].response.usage.output_tokens == count(text) == 16


def test_a_tool_call_plain_and_streamed(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.behave(tool_call=True)
    reply = client.responses.create(model="gpt-4o", input="Hello", tools=[WEATHER])
    [call] = reply.output
    assert (call.type, call.name, call.arguments) == (
        "function_call",
        "get_weather",
        '{"unit": "celsius"}',
    )
    assert reply.usage.output_tokens == count(call.name) + count(call.arguments)
    with client.responses.stream(model="gpt-4o", input="Hello", tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert final.output[0].arguments == call.arguments
    assert final.usage == reply.usage
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "20"}
    items = [{"role": "user", "content": "Hello"}, call.to_dict(), result]
    answer = client.responses.create(model="gpt-4o", input=items, tools=[WEATHER])
    assert count(answer.output_text) == 16


def test_structured_output(client: openai.OpenAI) -> None:
    class Point(pydantic.BaseModel):
        x: float
        y: float

    reply = client.responses.parse(model="gpt-4o", input="Hello", text_format=Point)
    assert reply.output_parsed == Point(x=0, y=0)


def test_a_previous_response_counts_as_input(client: openai.OpenAI) -> None:
    first = client.responses.create(model="gpt-4o", input="Hello")
    second = client.responses.create(model="gpt-4o", input="Hello", previous_response_id=first.id)
    assert second.usage.input_tokens == first.usage.total_tokens + first.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="'resp_none' not found"):
        client.responses.create(model="gpt-4o", input="x", previous_response_id="resp_none")


def test_background_and_retrieval(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    queued = client.responses.create(model="gpt-4o", input="Hello", background=True)
    assert (queued.status, queued.usage, queued.output) == ("queued", None, [])
    done = client.responses.retrieve(queued.id)
    assert done.status == "completed"
    assert done.usage.output_tokens == provider.bill[0].output_tokens == 16
    unstored = client.responses.create(model="gpt-4o", input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_a_background_response_is_streamed_when_it_is_retrieved_and_billed_once(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    queued = client.responses.create(model="gpt-4o", input="Hello", background=True)
    events = list(client.responses.retrieve(queued.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert events[-1].response.id == queued.id
    rest = client.responses.retrieve(queued.id, stream=True, starting_after=3)
    assert [event.sequence_number for event in rest] == list(range(4, len(events)))
    assert len(provider.bill) == 1
    plain = client.responses.create(model="gpt-4o", input="Hello")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(plain.id, stream=True)


def test_omitted_usage(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.behave(omit_usage=True)
    assert client.responses.create(model="gpt-4o", input="Hello").usage is None
    assert provider.bill[0].output_tokens == 16


def test_a_conversation_is_compacted_at_its_price(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    first = client.responses.create(model="gpt-4o", input="Hello there")
    provider.clear()
    compacted = client.responses.compact(model="gpt-4o", input="Hello there")
    [item] = compacted.output
    assert (compacted.object, item.type) == ("response.compaction", "compaction")
    assert compacted.usage.input_tokens == first.usage.input_tokens
    assert compacted.usage.output_tokens == 16
    # $2.50 and $10 per million tokens.
    assert provider.billed == compacted.usage.input_tokens * 2_500 + 16 * 10_000


def test_counting_an_input_is_free(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="gpt-4o", input="Hello there")
    assert provider.billed == 0
    answered = client.responses.create(model="gpt-4o", input="Hello there")
    assert counted.input_tokens == answered.usage.input_tokens

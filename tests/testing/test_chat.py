"""Chat completions and completions, through the SDK."""

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.testing.conftest import count
from tokenfence_integrations.testing import Behavior, SimulatedProvider

HELLO = [{"role": "user", "content": "Hello there, how are you?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "minLength": 3}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5", "gpt-3.5-turbo"])
@pytest.mark.parametrize("length", [0, 1, 2, 300])
def test_usage_is_what_came_back(
    provider: SimulatedProvider, client: openai.OpenAI, model: str, length: int
) -> None:
    provider.behave(output_tokens=length)
    reply = client.chat.completions.create(model=model, messages=HELLO)
    assert reply.usage.completion_tokens == count(reply.choices[0].message.content, model) == length
    expected_input = 3 + count("user", model) + count(HELLO[0]["content"], model) + 3
    assert reply.usage.prompt_tokens == expected_input
    assert reply.usage.total_tokens == expected_input + length
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == model


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
def test_caps_cut_the_answer(provider: SimulatedProvider, client: openai.OpenAI, cap: str) -> None:
    provider.behave(output_tokens=50)
    reply = client.chat.completions.create(model="gpt-4o", messages=HELLO, **{cap: 7})
    assert reply.usage.completion_tokens == count(reply.choices[0].message.content) == 7
    assert reply.choices[0].finish_reason == "length"
    whole = client.chat.completions.create(model="gpt-4o", messages=HELLO, **{cap: 50})
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (50, "stop")


def test_reasoning_comes_out_of_the_cap_first(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(output_tokens=10, reasoning_tokens=20)
    free = client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert free.usage.completion_tokens == 30
    assert free.usage.completion_tokens_details.reasoning_tokens == 20
    capped = client.chat.completions.create(model="gpt-5", messages=HELLO, max_completion_tokens=15)
    assert capped.usage.completion_tokens_details.reasoning_tokens == 15
    assert capped.usage.completion_tokens == 15
    assert capped.choices[0].message.content == ""
    assert capped.choices[0].finish_reason == "length"


def test_a_given_text_comes_back_whole_or_cut(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    text = "Grüße aus Köln — 你好, 世界! 🙂 And some plain words."
    provider.behave(text=text)
    reply = client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert reply.choices[0].message.content == text
    assert reply.usage.completion_tokens == count(text)
    cut = client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=3)
    assert text.startswith(cut.choices[0].message.content)
    assert cut.usage.completion_tokens == 3
    with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
        assert text_of(list(stream)) == text


def test_n_choices_are_all_counted(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="gpt-4o", messages=HELLO, n=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3, 4]
    contents = [choice.message.content for choice in reply.choices]
    assert reply.usage.completion_tokens == sum(map(count, contents)) == 5 * 16
    assert provider.bill[0].output_tokens == 5 * 16


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_streams_end_with_usage_when_asked(
    provider: SimulatedProvider, client: openai.OpenAI, choices: int, chunk_tokens: int
) -> None:
    provider.behave(chunk_tokens=chunk_tokens)
    with client.chat.completions.create(
        model="gpt-4o",
        messages=HELLO,
        n=choices,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    *others, last = chunks
    assert last.choices == []
    texts = [text_of(chunks, index) for index in range(choices)]
    assert last.usage.completion_tokens == sum(map(count, texts)) == 16 * choices
    # The others have a usage, and it is null.
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in others)
    endings = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert endings == ["stop"] * choices
    assert provider.bill[0].output_tokens == 16 * choices
    assert provider.bill[0].stream


def test_streams_say_nothing_of_usage_unless_asked(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)
    assert provider.bill[0].output_tokens == count(text_of(chunks)) == 16


async def test_async_calls_and_streams(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    reply = await async_client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert reply.usage.completion_tokens == 16
    async with await async_client.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True
    ) as stream:
        assert count(text_of([chunk async for chunk in stream])) == 16
    assert [line.output_tokens for line in provider.bill] == [16, 16]


def test_continuous_usage_grows_with_the_text(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(output_tokens=3, continuous_usage=True)
    with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
        counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == [0, 1, 2, 3, 3]  # role, three words, finish reason


def test_azures_paths_and_its_empty_first_chunk(provider: SimulatedProvider) -> None:
    provider.behave(include_empty_first_chunk=True)
    with openai.AzureOpenAI(
        azure_endpoint=provider.url, api_key="unused", api_version="2024-10-21", max_retries=0
    ) as client:
        reply = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        with client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, stream=True
        ) as stream:
            chunks = list(stream)
    assert reply.model == "gpt-4o-mini"
    assert chunks[0].choices == []
    assert chunks[0].usage is None
    assert count(text_of(chunks)) == 16
    endpoints = {(line.endpoint, line.model) for line in provider.bill}
    assert endpoints == {("/v1/chat/completions", "gpt-4o-mini")}


def test_the_deployment_in_azures_path_is_the_model(provider: SimulatedProvider) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=provider.url,
        azure_deployment="gpt-4o",
        api_key="unused",
        api_version="2024-10-21",
    ) as client:
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert provider.bill[0].model == "gpt-4o"


def test_a_tool_call_plain_and_streamed(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.behave(tool_call=True)
    asked = {"model": "gpt-4o", "messages": HELLO, "tools": [WEATHER]}
    reply = client.chat.completions.create(**asked)
    [call] = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "xxx"}')
    made = count(call.function.name) + count(call.function.arguments)
    assert reply.usage.completion_tokens == made
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    assert [line.output_tokens for line in provider.bill] == [made, made]
    # The tool's result ends it, and the tool's definition was counted.
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*HELLO, reply.choices[0].message, result]
    answer = client.chat.completions.create(model="gpt-4o", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.tool_calls is None
    bare = client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert reply.usage.prompt_tokens > bare.usage.prompt_tokens + 20


def test_the_script_names_the_tool_and_its_arguments(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {}}}
    provider.behave(tool_call="get_weather", tool_arguments={"city": "Rome", "days": 2})
    reply = client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[other, WEATHER])
    [call] = reply.choices[0].message.tool_calls
    assert call.function.arguments == '{"city": "Rome", "days": 2}'
    with pytest.raises(openai.BadRequestError, match="no tool 'get_weather'"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[other])


class Person(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]
    friend: "Person | None"


def test_structured_output_is_valid_and_can_be_cut(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    reply = client.chat.completions.parse(model="gpt-4o", messages=HELLO, response_format=Person)
    assert reply.choices[0].message.parsed == Person(name="", age=0, tags=[], friend=None)
    assert reply.usage.completion_tokens == count(reply.choices[0].message.content)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="gpt-4o", messages=HELLO, response_format=Person, max_tokens=2
        )
    assert provider.bill[1].output_tokens == 2


def test_usage_can_be_omitted_or_multiplied_and_is_billed(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(omit_usage=True)
    reply = client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert reply.usage is None
    with client.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        assert all(chunk.usage is None and chunk.choices for chunk in stream)
    provider.behavior = Behavior(usage_factor=2.5)
    above = client.chat.completions.create(model="gpt-4o", messages=HELLO)
    first, _, third = provider.bill
    assert above.usage.completion_tokens == third.output_tokens == 40
    assert above.usage.prompt_tokens == third.input_tokens == -(-first.input_tokens * 5 // 2)


def test_a_script_sees_the_request_and_overrides_the_behavior(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(output_tokens=9)
    provider.script = lambda request: (
        Behavior(output_tokens=100 + request.index) if request.body.get("user") == "long" else None
    )
    lengths = [
        client.chat.completions.create(
            model="gpt-4o", messages=HELLO, user=user
        ).usage.completion_tokens
        for user in ("short", "long", "long")
    ]
    assert lengths == [9, 101, 102]
    assert [request.model for request in provider.received] == ["gpt-4o"] * 3
    assert provider.received[0].headers["authorization"] == "Bearer unused"


def test_completions_count_every_prompt_and_the_best_of(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(output_tokens=30)
    model = "gpt-3.5-turbo-instruct"
    default = client.completions.create(model=model, prompt="Once upon a time")
    assert default.usage.completion_tokens == count(default.choices[0].text, model) == 16
    assert default.usage.prompt_tokens == count("Once upon a time", model)
    many = client.completions.create(
        model=model, prompt=["One", "Two words"], n=2, best_of=3, max_tokens=5
    )
    assert len(many.choices) == 2 * 2
    assert many.usage.completion_tokens == 2 * 3 * 5
    assert many.usage.prompt_tokens == count("One", model) + count("Two words", model)
    numbers = client.completions.create(model=model, prompt=[[1, 2, 3], [4]], max_tokens=1)
    assert (numbers.usage.prompt_tokens, len(numbers.choices)) == (4, 2)


def test_completions_stream(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    with client.completions.create(
        model="gpt-3.5-turbo-instruct",
        prompt="Hello",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = stream
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert last.usage.completion_tokens == count(text, "gpt-3.5-turbo") == 4
    assert chunks[-1].choices[0].finish_reason == "length"

"""Every endpoint, in every way to call it: as the bare client answers, and booked as billed."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai
import pydantic
import pytest

from tests.clients.helpers import CALL, HELLO, outcomes
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

EMBEDDER = "text-embedding-3-small"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# One second of sound, in the provider's eyes.
SOUND = ("a.wav", b"\0" * 32_000)

PICTURE = ("a.png", b"\x89PNG")

CHANGING = frozenset({"id", "created", "created_at", "item_id", "completed_at", "_request_id"})


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


def plain(value: Any) -> Any:
    """A reply as plain data with its types, without what differs from call to call."""
    if isinstance(value, pydantic.BaseModel):
        return type(value).__name__, plain(value.__dict__), plain(value.__pydantic_extra__)
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items() if key not in CHANGING}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def read_helper(manager: Any) -> Any:
    with manager as stream:
        events = [plain(event) for event in stream]
        final = getattr(stream, "get_final_completion", None) or stream.get_final_response
        return events, plain(final())


async def aread_helper(manager: Any) -> Any:
    async with manager as stream:
        events = [plain(event) async for event in stream]
        final = getattr(stream, "get_final_completion", None) or stream.get_final_response
        return events, plain(await final())


# Ways to call that return one answer: a function of the client, and what to give it.
Ask = Callable[[Any], Any]
WHOLE: dict[str, Ask] = {
    "chat": lambda c: c.chat.completions.create(**CALL),
    "chat without maximum": lambda c: c.chat.completions.create(model="gpt-4o", messages=HELLO),
    "chat n=3": lambda c: c.chat.completions.create(**CALL, n=3),
    "chat, both maxima": lambda c: c.chat.completions.create(**CALL, max_completion_tokens=4),
    "chat of pydantic messages": lambda c: c.chat.completions.create(
        model="gpt-4o",
        messages=[openai.types.chat.ChatCompletionMessage(role="assistant", content="Hi"), *HELLO],
    ),
    "chat of an iterator": lambda c: c.chat.completions.create(
        model="gpt-4o", messages=iter(HELLO)
    ),
    "chat, extra_body": lambda c: c.chat.completions.create(
        **CALL, extra_body={"model": "gpt-4o-mini", "max_tokens": 8}
    ),
    "chat with tools": lambda c: c.chat.completions.create(**CALL, tools=[TOOL]),
    "chat of reasoning": lambda c: c.chat.completions.create(model="gpt-5", messages=HELLO),
    "chat parse": lambda c: c.chat.completions.parse(
        model="gpt-4o", messages=HELLO, response_format=Weather
    ),
    "responses": lambda c: c.responses.create(model="gpt-4o", input="Hello"),
    "responses of items": lambda c: c.responses.create(
        model="gpt-4o", input=HELLO, instructions="Be brief", max_output_tokens=16
    ),
    "responses parse": lambda c: c.responses.parse(
        model="gpt-4o", input="Hello", text_format=Weather
    ),
    "compaction": lambda c: c.responses.compact(model="gpt-4o", input=HELLO),
    "completions": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once"),
    "completions n, best_of": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Once", n=2, best_of=4, max_tokens=8
    ),
    "completions, prompts": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=["One", "Two", "Three"], max_tokens=8
    ),
    "completions of tokens": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=[[1, 2], [3, 4, 5]], max_tokens=8
    ),
    "embedding": lambda c: c.embeddings.create(model=EMBEDDER, input="Hello", dimensions=8),
    "embeddings": lambda c: c.embeddings.create(model=EMBEDDER, input=["a", "b"], dimensions=8),
    "embedding of tokens": lambda c: c.embeddings.create(
        model=EMBEDDER, input=[1, 2, 3], dimensions=8
    ),
    "embeddings of tokens": lambda c: c.embeddings.create(
        model=EMBEDDER, input=[[1, 2], [3]], dimensions=8
    ),
    "embeddings in base64": lambda c: c.embeddings.create(
        model=EMBEDDER, input="Hello", dimensions=8, encoding_format="base64"
    ),
    "image": lambda c: c.images.generate(model="gpt-image-1", prompt="A cat"),
    "images": lambda c: c.images.generate(
        model="gpt-image-1", prompt="A cat", n=2, size="1024x1024", quality="low"
    ),
    "image from another": lambda c: c.images.edit(
        model="gpt-image-1", prompt="A cat", image=PICTURE, quality="low"
    ),
    "images from others": lambda c: c.images.edit(
        model="gpt-image-1",
        prompt="A cat",
        image=[PICTURE, PICTURE],
        mask=PICTURE,
        input_fidelity="high",
        n=2,
    ),
    "transcription": lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND),
    "transcription by the second": lambda c: c.audio.transcriptions.create(
        model="whisper-1", file=SOUND
    ),
}

STREAMS: dict[str, Ask] = {
    "chat": lambda c: c.chat.completions.create(**CALL, stream=True),
    "chat without maximum": lambda c: c.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True
    ),
    "chat n=2": lambda c: c.chat.completions.create(**CALL, n=2, stream=True),
    "responses": lambda c: c.responses.create(model="gpt-4o", input="Hello", stream=True),
    "completions": lambda c: c.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Once", stream=True
    ),
}

HELPERS: dict[str, Ask] = {
    "chat": lambda c: c.chat.completions.stream(**CALL),
    "chat parse": lambda c: c.chat.completions.stream(
        model="gpt-4o", messages=HELLO, response_format=Weather
    ),
    "responses": lambda c: c.responses.stream(model="gpt-4o", input="Hello"),
    "responses parse": lambda c: c.responses.stream(
        model="gpt-4o", input="Hello", text_format=Weather
    ),
}


@pytest.fixture
def guarded(bare: openai.OpenAI, budget: Budget) -> openai.OpenAI:
    return guard(bare, budget=budget)


@pytest.fixture
def aguarded(bare_async: openai.AsyncOpenAI, budget: Budget) -> openai.AsyncOpenAI:
    return async_guard(bare_async, budget=budget)


@pytest.fixture
def billed_twice(provider: SimulatedProvider, budget: Budget) -> Iterator[None]:
    """The same call was made bare and then guarded: the books are one half of the bill."""
    yield
    provider.idle()
    bare_line, guarded_line = provider.bill
    assert bare_line == guarded_line
    assert budget.snapshot().spent.usd == guarded_line.cost > 0
    assert outcomes(budget) == ["settled"]
    assert budget.ledger.total == guarded_line.cost
    assert budget.ledger[0].cost <= budget.ledger[0].bound
    assert budget.reserved == budget.uncertain == 0


@pytest.mark.usefixtures("billed_twice")
class TestSync:
    @pytest.mark.parametrize("ask", WHOLE.values(), ids=WHOLE)
    def test_whole(self, bare: openai.OpenAI, guarded: openai.OpenAI, ask: Ask) -> None:
        expected = plain(ask(bare))
        assert plain(ask(guarded)) == expected

    @pytest.mark.parametrize("ask", STREAMS.values(), ids=STREAMS)
    def test_streams(self, bare: openai.OpenAI, guarded: openai.OpenAI, ask: Ask) -> None:
        expected = [without_null_usage(chunk) for chunk in ask(bare)]
        stream = ask(guarded)
        assert type(stream) is openai.Stream
        assert [without_null_usage(chunk) for chunk in stream] == expected

    @pytest.mark.parametrize("ask", HELPERS.values(), ids=HELPERS)
    def test_stream_helpers(self, bare: openai.OpenAI, guarded: openai.OpenAI, ask: Ask) -> None:
        expected = read_helper(ask(bare))
        assert read_helper(ask(guarded)) == expected

    def test_raw(self, bare: openai.OpenAI, guarded: openai.OpenAI) -> None:
        expected, raw = (
            client.chat.completions.with_raw_response.create(**CALL) for client in (bare, guarded)
        )
        assert type(raw) is type(expected)
        assert raw.headers.keys() == expected.headers.keys()
        assert plain(raw.parse()) == plain(expected.parse())
        assert plain(json.loads(raw.text)) == plain(json.loads(expected.text))

    def test_raw_never_parsed(self, bare: openai.OpenAI, guarded: openai.OpenAI) -> None:
        bare.responses.with_raw_response.create(model="gpt-4o", input="Hello")
        guarded.responses.with_raw_response.create(model="gpt-4o", input="Hello")

    def test_raw_parse_of_an_object(self, bare: openai.OpenAI, guarded: openai.OpenAI) -> None:
        call: Any = {"model": "gpt-4o", "messages": HELLO, "response_format": Weather}
        expected = bare.chat.completions.with_raw_response.parse(**call).parse()
        raw = guarded.chat.completions.with_raw_response.parse(**call)
        assert plain(raw.parse()) == plain(expected)
        assert type(raw.parse().choices[0].message.parsed) is Weather

    def test_raw_stream(self, bare: openai.OpenAI, guarded: openai.OpenAI) -> None:
        expected, chunks = (
            list(client.chat.completions.with_raw_response.create(**CALL, stream=True).parse())
            for client in (bare, guarded)
        )
        assert [*map(without_null_usage, chunks)] == [*map(without_null_usage, expected)]

    def test_raw_embeddings(self, bare: openai.OpenAI, guarded: openai.OpenAI) -> None:
        expected, found = (
            client.embeddings.with_raw_response.create(model=EMBEDDER, input="Hi").parse()
            for client in (bare, guarded)
        )
        assert plain(found) == plain(expected)
        assert isinstance(found.data[0].embedding[0], float)

    READS: tuple[Ask, ...] = (
        lambda response: plain(response.parse()),
        lambda response: plain(json.loads(response.read())),
        lambda response: plain(response.json()),
        lambda response: plain(json.loads(response.text())),
        lambda response: plain(json.loads("".join(response.iter_lines()))),
        lambda response: plain(json.loads(b"".join(response.iter_bytes()))),
        lambda response: plain(json.loads(b"".join(response.iter_bytes(7)))),
        lambda response: plain(json.loads("".join(response.iter_text()))),
    )

    @pytest.mark.parametrize("read", READS)
    def test_streaming_response(
        self, bare: openai.OpenAI, guarded: openai.OpenAI, read: Ask
    ) -> None:
        with bare.chat.completions.with_streaming_response.create(**CALL) as response:
            expected = read(response)
        with guarded.chat.completions.with_streaming_response.create(**CALL) as response:
            assert read(response) == expected

    def test_streaming_response_of_a_stream(
        self, bare: openai.OpenAI, guarded: openai.OpenAI
    ) -> None:
        call = {**CALL, "stream": True, "stream_options": {"include_usage": True}}
        found = []
        for client in (bare, guarded):
            with client.chat.completions.with_streaming_response.create(**call) as response:
                found.append([plain(chunk) for chunk in response.parse()])
        assert found[0] == found[1]
        assert found[1][-1][1]["usage"] is not None

    def test_streaming_response_of_events_as_lines(
        self, bare: openai.OpenAI, guarded: openai.OpenAI
    ) -> None:
        call: Any = {"model": "gpt-4o", "input": "Hello", "stream": True}
        counts = []
        for client in (bare, guarded):
            with client.responses.with_streaming_response.create(**call) as response:
                counts.append(len(list(response.iter_lines())))
        assert counts[0] == counts[1] > 16


@pytest.mark.usefixtures("billed_twice")
class TestAsync:
    @pytest.mark.parametrize("ask", WHOLE.values(), ids=WHOLE)
    async def test_whole(
        self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI, ask: Ask
    ) -> None:
        expected = plain(await ask(bare_async))
        assert plain(await ask(aguarded)) == expected

    @pytest.mark.parametrize("ask", STREAMS.values(), ids=STREAMS)
    async def test_streams(
        self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI, ask: Ask
    ) -> None:
        expected = [without_null_usage(chunk) async for chunk in await ask(bare_async)]
        stream = await ask(aguarded)
        assert type(stream) is openai.AsyncStream
        assert [without_null_usage(chunk) async for chunk in stream] == expected

    @pytest.mark.parametrize("ask", HELPERS.values(), ids=HELPERS)
    async def test_stream_helpers(
        self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI, ask: Ask
    ) -> None:
        expected = await aread_helper(ask(bare_async))
        assert await aread_helper(ask(aguarded)) == expected

    async def test_raw(self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI) -> None:
        expected, raw = [
            await client.chat.completions.with_raw_response.create(**CALL)
            for client in (bare_async, aguarded)
        ]
        assert plain(raw.parse()) == plain(expected.parse())

    async def test_raw_stream(
        self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI
    ) -> None:
        found = []
        for client in (bare_async, aguarded):
            raw = await client.chat.completions.with_raw_response.create(**CALL, stream=True)
            found.append([without_null_usage(chunk) async for chunk in raw.parse()])
        assert found[0] == found[1]

    @pytest.mark.parametrize("way", ["parse", "read", "json", "iter_lines", "iter_bytes"])
    async def test_streaming_response(
        self, bare_async: openai.AsyncOpenAI, aguarded: openai.AsyncOpenAI, way: str
    ) -> None:
        async def read(client: openai.AsyncOpenAI) -> Any:
            async with client.chat.completions.with_streaming_response.create(**CALL) as response:
                if way.startswith("iter"):
                    parts = [part async for part in getattr(response, way)()]
                    return plain(json.loads(parts[0][:0].join(parts)))
                whole = await getattr(response, way)()
                return plain(json.loads(whole) if way == "read" else whole)

        expected = await read(bare_async)
        assert await read(aguarded) == expected


def without_null_usage(chunk: Any) -> Any:
    """A chunk, whether or not the server was asked for usage: then each has a null in its place."""
    name, fields, extra = plain(chunk)
    return name, {key: value for key, value in fields.items() if key != "usage"}, extra

"""The other endpoints, through the SDK."""

import base64
import json

import genai_prices
import openai
import pytest

from tests.testing.conftest import count
from tokenfence_integrations.testing import SimulatedProvider

EMBEDDER = "text-embedding-3-small"


@pytest.mark.parametrize(
    ("value", "tokens", "vectors"),
    [
        ("Hello there", count("Hello there", EMBEDDER), 1),
        (["Hello", "Hello", "there"], 2 * count("Hello", EMBEDDER) + count("there", EMBEDDER), 3),
        ([1, 2, 3], 3, 1),
        ([[1, 2], [3, 4, 5]], 5, 2),
    ],
)
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(
    provider: SimulatedProvider,
    client: openai.OpenAI,
    value: object,
    tokens: int,
    vectors: int,
    encoding: str | None,
) -> None:
    extra = {} if encoding is None else {"encoding_format": encoding}
    reply = client.embeddings.create(model=EMBEDDER, input=value, dimensions=8, **extra)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == tokens
    assert provider.bill[0].input_tokens == tokens
    assert provider.bill[0].output_tokens == 0
    assert len(reply.data) == vectors
    embedding = reply.data[0].embedding
    if encoding == "base64":
        assert len(base64.b64decode(embedding)) == 8 * 4
    else:
        assert len(embedding) == 8
        assert sum(x * x for x in embedding) == 1


async def test_async_embeddings_are_equal_for_equal_texts(
    async_client: openai.AsyncOpenAI,
) -> None:
    reply = await async_client.embeddings.create(
        model="text-embedding-3-large", input=["one", "two", "one"]
    )
    first, second, third = (item.embedding for item in reply.data)
    assert first == third != second
    assert len(first) == 3072


def test_moderations_are_free(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    reply = client.moderations.create(input=["one", "two"])
    assert [result.flagged for result in reply.results] == [False, False]
    assert reply.results[0].categories.violence is False
    assert provider.billed == 0


def test_images(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    reply = client.images.generate(
        model="gpt-image-1", prompt="A red fox", n=2, size="1024x1536", quality="medium"
    )
    assert base64.b64decode(reply.data[1].b64_json).startswith(b"\x89PNG")
    assert reply.usage.output_tokens == 2 * 1584
    assert reply.usage.input_tokens == count("A red fox", "gpt-image-1")
    # $5 and $40 per million tokens.
    assert provider.billed == reply.usage.input_tokens * 5_000 + 2 * 1584 * 40_000


@pytest.mark.parametrize(("fidelity", "each"), [("low", 581), ("high", 581 + 4160)])
def test_edits_pay_for_the_pictures_that_they_start_from(
    provider: SimulatedProvider, client: openai.OpenAI, fidelity: str, each: int
) -> None:
    reply = client.images.edit(
        model="gpt-image-1",
        prompt="A red fox",
        image=[("a.png", b"a"), ("b.png", b"b")],
        mask=("mask.png", b"c"),
        input_fidelity=fidelity,
        size="1024x1024",
        quality="low",
        n=2,
    )
    text = count("A red fox", "gpt-image-1")
    told = reply.usage.input_tokens_details
    assert (told.text_tokens, told.image_tokens) == (text, 3 * each)
    assert len(reply.data) == 2
    # $5, $10 and $40 per million tokens: text, pictures to edit, and drawn ones.
    assert provider.billed == text * 5_000 + 3 * each * 10_000 + 2 * 272 * 40_000
    [line] = provider.bill
    assert (line.endpoint, line.input_image_tokens) == ("/v1/images/edits", 3 * each)


def test_transcriptions(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    second = bytes(32_000)
    reply = client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", second * 3)
    )
    assert reply.usage.type == "tokens"
    assert reply.usage.input_tokens == reply.usage.input_token_details.audio_tokens == 30
    assert reply.usage.output_tokens == count(reply.text) == 16
    assert provider.billed == 30 * 6_000 + 16 * 10_000  # $6 and $10 per million tokens
    provider.clear()
    whisper = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", second * 60))
    assert whisper.usage.type == "duration"
    assert provider.billed == 6_000_000  # $0.006 a minute


def test_speech(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there")
    assert spoken.content
    assert provider.billed == len("Hello there") * 15_000  # $15 per million characters
    client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello there")
    line = provider.bill[1]
    assert (line.input_tokens, line.output_audio_tokens) == (count("Hello there"), 16)


def test_a_batch_is_done_at_half_the_price(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    message = {"role": "user", "content": "Hello"}
    requests = [
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o", "messages": [message], "max_tokens": number},
        }
        for number in (3, 5)
    ]
    content = "\n".join(json.dumps(request) for request in requests).encode()
    uploaded = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert client.files.retrieve(uploaded.id).bytes == len(content)
    created = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert created.status == "validating"
    done = client.batches.retrieve(created.id)
    assert [batch.id for batch in client.batches.list()] == [created.id]
    assert done.status == "completed"
    assert done.request_counts.completed == 2
    lines = client.files.content(done.output_file_id).text.splitlines()
    bodies = [json.loads(line)["response"]["body"] for line in lines]
    assert [body["usage"]["completion_tokens"] for body in bodies] == [3, 5]
    assert all(line.batch for line in provider.bill)
    full = sum(
        genai_prices.calc_price(
            genai_prices.Usage(input_tokens=line.input_tokens, output_tokens=line.output_tokens),
            "gpt-4o",
            provider_id="openai",
        ).total_price
        for line in provider.bill
    )
    assert provider.billed == full * 10**9 / 2


def test_models(client: openai.OpenAI) -> None:
    assert "gpt-4o" in {model.id for model in client.models.list()}
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_what_the_client_did_wrong_is_said(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.post("/chat/completions", body={"model": "gpt-4o"}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="model"):
        client.post("/embeddings", body={"input": "x"}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="Invalid request"):
        client.post("/embeddings", body={"model": EMBEDDER, "input": 5}, cast_to=object)
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.post("/no/such/thing", body={}, cast_to=object)
    assert provider.requests == 4
    assert provider.bill == []


def test_a_body_of_several_megabytes(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    picture = "data:image/png;base64," + "A" * 3_000_000
    part = {"type": "image_url", "image_url": {"url": picture, "detail": "low"}}
    text = {"type": "text", "text": "What is this?"}
    reply = client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": [text, part]}]
    )
    expected = 3 + count("user") + count("What is this?") + 85 + 3
    assert reply.usage.prompt_tokens == expected

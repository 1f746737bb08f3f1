"""Counts against figures that OpenAI publishes, and the pure parts by themselves."""

import datetime
import enum

import pydantic
import pytest

from tests.testing.conftest import count
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing.counting import (
    Tokenizer,
    count_chat,
    generate,
    image_tokens,
    tokenizer_for,
)
from tokenfence_integrations.testing.schemas import smallest_instance

# The example of "How to count tokens with tiktoken", OpenAI Cookbook.
COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate "
        "jargon into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities "
        "for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client "
        "deliverable.",
    },
]


@pytest.mark.parametrize(("model", "published"), [("gpt-4o", 124), ("gpt-4", 129)])
def test_the_cookbooks_example(model: str, published: int) -> None:
    counted = count_chat({"model": model, "messages": COOKBOOK}, tokenizer_for(model)).input_tokens
    if encoding_for(model) is None:
        values = [value for message in COOKBOOK for value in message.values()]
        published = 6 * 3 + 4 * 1 + 3 + sum(-(-len(value) // 4) for value in values)
    assert counted == published


@pytest.mark.parametrize(
    ("model", "detail", "tokens"),
    [
        ("gpt-4o", "high", 765),
        ("gpt-4o", None, 765),
        ("gpt-4o-2024-08-06", "low", 85),
        ("gpt-4o-mini", "auto", 25501),
        ("gpt-4o-mini", "low", 2833),
        ("gpt-5", "high", 630),
        ("o3", "high", 675),
        ("gpt-4.1-mini", "high", 1659),
        ("anything", "high", 765),
    ],
)
def test_a_picture_of_1024_pixels(model: str, detail: str | None, tokens: int) -> None:
    assert image_tokens(model, detail) == tokens


def test_parts_of_a_message() -> None:
    parts = [
        {"type": "text", "text": "Look at this"},
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA" * 8_000, "format": "wav"}},
    ]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]}
    usage = count_chat(body, tokenizer_for("gpt-4o"))
    assert usage.input_audio_tokens == 8  # 24,000 bytes are three quarters of a second
    assert usage.input_tokens == 3 + count("user") + count("Look at this") + 85 + 8 + 3


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4"])
@pytest.mark.parametrize("length", [0, 1, 7, 5000])
@pytest.mark.parametrize("with_data", [True, False])
def test_filler_has_exactly_so_many_tokens(model: str, length: int, with_data: bool) -> None:
    tokenizer = tokenizer_for(model) if with_data else Tokenizer(None)
    generation = generate(tokenizer, None, length, 0, None)
    assert generation.tokens == tokenizer.count(generation.text) == length
    assert "".join(piece for piece, _ in generation.chunks(3)) == generation.text


def test_without_data_four_bytes_are_a_token() -> None:
    tokenizer = Tokenizer(None)
    assert [tokenizer.count(text) for text in ("", "a", "abcd", "abcde", "你好")] == [0, 1, 1, 2, 2]
    assert generate(tokenizer, "你好, 世界", 0, 0, None).text == "你好, 世界"


class Color(enum.Enum):
    RED = "red"


class Leaf(pydantic.BaseModel):
    at: datetime.datetime
    color: Color
    size: float = pydantic.Field(gt=1)
    names: list[str] = pydantic.Field(min_length=2)
    parent: "Tree | None"


class Tree(pydantic.BaseModel):
    leaves: list[Leaf] = pydantic.Field(min_length=1)
    flag: bool
    either: int | str


def test_the_smallest_instance_is_valid() -> None:
    Tree.model_validate(smallest_instance(Tree.model_json_schema()))
    assert smallest_instance({"type": ["string", "null"]}) is None
    assert smallest_instance({"allOf": [{"type": "string"}, {"minLength": 2}]}) == "xx"

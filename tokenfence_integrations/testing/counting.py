"""How many tokens the simulated provider sees in a request, and how it writes k tokens."""

import base64
import binascii
import codecs
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import tiktoken

from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing.billing import Usage

_BYTES_PER_TOKEN = 4
"""The usual rule of thumb, for when there is no vocabulary data."""

_AUDIO_BYTES_PER_SECOND = 32_000  # 16 bit, 16 kHz, mono, whatever the file says it is
_AUDIO_TOKENS_PER_SECOND = 10

# Tokens of a picture: (base, per tile of 512 pixels). "Images and vision", OpenAI's guide;
# the longest prefix of the model's name counts.
_TILE_MODELS = {
    "": (85, 170),
    "gpt-4o-mini": (2833, 5667),
    "gpt-5": (70, 140),
    "o1": (75, 150),
    "o3": (75, 150),
}
# The same guide's models that see patches of 32 pixels: tokens per patch.
_PATCH_MODELS = {
    "gpt-4.1-mini": 1.62,
    "gpt-4.1-nano": 2.46,
    "gpt-5-mini": 1.62,
    "gpt-5-nano": 2.46,
    "o4-mini": 1.72,
}
# Tokens of a picture to edit, for models that draw, and what a high input fidelity adds to them.
_EDITED = (65, 129)
_HIGH_FIDELITY = 4160
# Every picture is taken for one of 1024x1024, which becomes 768x768: 4 tiles. Or 32x32 patches.
_TILES = 4
_PATCHES = 1024


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Splits text into tokens as a model does, or into pieces of 4 bytes without its vocabulary."""

    encoding: tiktoken.Encoding | None

    def tokens(self, text: str) -> list[bytes]:
        """The bytes of each token of `text`."""
        if self.encoding is None:
            data = text.encode()
            return [data[i : i + _BYTES_PER_TOKEN] for i in range(0, len(data), _BYTES_PER_TOKEN)]
        ids = self.encoding.encode(text, disallowed_special=())
        return self.encoding.decode_tokens_bytes(ids)

    def count(self, text: str) -> int:
        if self.encoding is None:
            return ceil(len(text.encode()) / _BYTES_PER_TOKEN)
        return len(self.encoding.encode(text, disallowed_special=()))


def tokenizer_for(model: str) -> Tokenizer:
    return Tokenizer(_encoding(model))


@functools.lru_cache(maxsize=1024)
def _encoding(model: str) -> tiktoken.Encoding | None:
    return encoding_for(model)


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model wrote, one string per token."""

    pieces: Sequence[str]
    text: str
    reasoning_tokens: int
    truncated: bool

    @property
    def tokens(self) -> int:
        """Billed output tokens."""
        return self.reasoning_tokens + len(self.pieces)

    def chunks(self, size: int) -> Iterable[tuple[str, int]]:
        """The text in chunks of `size` tokens, each with its number of tokens."""
        if size == 1:
            return ((piece, 1) for piece in self.pieces)
        groups = (self.pieces[i : i + size] for i in range(0, len(self.pieces), size))
        return (("".join(group), len(group)) for group in groups)


@functools.lru_cache(maxsize=1024)
def generate(
    tokenizer: Tokenizer, text: str | None, wanted: int, reasoning: int, cap: int | None
) -> Generation:
    """Write `text`, or `wanted` tokens of filler, after `reasoning`; together at most `cap`."""
    pieces = _filler(wanted) if text is None else _pieces(tokenizer, text)
    room = len(pieces) + reasoning if cap is None else cap
    hidden = min(reasoning, room)
    shown = pieces[: room - hidden]
    truncated = hidden < reasoning or len(shown) < len(pieces)
    return Generation(shown, "".join(shown), hidden, truncated)


def _filler(count: int) -> tuple[str, ...]:
    # "yes" and " yes" are a token each in every OpenAI vocabulary, and 4 bytes where there is none.
    return ("yes", *(" yes",) * (count - 1)) if count else ()


def _pieces(tokenizer: Tokenizer, text: str) -> tuple[str, ...]:
    # A character may be spread over several tokens: it shows with the last of them.
    decode = codecs.getincrementaldecoder("utf-8")().decode
    return tuple(decode(token) for token in tokenizer.tokens(text))


def count_chat(body: Mapping[str, Any], tokenizer: Tokenizer) -> Usage:
    """Input of a chat: 3 tokens a message, 1 a name and 3 for the reply, around all values.

    From "How to count tokens with tiktoken", OpenAI Cookbook; tools and schemas count as JSON.
    """
    extras = (body.get("tools"), body.get("functions"), body.get("response_format"))
    total = Usage(input_tokens=3 + _count_extras(extras, tokenizer))
    for message in body["messages"]:
        total += _count_message(message, body["model"], tokenizer)
    return total


def count_responses(body: Mapping[str, Any], tokenizer: Tokenizer) -> Usage:
    """Input of the Responses API, counted as the chat that it stands for."""
    extras = (body.get("tools"), body.get("text"))
    total = Usage(input_tokens=3 + _count_extras(extras, tokenizer))
    items = body.get("input") or []
    messages = [{"role": "user", "content": items}] if isinstance(items, str) else list(items)
    if body.get("instructions"):
        messages.append({"role": "developer", "content": body["instructions"]})
    for message in messages:
        total += _count_message(message, body["model"], tokenizer)
    return total


def count_texts(value: Any, tokenizer: Tokenizer) -> Usage:
    """Input of a prompt: a string, a list of strings, token numbers, or lists of token numbers."""
    return Usage(input_tokens=sum(count_prompt(prompt, tokenizer) for prompt in prompts(value)))


def prompts(value: Any) -> list[Any]:
    """The single prompts of a `prompt` or `input` that may be one or many."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]
    return list(value)


def count_prompt(prompt: Any, tokenizer: Tokenizer) -> int:
    if isinstance(prompt, str):
        return tokenizer.count(prompt)
    # Token numbers, or the parts of a moderation's input.
    return sum(1 if isinstance(part, int) else _count_json(part, tokenizer) for part in prompt)


def count_audio(audio: bytes) -> Usage:
    """Input of a recording, by its size."""
    tokens = _audio_tokens(len(audio))
    return Usage(input_tokens=tokens, input_audio_tokens=tokens)


def count_edit(body: Mapping[str, Any], tokenizer: Tokenizer) -> Usage:
    """Input of an edit: the prompt, and each picture and the mask, uploaded or by reference."""
    given = body["images"] if "images" in body else body["image"]
    pictures = len(given) if isinstance(given, list) else 1
    pictures += bool(body.get("mask"))
    base, per_tile = _EDITED
    each = base + _TILES * per_tile
    each += _HIGH_FIDELITY if body.get("input_fidelity") == "high" else 0
    drawn_from = Usage(input_tokens=pictures * each, input_image_tokens=pictures * each)
    return count_texts(body["prompt"], tokenizer) + drawn_from


def seconds_of_audio(audio: bytes) -> int:
    return ceil(len(audio) / _AUDIO_BYTES_PER_SECOND)


def image_tokens(model: str, detail: str | None) -> int:
    """Input tokens of one picture of 1024x1024 pixels."""
    if patched := _longest_prefix(_PATCH_MODELS, model):
        return ceil(_PATCHES * _PATCH_MODELS[patched])
    base, per_tile = _TILE_MODELS[_longest_prefix(_TILE_MODELS, model)]
    return base if detail == "low" else base + _TILES * per_tile


def _longest_prefix(names: Iterable[str], model: str) -> str:
    return max((name for name in names if model.startswith(name)), key=len, default="")


def _count_message(message: Mapping[str, Any], model: str, tokenizer: Tokenizer) -> Usage:
    total = Usage(input_tokens=3 + ("name" in message))
    for key, value in message.items():
        if key in ("content", "output") and isinstance(value, list):
            for part in value:
                total += _count_part(part, model, tokenizer)
        elif value is not None:
            total += Usage(input_tokens=_count_json(value, tokenizer))
    return total


def _count_part(part: Any, model: str, tokenizer: Tokenizer) -> Usage:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text"):
        return Usage(input_tokens=tokenizer.count(part["text"]))
    if kind == "image_url":  # Chat Completions
        return Usage(input_tokens=image_tokens(model, part["image_url"].get("detail")))
    if kind == "input_image":  # Responses
        return Usage(input_tokens=image_tokens(model, part.get("detail")))
    if kind == "input_audio":
        return count_audio(_decoded(part["input_audio"]["data"]))
    return Usage(input_tokens=_count_json(part, tokenizer))


def _count_extras(values: Iterable[Any], tokenizer: Tokenizer) -> int:
    return sum(_count_json(value, tokenizer) for value in values if value)


def _count_json(value: Any, tokenizer: Tokenizer) -> int:
    if isinstance(value, str):
        return tokenizer.count(value)
    return tokenizer.count(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _audio_tokens(size: int) -> int:
    return ceil(size * _AUDIO_TOKENS_PER_SECOND / _AUDIO_BYTES_PER_SECOND)


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return data.encode()

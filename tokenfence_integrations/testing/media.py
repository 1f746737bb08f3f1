"""Answers of the endpoints without a conversation: embeddings, moderations, images, audio."""

import base64
import struct
import zlib
from typing import Any

from tokenfence_integrations.testing.answers import Answer, Job, dump
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.counting import prompts, seconds_of_audio

_DIMENSIONS = {"text-embedding-3-large": 3072}
_DEFAULT_DIMENSIONS = 1536

# Output tokens of gpt-image-1 by quality, for square, portrait and landscape pictures:
# "Image generation: cost and latency", OpenAI's guide. "auto" may take the best of them.
_IMAGE_TOKENS = {
    "low": (272, 408, 400),
    "medium": (1056, 1584, 1568),
    "high": (4160, 6240, 6208),
}
# A PNG of one transparent pixel.
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"
    "DwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
_SILENCE = bytes(64)  # raw audio; players need more, tests of money do not

_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def embeddings_answer(job: Job) -> Answer:
    """One vector per input: of length 1, equal for equal inputs."""
    default = _DIMENSIONS.get(job.model, _DEFAULT_DIMENSIONS)
    size = job.body.get("dimensions") or default
    as_base64 = job.body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(prompt, size, as_base64)}
        for index, prompt in enumerate(prompts(job.body["input"]))
    ]
    document: dict[str, Any] = {"object": "list", "data": data, "model": job.model}
    usage = job.reported(job.input)
    if usage is not None:
        document["usage"] = {
            "prompt_tokens": usage.input_tokens,
            "total_tokens": usage.input_tokens,
        }
    return Answer(job.input, dump(document))


def _vector(prompt: Any, size: int, as_base64: bool) -> str | list[float]:
    values = [0.0] * size
    values[zlib.crc32(repr(prompt).encode()) % size] = 1.0
    if as_base64:
        return base64.b64encode(struct.pack(f"<{size}f", *values)).decode()
    return values


def moderations_answer(job: Job) -> Answer:
    """Nothing is ever flagged; moderation is free, so no tokens are billed."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    results = [result for _ in prompts(job.body["input"])]
    document = {"id": f"modr-{job.number}", "model": job.model, "results": results}
    return Answer(Usage(), dump(document))


def images_answer(job: Job) -> Answer:
    """`n` pictures of one pixel, drawn or edited, with the token usage of gpt-image-1."""
    body = job.body
    count = int(body.get("n") or 1)  # a text in a form
    size, quality = body.get("size") or "auto", body.get("quality") or "auto"
    prices = _IMAGE_TOKENS.get(quality, _IMAGE_TOKENS["high"])
    tokens = {"1024x1024": prices[0], "1024x1536": prices[1], "1536x1024": prices[2]}
    usage = job.usage(count * tokens.get(size, max(prices)))
    document: dict[str, Any] = {"created": job.created, "data": [{"b64_json": _PIXEL}] * count}
    reported = job.reported(usage)
    if reported is not None:
        document["usage"] = {
            "input_tokens": reported.input_tokens,
            "input_tokens_details": {
                "text_tokens": reported.input_tokens - reported.input_image_tokens,
                "image_tokens": reported.input_image_tokens,
            },
            "output_tokens": reported.output_tokens,
            "total_tokens": reported.input_tokens + reported.output_tokens,
        }
    return Answer(usage, dump(document))


def transcription_answer(job: Job) -> Answer:
    """A transcript; whisper-1 is billed by the second, the other models by tokens."""
    generation = job.write()
    if job.model == "whisper-1":
        usage = Usage(seconds=seconds_of_audio(job.body["file"]))
    else:
        usage = job.usage(generation.tokens)
    reported = job.reported(usage)
    document: dict[str, Any] = {"text": generation.text}
    if reported is not None:
        document["usage"] = _transcription_usage(reported)
    return Answer(usage, dump(document))


def _transcription_usage(usage: Usage) -> dict[str, Any]:
    if usage.seconds:
        return {"type": "duration", "seconds": usage.seconds}
    audio = usage.input_audio_tokens
    text = usage.input_tokens - audio
    return {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "input_token_details": {"audio_tokens": audio, "text_tokens": text},
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def speech_answer(job: Job) -> Answer:
    """Sound without any usage; tts-1 is billed by characters, the other models by tokens."""
    text = job.body["input"]
    if job.model.startswith("tts-1"):
        usage = Usage(characters=len(text))
    else:
        spoken = job.behavior.output_tokens
        usage = job.input + Usage(output_tokens=spoken, output_audio_tokens=spoken)
    return Answer(usage, _SILENCE, "audio/mpeg")

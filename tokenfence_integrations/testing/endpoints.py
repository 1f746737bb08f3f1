"""The endpoints of models: how the input of each is counted, and who answers it."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tokenfence_integrations.testing import counting
from tokenfence_integrations.testing.answers import Answer, Job, ProviderError
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.chat import chat_answer, completion_answer
from tokenfence_integrations.testing.counting import Tokenizer, tokenizer_for
from tokenfence_integrations.testing.media import (
    embeddings_answer,
    images_answer,
    moderations_answer,
    speech_answer,
    transcription_answer,
)
from tokenfence_integrations.testing.responses import (
    compaction_answer,
    input_tokens_answer,
    responses_answer,
)

_CACHED_BODY_BYTES = 1 << 18


class Endpoint(NamedTuple):
    answer: Callable[[Job], Answer]
    count_input: Callable[[Mapping[str, Any], Tokenizer], Usage]
    default_model: str | None = None


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(chat_answer, counting.count_chat),
    "/v1/completions": Endpoint(
        completion_answer, lambda body, t: counting.count_texts(body["prompt"], t)
    ),
    "/v1/responses": Endpoint(responses_answer, counting.count_responses),
    "/v1/responses/compact": Endpoint(compaction_answer, counting.count_responses),
    "/v1/responses/input_tokens": Endpoint(input_tokens_answer, counting.count_responses),
    "/v1/embeddings": Endpoint(
        embeddings_answer, lambda body, t: counting.count_texts(body["input"], t)
    ),
    "/v1/moderations": Endpoint(
        moderations_answer, lambda body, t: Usage(), "omni-moderation-latest"
    ),
    "/v1/images/generations": Endpoint(
        images_answer, lambda body, t: counting.count_texts(body["prompt"], t), "gpt-image-1"
    ),
    "/v1/images/edits": Endpoint(images_answer, counting.count_edit, "gpt-image-1"),
    "/v1/audio/transcriptions": Endpoint(
        transcription_answer, lambda body, t: counting.count_audio(body["file"])
    ),
    "/v1/audio/speech": Endpoint(
        speech_answer, lambda body, t: counting.count_texts(body["input"], t)
    ),
}


class Parsed(NamedTuple):
    """A request body with a model, and what its input comes to."""

    body: Mapping[str, Any]
    input: Usage
    tokenizer: Tokenizer


def parse(path: str, raw: bytes, deployment: str | None = None) -> Parsed:
    """Parse and count a JSON body; equal bodies are parsed and counted once.

    Args:
        path: A key of `ENDPOINTS`.
        raw: The body's bytes.
        deployment: The model that an Azure path names, in place of the body's.

    Raises:
        ProviderError: 400, if the body is not what the endpoint takes.
    """
    if len(raw) > _CACHED_BODY_BYTES:
        return _parse_json.__wrapped__(path, raw, deployment)
    return _parse_json(path, raw, deployment)


@functools.lru_cache(maxsize=256)
def _parse_json(path: str, raw: bytes, deployment: str | None) -> Parsed:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ProviderError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise ProviderError(400, f"The body must be a JSON object, got {type(body).__name__}.")
    if deployment:
        body["model"] = deployment
    return parse_fields(path, body)


def parse_fields(path: str, fields: Mapping[str, Any]) -> Parsed:
    """Count the input of a body that is parsed already; see `parse`."""
    endpoint = ENDPOINTS[path]
    model = fields.get("model") or endpoint.default_model
    if not isinstance(model, str):
        raise ProviderError(400, "You must provide a model parameter.")
    body = {**fields, "model": model}
    tokenizer = tokenizer_for(model)
    with malformed_is_400():
        return Parsed(body, endpoint.count_input(body, tokenizer), tokenizer)


@contextmanager
def malformed_is_400() -> Iterator[None]:
    """Inside of it, what a missing or mistyped field raises is the client's fault."""
    try:
        yield
    except KeyError as error:
        raise ProviderError(400, f"Missing required parameter: {error}.") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ProviderError(400, f"Invalid request: {error}.") from error

"""What every endpoint's answer is made of: the job, the whole answer, and its streamed events."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.counting import Generation, Tokenizer, generate
from tokenfence_integrations.testing.script import Behavior

# What OpenAI calls its errors, for the statuses that have a usual code.
_ERROR_KINDS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class ProviderError(Exception):
    """An error that the simulated provider answers with, in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        default_kind = "server_error" if status >= 500 else "invalid_request_error"
        kind, usual_code = _ERROR_KINDS.get(status, (default_kind, None))
        error = {"message": message, "type": kind, "param": None, "code": code or usual_code}
        self.body = dump({"error": error})


@dataclass(frozen=True, slots=True)
class Job:
    """One request, understood: what to answer, to what, and how."""

    endpoint: str
    number: int
    attempt: int
    created: int
    body: Mapping[str, Any]
    input: Usage
    tokenizer: Tokenizer
    behavior: Behavior

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def service_tier(self) -> str:
        """The tier served: what was scripted, else what was asked for."""
        asked = self.behavior.service_tier or self.body.get("service_tier") or "auto"
        return {"auto": "default", "fast": "priority"}.get(asked, asked)

    def write(self, text: str | None = None, cap: int | None = None) -> Generation:
        """Let the model write `text`, or else what the behavior says, up to `cap` tokens."""
        behavior = self.behavior
        if text is None:
            text = behavior.text
        return generate(
            self.tokenizer, text, behavior.output_tokens, behavior.reasoning_tokens, cap
        )

    def reported(self, usage: Usage) -> Usage | None:
        """What the answer says about its usage."""
        return None if self.behavior.omit_usage else usage.scaled(self.behavior.usage_factor)

    def usage(self, output_tokens: int, reasoning_tokens: int = 0) -> Usage:
        """The input and this output."""
        return self.input + Usage(output_tokens=output_tokens, reasoning_tokens=reasoning_tokens)


class Event(NamedTuple):
    """One server-sent event."""

    data: bytes
    tokens: int = 0
    """Output tokens that it carries."""
    closing: bool = False
    """All output was generated before it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that one job produces.

    Args:
        usage: The full usage, true and not scaled.
        body: The body of a plain answer.
        content_type: Its media type.
        events: A stream's events, in place of the body.
        stored: The document that can be retrieved later (Responses API).
        retold: Makes the events of the same, for who retrieves it as a stream.
    """

    usage: Usage
    body: bytes = b""
    content_type: str = "application/json"
    events: Iterator[Event] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)
    retold: Callable[[], Iterator[Event]] = lambda: iter(())


def dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def sse(document: object) -> bytes:
    """One server-sent event without a name."""
    return b"data: %b\n\n" % dump(document)

"""What every endpoint's answer is made of: the job, the whole answer, and its streamed events."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
    """

    usage: Usage
    body: bytes = b""
    content_type: str = "application/json"
    events: Iterator[Event] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)


class ToolCall(NamedTuple):
    name: str
    arguments: str


def requested_call(job: Job, last_type: str) -> ToolCall | None:
    """The tool call that the behavior asks for; none when a tool's result is what came last."""
    wanted, tools = job.behavior.tool_call, job.body.get("tools")
    if not wanted or not tools or last_type in ("tool", "function_call_output"):
        return None
    # Chat Completions nests the function, Responses does not.
    functions = {tool.get("name"): tool for tool in (t.get("function", t) for t in tools)}
    name = next(iter(functions)) if wanted is True else wanted
    if name not in functions:
        raise ProviderError(400, f"The request has no tool {name!r}, only {list(functions)}.")
    arguments = job.behavior.tool_arguments
    if arguments is None:
        arguments = smallest_instance(functions[name].get("parameters") or {})
    return ToolCall(str(name), json.dumps(arguments))


def requested_json(job: Job, response_format: Mapping[str, Any] | None) -> str | None:
    """The JSON text that a response format asks for, unless the behavior has a text."""
    if response_format is None or job.behavior.text is not None:
        return None
    if response_format.get("type") == "json_object":
        return "{}"
    if response_format.get("type") != "json_schema":
        return None
    # Chat Completions nests the schema, Responses does not.
    schema = response_format.get("json_schema", response_format)["schema"]
    return json.dumps(smallest_instance(schema))


_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.com",
    "time": "00:00:00Z",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def smallest_instance(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """A small value that a JSON schema of OpenAI's structured-output subset allows."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for key in schema["$ref"].removeprefix("#").split("/")[1:]:
            target = target[key]
        return smallest_instance(target, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return smallest_instance(_simplest(schema[key]), root)
    if "allOf" in schema:
        merged = {key: value for part in schema["allOf"] for key, value in part.items()}
        return smallest_instance(merged, root)
    return _smallest_of_type(schema, root)


def _simplest(choices: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    # Null if allowed: the other choices may lead back to the same schema without end.
    return next((choice for choice in choices if choice.get("type") == "null"), choices[0])


def _smallest_of_type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = "null" if "null" in kind else kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {
            name: smallest_instance(properties.get(name, {}), root)
            for name in schema.get("required", ())
        }
    if kind == "array":
        item = schema.get("items", {})
        return [smallest_instance(item, root) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), "x" * schema.get("minLength", 0))
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    return False if kind == "boolean" else None


def dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def sse(document: object) -> bytes:
    """One server-sent event without a name."""
    return b"data: %b\n\n" % dump(document)

"""Small values that a JSON schema allows: arguments of tools, structured answers."""

from collections.abc import Mapping, Sequence
from typing import Any

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

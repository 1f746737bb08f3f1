"""What the options of a model's call add to its input: tools, a response format, references."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenfence_integrations.clients.openai.content import (
    FOUND_BY_SERVER,
    PER_TOOL,
    Content,
    plain,
)
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import byte_bound

__all__ = ["SETTINGS", "input_bound", "largest", "lowered", "utf8_bytes", "with_body"]

TOOL_PROMPT = 1_024
"""What others than OpenAI may put before the first tool: Anthropic documents up to 804 tokens
(https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview, "Pricing")."""

SETTINGS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "model",
        "frequency_penalty",
        "logprobs",
        "metadata",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "stream_usage",
        "temperature",
        "timeout",
        "tool_choice",
        "top_logprobs",
        "top_p",
        "user",
    }
)
"""Options that the model never reads as text; every other one is counted by its bytes."""

REFERENCES = FOUND_BY_SERVER | {
    "cached_content",
    "container",
    "conversation",
    "mcp_servers",
    "previous_response_id",
    "prompt",
}
"""Options that stand for input which only the provider knows."""


RUN_HERE = ("function", "custom", "object")
"""Types of tools that the caller runs, and describes; the last one is that of a bare schema."""

DESCRIBED_THERE = ("bash_", "computer_", "memory_", "text_editor_")
"""How the types of Anthropic's tools begin that the caller runs, and Anthropic describes: in 735
tokens at most (its documentation of each). What tools of other types find, which the provider runs,
becomes input of the same call."""


def with_body(options: Mapping[str, Any], body: object = None) -> Mapping[str, Any]:
    """Options as they are sent: what is in an ``extra_body`` is over all others.

    Args:
        options: The call's keyword arguments.
        body: The ``extra_body`` of each call, which one of the call's own replaces.
    """
    body = options.get("extra_body") or body
    if not isinstance(body, Mapping):
        return options
    return {**{name: value for name, value in options.items() if name != "extra_body"}, **body}


def largest(options: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The largest output maximum in these options; 0 for none that holds; None if none is there.

    Args:
        options: As they are sent.
        names: The names of output maximums.
    """
    found = [options[name] for name in names if type(options.get(name)) is int]
    if not found:
        return None
    return max(found) if min(found) > 0 else 0  # -1 is no maximum


def lowered(options: Mapping[str, Any], names: Sequence[str], most: int) -> dict[str, Any]:
    """What has to be changed in options so that no output maximum in them is another one.

    Args:
        options: The options; an ``extra_body`` in them is looked through as well.
        names: The names of output maximums.
        most: The maximum, in tokens per choice.
    """
    changed: dict[str, Any] = {name: most for name in names if options.get(name) is not None}
    body = options.get("extra_body")
    inner = lowered(body, names, most) if isinstance(body, Mapping) else None
    return {**changed, "extra_body": {**body, **inner}} if body and inner else changed


def input_bound(content: Content, options: Mapping[str, Any]) -> int | Callable[[Card], int]:
    """The input bound of a call: its messages and its options.

    Args:
        content: The messages.
        options: The call's keyword arguments.

    Returns:
        Tokens; or what tells them for a model's card, where pictures or unseen things are in it.
    """
    if options:
        _add_options(options, content)
    most = (
        content.bound
        if content.images or content.unseen
        else content.text_bytes + content.other_bytes
    )
    if options.get("tools") or options.get("functions"):
        return lambda card: _tool_prompt(card) + (most if isinstance(most, int) else most(card))
    return most


def _tool_prompt(card: Card) -> int:
    return 0 if card.provider in ("openai", "azure") else TOOL_PROMPT


def _add_options(options: Mapping[str, Any], content: Content) -> None:
    for name, value in options.items():
        if name in SETTINGS or value is None:
            continue
        if name in REFERENCES:
            content.unseen = True
        content.text_bytes += byte_bound(_schema(value))
        if name in ("tools", "functions"):
            content.text_bytes += PER_TOOL * len(value)
            for tool in value:
                _add_kind(tool, content)


def _add_kind(tool: Any, content: Content) -> None:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if not isinstance(kind, str) or kind in RUN_HERE:
        return
    if kind.startswith(DESCRIBED_THERE):
        content.text_bytes += TOOL_PROMPT
    else:
        content.unseen = True


def _schema(value: Any) -> Any:
    """An option as data; a class of pydantic's stands for its JSON schema, twice for its frame."""
    describe = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and describe is not None:
        schema = plain(describe())
        return [schema, schema]
    return plain(value)


def utf8_bytes(text: str) -> int:
    """How many bytes a text takes in UTF-8, lone surrogates included."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))

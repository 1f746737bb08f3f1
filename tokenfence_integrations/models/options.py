"""What the options of a model's call add to its input: tools, a response format, references."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenfence_integrations.clients.openai.content import PER_TOOL, Content, plain
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import byte_bound

__all__ = ["SETTINGS", "input_bound", "utf8_bytes"]

TOOL_PROMPT = 1_024
"""What others than OpenAI may put before the first tool: Anthropic documents up to 804 tokens
(https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview, "Pricing")."""

SETTINGS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "model",
        "n",
        "stop",
        "stream",
        "stream_options",
        "stream_usage",
        "temperature",
        "tool_choice",
    }
)
"""Options that the model never reads as text; every other one is counted by its bytes."""

REFERENCES = ("previous_response_id", "conversation", "prompt", "cached_content", "container")
"""Options that stand for input which only the provider knows."""


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

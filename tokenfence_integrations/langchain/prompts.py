"""The most input tokens that a provider can count for LangChain messages and their options."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from tokenfence_integrations.clients.openai.content import PER_TOOL, Content, is_text, plain
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import REQUEST_OVERHEAD, byte_bound, count_chat

__all__ = ["exact_count", "prompt_bound"]

PER_MESSAGE = 40
"""Bytes that stand for the JSON around a message, which is more than the tokens it costs."""

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

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


def prompt_bound(
    messages: Sequence[BaseMessage], options: Mapping[str, Any]
) -> int | Callable[[Card], int]:
    """The input bound of a call, for a model.

    Text counts by its UTF-8 bytes, which no byte-level tokenizer passes; pictures, sounds and files
    as `docs/bounds.md` tells.

    Args:
        messages: What is sent.
        options: The call's keyword arguments: tools, a response format...

    Returns:
        Tokens; or what tells them for a model's card, where pictures or unseen things are in it.

    Example:
        >>> prompt_bound([HumanMessage("Why?")], {})
        108
    """
    content = Content(text_bytes=REQUEST_OVERHEAD)
    for message in messages:
        _add_message(message, content)
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


def exact_count(
    messages: Sequence[BaseMessage], options: Mapping[str, Any]
) -> Callable[[Card], int | None] | None:
    """How to count a chat of plain texts exactly, on a server that counts as OpenAI does.

    Returns:
        A function from a model's card to tokens; None if there is more than texts.
    """
    if not SETTINGS.issuperset(options):
        return None
    chat: list[dict[str, str]] = []
    for message in messages:
        role = ROLES.get(message.type)
        if role is None or not _is_plain(message):
            return None
        chat.append({"role": role, "content": str(message.content)})
        if message.name:
            chat[-1]["name"] = message.name
    return lambda card: count_chat(chat, card.model)


def _is_plain(message: BaseMessage) -> bool:
    if type(message.content) is not str or message.additional_kwargs:
        return False
    if isinstance(message, AIMessage):
        return not message.tool_calls and not message.invalid_tool_calls
    return message.type != "tool"


def _add_message(message: BaseMessage, content: Content) -> None:
    text = message.content
    content.text_bytes += PER_MESSAGE
    if message.name:
        content.text_bytes += _utf8(message.name)
    if type(text) is str:
        content.text_bytes += _utf8(text)
    else:
        content.text_bytes += byte_bound(_without_media(text, content))
    if _is_plain(message):
        return
    if message.additional_kwargs:
        content.text_bytes += byte_bound(plain(message.additional_kwargs))
    if isinstance(message, AIMessage):
        calls: Any = [*message.tool_calls, *message.invalid_tool_calls]
        content.text_bytes += byte_bound(plain(calls)) + PER_TOOL * len(calls)
    content.text_bytes += _utf8(str(getattr(message, "tool_call_id", "")))


def _without_media(parts: Any, content: Content) -> list[Any]:
    """The parts of a message that are text; pictures, sounds and files noted in ``content``."""
    kept = []
    for part in map(plain, parts):
        if not isinstance(part, Mapping):
            kept.append(part)
            continue
        inner = part.get("content")
        if isinstance(inner, list):  # what a tool answered
            part = {**part, "content": _without_media(inner, content)}
        if _is_media(part, content):
            continue
        if is_text(part, content):
            kept.append(part)
    return kept


def _is_media(part: Mapping[str, Any], content: Content) -> bool:
    """Whether this is a picture, sound or file, in the forms of LangChain and its providers."""
    kind = part.get("type")
    source = part.get("source")
    held = source if isinstance(source, Mapping) else part
    data = held.get("base64") or held.get("data")
    size = len(data) if isinstance(data, str | bytes) else 0
    if kind == "image":
        content.images.append((str(part.get("detail") or "auto"), size))
    elif kind == "audio" and size:
        # A token is a tenth of a second of sound, which no codec brings below one byte.
        content.other_bytes += size
    elif kind in ("audio", "video", "media", "document"):
        content.unseen = True
    else:
        return False
    return True


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


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))

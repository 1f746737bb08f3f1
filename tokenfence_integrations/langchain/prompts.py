"""The most input tokens that a provider can count for LangChain messages and their options."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from tokenfence_integrations.clients.openai.content import (
    PER_TOOL,
    Content,
    add_hidden,
    is_text,
    plain,
    sound_tokens,
)
from tokenfence_integrations.models.options import SETTINGS, input_bound, utf8_bytes
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import REQUEST_OVERHEAD, byte_bound, count_chat

__all__ = ["exact_count", "prompt_bound", "stands_on_answer"]

PER_MESSAGE = 40
"""Bytes that stand for the JSON around a message, which is more than the tokens it costs."""

SOUNDS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}
"""The formats of recordings that are told by a media type."""

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
        >>> from langchain_core.messages import HumanMessage
        >>> prompt_bound([HumanMessage("Why?")], {})
        108
    """
    content = Content(text_bytes=REQUEST_OVERHEAD)
    for message in messages:
        _add_message(message, content)
    return input_bound(content, options)


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
    return lambda card: count_chat(chat, card.known_as)


def stands_on_answer(messages: Sequence[BaseMessage]) -> bool:
    """Whether a model that gives back ids of answers would do so, and leave out what they say."""
    told = [m.response_metadata.get("id") for m in messages if isinstance(m, AIMessage)]
    return any(isinstance(name, str) and name.startswith("resp_") for name in told)


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
        content.text_bytes += utf8_bytes(message.name)
    if type(text) is str:
        content.text_bytes += utf8_bytes(text)
    else:
        content.text_bytes += byte_bound(_without_media(text, content))
    if _is_plain(message):
        return
    if message.additional_kwargs:
        content.text_bytes += byte_bound(plain(message.additional_kwargs))
        add_hidden(message.additional_kwargs.get("reasoning"), content)
        # What was said aloud before is given back by its id.
        spoken = isinstance(message.additional_kwargs.get("audio"), Mapping)
        content.unseen = content.unseen or spoken
    if isinstance(message, AIMessage):
        calls: Any = [*message.tool_calls, *message.invalid_tool_calls]
        content.text_bytes += byte_bound(plain(calls)) + PER_TOOL * len(calls)
    content.text_bytes += utf8_bytes(str(getattr(message, "tool_call_id", "")))


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
        content.other_bytes += sound_tokens(size, SOUNDS.get(str(part.get("mime_type"))))
    elif kind in ("audio", "video", "media", "document"):
        content.unseen = True
    else:
        return False
    return True

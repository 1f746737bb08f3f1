"""The most input tokens that a provider can count for LlamaIndex messages and their options."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from llama_index.core.llms import LLM, ChatMessage

from tokenfence_integrations.clients.openai.content import (
    PER_TOOL,
    Content,
    add_hidden,
    plain,
    sound_tokens,
)
from tokenfence_integrations.llama_index.providers import may_have, member
from tokenfence_integrations.llama_index.tools import TOOLS_KEY
from tokenfence_integrations.models.options import SETTINGS, input_bound, utf8_bytes, with_body
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.pricing.tokens import REQUEST_OVERHEAD, byte_bound, count_chat

__all__ = ["exact_count", "options_of", "prompt_bound"]

PER_MESSAGE = 40
"""Bytes that stand for the JSON around a message, which is more than the tokens it costs."""

OWN = frozenset({"formatted", "use_chat_completions", "verbose", TOOLS_KEY})
"""Options that LlamaIndex, or this library, reads and never sends."""

STANDING = ("instructions", "tools", "built_in_tools", "mcp_servers", "functions")
"""Fields of LLMs that are sent with each call, and read by the model."""

ROLES = {"user": "user", "assistant": "assistant", "system": "system"}


def options_of(llm: LLM, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that a call sends beside its messages: its own options, and the LLM's standing ones.

    Args:
        llm: The LLM.
        options: The keyword arguments of the call.
    """
    sent = dict(options)
    if not OWN.isdisjoint(sent):
        sent = {name: value for name, value in sent.items() if name not in OWN}
    extra = member(llm, "additional_kwargs")
    if extra:
        sent |= extra
    for name in _standing(type(llm)):
        value = getattr(llm, name)
        if value:
            sent[name] = [*sent.get(name, ()), *value] if isinstance(value, list) else value
    if sent.pop("built_in_tools", None) or member(llm, "_previous_response_id"):
        sent["previous_response_id"] = "unseen"  # what these bring in, only the provider knows
    return dict(with_body(sent))


@cache
def _standing(cls: type) -> tuple[str, ...]:
    return tuple(name for name in STANDING if may_have(cls, name))


def prompt_bound(
    content: str | Sequence[ChatMessage], options: Mapping[str, Any]
) -> int | Callable[[Card], int]:
    """The input bound of a call, for a model.

    Text counts by its UTF-8 bytes, which no byte-level tokenizer passes; pictures, sounds and files
    as `docs/bounds.md` tells.

    Args:
        content: A prompt, or messages.
        options: What else is sent, as `options_of` tells.

    Returns:
        Tokens; or what tells them for a model's card, where pictures or unseen things are in it.

    Example:
        >>> prompt_bound("Why?", {})
        108
    """
    found = Content(text_bytes=REQUEST_OVERHEAD)
    if isinstance(content, str):
        found.text_bytes += PER_MESSAGE + utf8_bytes(content)
    else:
        for message in content:
            found.text_bytes += PER_MESSAGE
            if message.additional_kwargs:
                found.text_bytes += byte_bound(plain(message.additional_kwargs))
            _add_blocks(message.blocks, found)
    return input_bound(found, options)


def exact_count(
    content: str | Sequence[ChatMessage], options: Mapping[str, Any]
) -> Callable[[Card], int | None] | None:
    """How to count a chat of plain texts exactly, on a server that counts as OpenAI does.

    Returns:
        A function from a model's card to tokens; None if there is more than texts.
    """
    if not SETTINGS.issuperset(options):
        return None
    if isinstance(content, str):
        chat = [{"role": "user", "content": content}]
    else:
        chat = []
        for message in content:
            role = ROLES.get(message.role)
            blocks = message.blocks
            if role is None or message.additional_kwargs or len(blocks) != 1:
                return None
            if blocks[0].block_type != "text":
                return None
            chat.append({"role": role, "content": blocks[0].text})
    return lambda card: count_chat(chat, card.known_as)


def _add_blocks(blocks: Sequence[Any], content: Content) -> None:
    for block in blocks:
        kind = block.block_type
        if kind == "text":
            content.text_bytes += utf8_bytes(block.text)
        elif kind == "image":
            data = block.image
            content.images.append((block.detail or "auto", len(data) if data else 0))
        elif kind == "audio" and block.audio:
            content.other_bytes += sound_tokens(len(block.audio), block.format)
        elif kind in ("audio", "video", "document"):
            content.unseen = True
        elif kind == "citable":
            _add_blocks(block.content, content)
            content.text_bytes += utf8_bytes(f"{block.title}{block.source}")
        elif kind == "tool_call":
            content.text_bytes += PER_TOOL + byte_bound(plain(block.model_dump(mode="json")))
        else:  # thinking, citations, cache points
            if kind == "thinking":
                told = {**block.additional_information, "type": "reasoning"}
                add_hidden(told, content)
            content.text_bytes += byte_bound(plain(block.model_dump(mode="json")))

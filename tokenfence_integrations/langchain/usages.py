"""What an answer consumed, in the engine's terms, read from LangChain's messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult, Generation

from tokenfence_integrations.usage import Usage, are_counts

__all__ = [
    "answer_usage",
    "has_ended",
    "message_usage",
    "result_usage",
    "service_tier",
    "usage_of",
    "was_cached",
    "was_cut",
]

TIERS = ("priority", "flex")
"""Service tiers that langchain-openai puts among the details, and before the names of the others
(`priority_audio`)."""

CUT = ("length", "max_tokens", "MAX_TOKENS")
"""Finish reasons that mean "ended at its output maximum", over the providers."""


def usage_of(metadata: Mapping[str, Any] | None) -> Usage | None:
    """The usage that a message's ``usage_metadata`` stands for.

    Args:
        metadata: LangChain's ``UsageMetadata``. Its input count includes what was read from and
            written to a prompt cache, for every provider; its output count includes reasoning.

    Returns:
        None if it does not tell input and output (a cache hit without usage has neither).

    Example:
        >>> usage_of({"input_tokens": 9, "output_tokens": 5, "total_tokens": 14})[:2]
        (9, 5)
    """
    if metadata is None:
        return None
    into: Any = metadata.get("input_tokens")
    out: Any = metadata.get("output_tokens")
    if not are_counts(into, out):
        return None
    given: Mapping[str, Any] = metadata.get("input_token_details") or {}
    made: Mapping[str, Any] = metadata.get("output_token_details") or {}
    if not given and not made:
        return Usage(into, out)
    hour = _detail(given, "ephemeral_1h_input_tokens")
    written = _detail(given, "cache_creation")
    # Anthropic reports the writes either as one number or by how long they live, the rest zero.
    written = max(written, _detail(given, "ephemeral_5m_input_tokens") + hour)
    usage = Usage(
        into,
        out,
        cached_tokens=_detail(given, "cache_read"),
        cache_write_tokens=written,
        reasoning_tokens=_detail(made, "reasoning"),
        input_audio_tokens=_detail(given, "audio"),
        output_audio_tokens=_detail(made, "audio"),
        cache_write_1h_tokens=hour,
    )
    return usage if are_counts(*usage) else None


def message_usage(message: Any) -> Usage | None:
    """The usage of one message; None if it carries none."""
    return usage_of(getattr(message, "usage_metadata", None))


def result_usage(result: ChatResult) -> Usage | None:
    """The usage of a whole answer. Each of several choices carries the usage of all: one counts."""
    return answer_usage(result.generations, result.llm_output)


def answer_usage(
    generations: Sequence[Generation], llm_output: Mapping[str, Any] | None
) -> Usage | None:
    """As `result_usage`, of the parts of a result; those of a text model have no messages."""
    for generation in generations:
        if isinstance(generation, ChatGeneration):
            found = message_usage(generation.message)
            if found is not None:
                return found
    reported = (llm_output or {}).get("token_usage")
    if not isinstance(reported, Mapping):
        return None
    return usage_of(
        {
            "input_tokens": reported.get("prompt_tokens"),
            "output_tokens": reported.get("completion_tokens"),
        }
    )


def service_tier(message: Any) -> str | None:
    """The service tier that the provider says it used; None if it does not tell."""
    tier = (getattr(message, "response_metadata", None) or {}).get("service_tier")
    if isinstance(tier, str):
        return tier
    # Of several choices LangChain tells it in the names of the counts alone.
    usage = getattr(message, "usage_metadata", None) or {}
    return next((t for t in TIERS if t in (usage.get("input_token_details") or {})), None)


def was_cut(message: Any) -> bool:
    """Whether an answer ended at its output maximum."""
    if not isinstance(message, AIMessage):
        return False
    told = message.response_metadata
    return _reason(told) in CUT or told.get("status") == "incomplete"


def has_ended(message: Any) -> bool:
    """Whether an answer tells why it ended, so that its usage is that of all of it."""
    told = getattr(message, "response_metadata", None) or {}
    return bool(_reason(told)) or told.get("status") in ("completed", "incomplete")


def was_cached(message: Any) -> bool:
    """Whether LangChain's cache answered: it replays the usage, and adds a cost of nothing."""
    return "total_cost" in (getattr(message, "usage_metadata", None) or {})


def _reason(told: Mapping[str, Any]) -> Any:
    return told.get("finish_reason") or told.get("stop_reason") or told.get("done_reason")


def _detail(details: Mapping[str, Any], name: str) -> int:
    found = [details.get(name), *[details.get(f"{tier}_{name}") for tier in TIERS]]
    return sum(count for count in found if type(count) is int and count > 0)

"""What an answer consumed, in the engine's terms, read from LlamaIndex's responses."""

from collections.abc import Mapping
from typing import Any

from tokenfence_integrations.clients.openai.reported import elements, get, members, token_usage
from tokenfence_integrations.usage import Usage, are_counts

__all__ = ["CUT", "anthropic_usage", "response_usage", "service_tier", "tier_in", "was_cut"]

CUT = ("length", "max_tokens", "MAX_TOKENS")
"""Finish reasons that mean "ended at its output maximum", over the providers."""


def response_usage(response: Any) -> Usage | None:
    """The usage that a response of any LLM reports; None if it reports none.

    Args:
        response: A ``ChatResponse`` or ``CompletionResponse``, whole or the latest of a stream.

    Example:
        >>> raw = {"usage": {"prompt_tokens": 9, "completion_tokens": 5}}
        >>> from llama_index.core.llms import CompletionResponse
        >>> response_usage(CompletionResponse(text="", raw=raw))[:2]
        (9, 5)
    """
    raw = response.raw
    told: Any = response.additional_kwargs
    reported = get(raw, "usage") or get(get(raw, "response"), "usage") or told.get("usage")
    if reported is not None:
        return _usage(reported)
    google = get(raw, "usage_metadata")
    if google is not None:
        return _google_usage(google)
    if isinstance(raw, Mapping) and "prompt_eval_count" in raw:  # Ollama
        told = {
            "prompt_tokens": raw["prompt_eval_count"],
            "completion_tokens": raw.get("eval_count"),
        }
    return token_usage(told) if "prompt_tokens" in told else None


def _usage(reported: Any) -> Usage | None:
    counts = members(reported)
    if "cache_read_input_tokens" in counts or "cache_creation_input_tokens" in counts:
        return anthropic_usage(counts)
    return token_usage(reported)


def anthropic_usage(reported: Any) -> Usage | None:
    """The usage of a message of Anthropic's, whose input count leaves out what its cache did.

    Args:
        reported: The ``usage`` of the message, or its members.
    """
    counts = members(reported)
    plain: Any = counts.get("input_tokens")
    out: Any = counts.get("output_tokens")
    read = counts.get("cache_read_input_tokens") or 0
    written = counts.get("cache_creation_input_tokens") or 0
    hour = get(counts.get("cache_creation"), "ephemeral_1h_input_tokens") or 0
    if not are_counts(plain, out, read, written, hour):
        return None
    return Usage(
        plain + read + written,
        out,
        cached_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=hour,
    )


def _google_usage(reported: Any) -> Usage | None:
    counts = members(reported)
    into: Any = counts.get("prompt_token_count")
    out = counts.get("candidates_token_count") or 0
    thought = counts.get("thoughts_token_count") or 0
    found = counts.get("tool_use_prompt_token_count") or 0
    cached = counts.get("cached_content_token_count") or 0
    if not are_counts(into, out, thought, found, cached):
        return None
    return Usage(into + found, out + thought, cached_tokens=cached, reasoning_tokens=thought)


def service_tier(response: Any) -> str | None:
    """The service tier that the provider says it used."""
    return tier_in(response.raw)


def tier_in(raw: Any) -> str | None:
    """The service tier in a provider's own answer; None if it does not tell."""
    tier = get(raw, "service_tier") or get(get(raw, "usage"), "service_tier")
    return tier if isinstance(tier, str) else None


def was_cut(response: Any) -> bool:
    """Whether an answer ended at its output maximum."""
    raw = response.raw
    choices = elements(get(raw, "choices"))
    if choices:
        return get(choices[0], "finish_reason") in CUT
    whole = get(raw, "response") or raw
    if get(whole, "status") == "incomplete":
        return True
    reason = get(raw, "stop_reason") or get(get(raw, "delta"), "stop_reason")
    return (reason or get(raw, "done_reason")) in CUT

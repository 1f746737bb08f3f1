"""The table of limits, against the figures that were looked up apart from it."""

from __future__ import annotations

import pytest

from tokenfence_integrations.pricing.ceilings import ceiling


@pytest.mark.parametrize(
    ("model", "max_output_tokens"),
    [
        ("gpt-4o", 16_384),
        ("gpt-4o-mini", 16_384),
        ("gpt-4o-2024-08-06", 16_384),
        ("gpt-4.1", 32_768),
        ("gpt-4.1-mini-2025-04-14", 32_768),
        ("gpt-5", 128_000),
        ("gpt-5-mini", 128_000),
        ("gpt-5.5", 128_000),
        ("gpt-5-pro", 272_000),
        ("gpt-5-pro-2025-10-06", 272_000),
        ("o1", 100_000),
        ("o3-mini", 100_000),
        ("o4-mini", 100_000),
        ("gpt-3.5-turbo", 4_096),
        ("gpt-4-turbo-2024-04-09", 4_096),
        ("text-embedding-3-small", 0),
        ("openai/gpt-4o", 16_384),
        ("GPT-4o", 16_384),
        ("ft:gpt-4o-mini-2024-07-18:org::id", 16_384),
    ],
)
def test_output_ceilings(model: str, max_output_tokens: int) -> None:
    limits = ceiling(model)
    assert limits is not None
    assert limits.max_output_tokens == max_output_tokens


@pytest.mark.parametrize("model", ["", "my-model", "gpt-4z", "gpt-45", "o11", "gpt-9", "claude-3"])
def test_a_name_that_only_begins_alike_is_another_model(model: str) -> None:
    assert ceiling(model) is None


def test_reasoning_models_are_told_apart() -> None:
    reasoning = {model: limits.reasoning for model in MODELS if (limits := ceiling(model))}
    assert reasoning == MODELS


MODELS = {"gpt-4o": False, "gpt-4.1": False, "gpt-5-chat-latest": False, "gpt-5": True, "o3": True}

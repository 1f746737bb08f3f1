"""Usage that is not in the form that it should have tells nothing, and stops no answer."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage

from tokenfence_integrations.langchain.usages import usage_of, was_cut

TOLD: dict[str, Any] = {
    "input_tokens": 8,
    "output_tokens": 16,
    "total_tokens": 24,
    "input_token_details": {"cache_read": 4},
    "output_token_details": {"reasoning": 4},
}


@pytest.mark.parametrize(
    "odd",
    [
        {"input_tokens": 10**30},
        {"output_tokens": 10**30},
        {"output_tokens": -1},
        {"output_tokens": 1.5},
        {"input_token_details": {"cache_read": 10**30}},
        {"output_token_details": {"reasoning": 10**30}},
    ],
)
def test_counts_that_are_none(odd: dict[str, Any]) -> None:
    assert usage_of(TOLD) is not None
    assert usage_of({**TOLD, **odd}) is None


def test_an_end_that_is_none() -> None:
    assert not was_cut(AIMessage("Hi", response_metadata={"finish_reason": ["length"]}))

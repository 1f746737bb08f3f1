"""Input bounds of what LlamaIndex sends."""

from typing import Any

import pytest
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.llms import ChatMessage, TextBlock

from tokenfence_integrations.llama_index.prompts import prompt_bound
from tokenfence_integrations.pricing.book import PriceBook

CARD = PriceBook().card("gpt-5")


@pytest.mark.parametrize(
    ("told", "window"), [({"id": "rs_of_nobody"}, True), ({"signature": "x"}, False), ({}, False)]
)
def test_reasoning_that_only_the_provider_has_is_the_whole_window(
    told: dict[str, Any], window: bool
) -> None:
    blocks = [ThinkingBlock(content="so", additional_information=told), TextBlock(text="So.")]
    most = prompt_bound([ChatMessage(role="assistant", blocks=blocks)], {})
    assert ((most if isinstance(most, int) else most(CARD)) == CARD.context_window) == window

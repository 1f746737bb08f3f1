"""`type(model)(...)` makes a model of the guarded class that nobody has given a budget."""

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tokenfence_integrations import guard
from tokenfence_integrations.testing import SimulatedProvider

NO_BUDGET = "has no budget, and nothing was sent"


def test_it_says_so_and_sends_nothing() -> None:
    with SimulatedProvider() as provider:
        to = {"base_url": provider.base_url, "api_key": "unused"}
        chat = guard(ChatOpenAI(model="gpt-4o", **to), budget="$1")  # type: ignore[arg-type]
        embeddings = guard(OpenAIEmbeddings(**to), budget="$1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=NO_BUDGET):
            type(chat)(model="gpt-4o", **to).invoke("Hello")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=NO_BUDGET):
            type(embeddings)(**to).embed_query("Hello")  # type: ignore[arg-type]
        assert provider.requests == 0

"""A provider and clients of it, and the counts that its answers are held against."""

from collections.abc import AsyncIterator, Iterator
from math import ceil

import openai
import pytest

from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as provider:
        yield provider


@pytest.fixture
def client(provider: SimulatedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(provider: SimulatedProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=provider.base_url, api_key="unused", max_retries=0
    ) as client:
        yield client


def count(text: str | None, model: str = "gpt-4o") -> int:
    """Tokens of a text by tiktoken, or by the rule of thumb where its data is not installed."""
    assert text is not None
    encoding = encoding_for(model)
    return ceil(len(text.encode()) / 4) if encoding is None else len(encoding.encode(text))

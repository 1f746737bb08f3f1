"""A provider, and one guarded client of it for all requests, without a budget of its own."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.clients.helpers import async_client
from tokenfence_integrations import async_guard
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as provider:
        yield provider


@pytest.fixture
async def bare(provider: SimulatedProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(provider.base_url) as client:
        yield client


@pytest.fixture
def client(bare: openai.AsyncOpenAI) -> openai.AsyncOpenAI:
    return async_guard(bare, on_limit="raise")

"""A provider, bare clients of it, and a budget."""

import importlib.util
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.clients.helpers import async_client, sync_client
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

# llmock is in the main environment alone: what it breaks, openai 3 calls by other names.
collect_ignore = [] if importlib.util.find_spec("llmock") else ["test_llmock.py"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK's retries follow at once, and not after half a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as provider:
        yield provider


@pytest.fixture
def budget() -> Budget:
    """Enough for anything that is not about the limit."""
    return Budget("$100")


@pytest.fixture
def bare(provider: SimulatedProvider) -> Iterator[openai.OpenAI]:
    with sync_client(provider.base_url) as client:
        yield client


@pytest.fixture
async def bare_async(provider: SimulatedProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(provider.base_url) as client:
        yield client


@pytest.fixture
def guarded(bare: openai.OpenAI, budget: Budget) -> openai.OpenAI:
    return guard(bare, budget=budget)


@pytest.fixture
def aguarded(bare_async: openai.AsyncOpenAI, budget: Budget) -> openai.AsyncOpenAI:
    return async_guard(bare_async, budget=budget)

"""A provider, and the models of one test, closed when it is over."""

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from tests.langchain.models import chat_openai, close
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider

# The environment of openai 3 has none of the libraries that are built on LangChain.
_NEEDS = {"test_agent_teams.py": "deepagents", "test_anthropic.py": "anthropic"}
collect_ignore = [name for name, library in _NEEDS.items() if not importlib.util.find_spec(library)]


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
async def make_chat(provider: SimulatedProvider) -> AsyncIterator[Callable[..., ChatOpenAI]]:
    """Makes plain ChatOpenAI models of the provider."""
    made = []

    def make(**options: Any) -> ChatOpenAI:
        made.append(chat_openai(provider.base_url, **options))
        return made[-1]

    yield make
    for model in made:
        await close(model)


@pytest.fixture
def plain(make_chat: Callable[..., ChatOpenAI]) -> ChatOpenAI:
    """An unguarded model."""
    return make_chat()

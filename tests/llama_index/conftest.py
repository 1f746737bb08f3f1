"""A provider, and the LLMs and embeddings of one test, closed when it is over."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from tenacity import wait_none

from tests.clients.anthropic_server import Server
from tests.llama_index import models
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDKs' retries follow at once, and not after half a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("anthropic._base_client.MAX_RETRY_DELAY", 0.001)


@pytest.fixture(autouse=True)
def anthropic_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make llama-index-llms-anthropic 0.12 work with anthropic 2.13.

    It makes messages by calling types that are unions now, and sends a temperature, which the SDK
    has no argument for any more.
    """
    for name in ("MessageParam", "BetaMessageParam"):
        monkeypatch.setattr(f"llama_index.llms.anthropic.utils.{name}", dict)
    monkeypatch.setattr("llama_index.llms.anthropic.base.ANTHROPIC_NO_TEMP_MODELS", ("claude",))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LlamaIndex's own retries follow at once, and not after a second or more."""
    for module in ("llms", "embeddings"):
        for wait in ("wait_exponential", "wait_random_exponential"):
            name = f"llama_index.{module}.openai.utils.{wait}"
            monkeypatch.setattr(name, lambda **_: wait_none(), raising=False)


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as provider:
        yield provider


@pytest.fixture
def budget() -> Budget:
    """Enough for anything that is not about the limit."""
    return Budget("$100")


@pytest.fixture
async def make(provider: SimulatedProvider) -> AsyncIterator[Callable[..., Any]]:
    """Makes plain things of the provider: ``make(models.openai_llm, model="gpt-4o-mini")``."""
    made = []

    def make(kind: Callable[..., Any], **options: Any) -> Any:
        made.append(kind(provider.base_url, **options))
        return made[-1]

    yield make
    for thing in made:
        await models.close(thing)


@pytest.fixture
def server() -> Server:
    """A server of Anthropic's."""
    return Server()


@pytest.fixture
def llm(make: Callable[..., Any]) -> Any:
    """An unguarded OpenAI."""
    return make(models.openai_llm)

"""A provider, models that call it, and a budget whose clock stands still."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.engine.helpers import FakeClock
from tests.langchain.callbacks.helpers import PRICES, chat
from tokenfence_integrations import Budget
from tokenfence_integrations.langchain.callbacks import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK's retries follow at once, and not after half a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(prices={"flat": (0, 10)}) as provider:
        yield provider


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def budget(clock: FakeClock) -> Budget:
    """Enough for anything that is not about the limit."""
    return Budget("$100", clock=clock.clock)


@pytest.fixture
def handler(budget: Budget) -> BudgetCallbackHandler:
    return BudgetCallbackHandler(budget, prices=PRICES)


@pytest.fixture
def http() -> Iterator[openai.DefaultHttpxClient]:
    with openai.DefaultHttpxClient(verify=False) as client:
        yield client


@pytest.fixture
def model(provider: SimulatedProvider, http: openai.DefaultHttpxClient) -> ChatOpenAI:
    return chat(provider, http_client=http)


@pytest.fixture
async def amodel(provider: SimulatedProvider) -> AsyncIterator[ChatOpenAI]:
    async with openai.DefaultAsyncHttpxClient(verify=False) as client:
        yield chat(provider, http_async_client=client)

"""A provider, models that call it, and a budget whose clock stands still."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.callbacks import budget, clock, provider
from tests.langchain.callbacks.helpers import PRICES, chat
from tokenfence_integrations import Budget
from tokenfence_integrations.langchain.callbacks.handler import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

__all__ = ["budget", "clock", "provider"]


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

"""One real model for all tests here; the `tokens` that it reports are what its calls cost."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tokenfence_integrations.demo.real_model import RealModel


@pytest.fixture(scope="session")
def model() -> Iterator[RealModel]:
    with RealModel(n_ctx=4096, n_parallel=4, embedding=True) as model:
        yield model


@pytest.fixture
def bare(model: RealModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model.base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def bare_async(model: RealModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=model.base_url, api_key="unused", max_retries=0
    ) as client:
        yield client

"""What the tests of the callback handler have in common."""

from typing import Any

import openai
from langchain_openai import ChatOpenAI

from tests.clients.helpers import in_dollars
from tests.engine.helpers import FakeClock
from tokenfence_integrations import Budget, Price
from tokenfence_integrations.langchain.callbacks.handler import LEASE
from tokenfence_integrations.stores.base import NOTHING
from tokenfence_integrations.testing import SimulatedProvider

PRICES = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
"""A model whose bound is its cost: only its answer is charged, and that is as long as it may be."""

FLAT = 160_000
"""What a call to it costs, in nano-dollars: 16 tokens at $10 per million."""


def chat(provider: SimulatedProvider, **options: Any) -> ChatOpenAI:
    """A chat model of "flat". No TLS contexts: each takes 0.1 s."""
    given = {
        "model": "flat",
        "max_tokens": 16,
        "api_key": "unused",
        "max_retries": 0,
        "stream_usage": True,
        "http_client": None,
        "http_async_client": None,
        **options,
    }
    given["http_client"] = given["http_client"] or openai.DefaultHttpxClient(verify=False)
    if given["http_async_client"] is None:
        given["http_async_client"] = openai.DefaultAsyncHttpxClient(verify=False)
    return ChatOpenAI(base_url=provider.base_url, **given)


def for_calls(count: int, **options: Any) -> Budget:
    """To the nano-dollar enough for so many calls of "flat"."""
    return Budget(in_dollars(count * FLAT), **options)


def with_handler(*handlers: Any, **more: Any) -> Any:
    """A config."""
    return {"callbacks": [*handlers], **more}


def outcomes(budget: Budget) -> list[str]:
    """How the calls on a budget ended, in the order of the alphabet."""
    return sorted(record.outcome for record in budget.ledger)


def check_leased(budget: Budget, clock: FakeClock, *, calls: int = 1) -> None:
    """So many calls were never told of; they are charged, and end with their lease."""
    assert budget.snapshot().reserved.calls == calls
    clock.advance(LEASE - 1)
    assert budget.snapshot().reserved.calls == calls
    clock.advance(1)
    assert budget.snapshot().reserved == NOTHING
    assert outcomes(budget).count("uncertain") >= calls

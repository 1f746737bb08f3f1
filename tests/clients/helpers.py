"""What the tests of guarded clients have in common: a call to make, and the books to check."""

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import openai

from tokenfence_integrations import Budget
from tokenfence_integrations.stores.base import NOTHING
from tokenfence_integrations.testing import SimulatedProvider

HELLO = [{"role": "user", "content": "Hello"}]
CALL: dict[str, Any] = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 16}
# A call whose bound is its cost, with and without a vocabulary: its prompt is given as tokens, and
# its answer is as long as its maximum.
EXACT: dict[str, Any] = {
    "model": "gpt-3.5-turbo-instruct",
    "prompt": [1, 2, 3],
    "max_tokens": 16,
}
ANSWER: dict[str, Any] = {
    "id": "a",
    "choices": [],
    "usage": {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24},
}
"""The least of an answer to `CALL`, for `scripted_client`."""
OPENAI_3 = int(openai.__version__.split(".")[0]) >= 3
HTTP: Any = importlib.import_module("httpx2" if OPENAI_3 else "httpx")
"""The HTTP library of the installed openai."""


def sync_client(base_url: str, **options: Any) -> openai.OpenAI:
    """A client that makes no retries unless told to. No TLS context: that alone takes 0.1 s."""
    http_client = openai.DefaultHttpxClient(verify=False)
    given = {"api_key": "unused", "max_retries": 0, **options}
    return openai.OpenAI(base_url=base_url, http_client=http_client, **given)


def async_client(base_url: str, **options: Any) -> openai.AsyncOpenAI:
    """As `sync_client`."""
    http_client = openai.DefaultAsyncHttpxClient(verify=False)
    given = {"api_key": "unused", "max_retries": 0, **options}
    return openai.AsyncOpenAI(base_url=base_url, http_client=http_client, **given)


def scripted_client(body: object, **options: Any) -> openai.OpenAI:
    """A client whose server answers with exactly this.

    Args:
        body: A JSON object; or a sequence of them, sent as a stream of server-sent events.
        options: As for `openai.OpenAI`.
    """
    return client_over(lambda _: answer_of(body), **options)


def answer_of(body: object) -> Any:
    """An HTTP response that says this; as for `scripted_client`."""
    if isinstance(body, Sequence):
        events = [f"data: {json.dumps(event)}\n\n" for event in body]
        content = "".join([*events, "data: [DONE]\n\n"])
        headers = {"content-type": "text/event-stream"}
    else:
        content = json.dumps(body)
        headers = {"content-type": "application/json"}
    return HTTP.Response(200, content=content, headers=headers)


def client_over(handler: Callable[[Any], Any], **options: Any) -> openai.OpenAI:
    """A client without a network, whose requests are answered (or failed) by a function."""
    http_client = openai.DefaultHttpxClient(transport=HTTP.MockTransport(handler))
    given = {"api_key": "unused", "max_retries": 0, **options}
    return openai.OpenAI(base_url="http://127.0.0.1:1/v1", http_client=http_client, **given)


def check_books(budget: Budget, provider: SimulatedProvider, *, records: int | None = None) -> None:
    """Every outcome was known: the books are the provider's bill, to the nano-dollar.

    Args:
        budget: A root budget.
        provider: Who was called.
        records: How many records its ledger has to have; None: one for each line of the bill.
    """
    provider.idle()
    state = budget.snapshot()
    assert state.reserved == NOTHING
    assert state.uncertain == NOTHING
    assert state.spent.usd == provider.billed == budget.ledger.total
    assert state.spent.calls == len(provider.bill)
    assert len(budget.ledger) == (len(provider.bill) if records is None else records)


def check_covered(budget: Budget, provider: SimulatedProvider) -> None:
    """Not every outcome could be known: what is charged is never less than the bill."""
    provider.idle()
    state = budget.snapshot()
    assert state.reserved == NOTHING
    assert state.spent.usd + state.uncertain.usd >= provider.billed
    assert state.spent.usd == budget.ledger.total
    assert sum(record.uncertain for record in budget.ledger) == state.uncertain.usd
    outcomes = [record.outcome for record in budget.ledger]
    assert len(outcomes) >= len(provider.bill)


def outcomes(budget: Budget) -> list[str]:
    """How the calls on a budget ended, oldest first."""
    return [record.outcome for record in budget.ledger]


def cost_of(provider: SimulatedProvider, client: openai.OpenAI, **call: Any) -> int:
    """Nano-dollars that the provider bills for an `EXACT` call; made to find out, then forgotten.

    Args:
        provider: Who bills.
        client: An unguarded client.
        call: What differs from `EXACT`.
    """
    client.completions.create(**{**EXACT, **call})
    provider.idle()
    cost = provider.billed
    provider.clear()
    return cost


def in_dollars(nano: int) -> str:
    """An exact amount for `Budget`."""
    return f"{nano // 10**9}.{nano % 10**9:09d} USD"

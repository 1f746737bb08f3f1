"""The provider as a process of its own."""

import subprocess
import sys
from decimal import Decimal

import openai
import pytest

from tokenfence_integrations.testing import (
    Behavior,
    Request,
    SimulatedProvider,
    spawn_provider,
)

HELLO = [{"role": "user", "content": "Hello"}]


def lengths_by_index(request: Request) -> Behavior:
    return Behavior(output_tokens=10 + request.index)


def test_it_answers_and_bills_like_the_one_in_a_thread() -> None:
    prices = {"mine": (Decimal("1.5"), 2)}
    script = f"{__name__}:lengths_by_index"
    with SimulatedProvider.spawn(prices=prices, script=script) as spawned:
        with openai.OpenAI(base_url=spawned.base_url, api_key="unused") as client:
            for model in ("mine", "gpt-4o"):
                client.chat.completions.create(model=model, messages=HELLO)
        bill, billed = spawned.bill, spawned.billed
        assert (spawned.requests, spawned.peak) == (2, 1)
        spawned.clear()
        assert (spawned.requests, spawned.bill, spawned.billed) == (0, [], 0)
    with SimulatedProvider(prices=prices, script=lengths_by_index) as provider:
        with openai.OpenAI(base_url=provider.base_url, api_key="unused") as client:
            for model in ("mine", "gpt-4o"):
                client.chat.completions.create(model=model, messages=HELLO)
        assert provider.bill == bill
        assert provider.billed == billed == sum(line.cost for line in bill)
    assert [line.output_tokens for line in bill] == [10, 11]


def test_bad_behavior_is_refused_before_a_process_starts() -> None:
    with pytest.raises(ValueError, match="status must be"), spawn_provider(status=1):
        pass


def test_it_ends_when_its_parent_dies() -> None:
    # The parent gets no chance to clean up. The provider inherits its standard error, so that
    # pipe reads as ended only when the provider is gone as well.
    parent = """
import os
from tokenfence_integrations.testing import spawn_provider
provider = spawn_provider().__enter__()
print(provider.base_url, flush=True)
os._exit(1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, error = process.communicate(timeout=60)
    assert out.startswith(b"http://127.0.0.1:"), error
    assert process.returncode == 1

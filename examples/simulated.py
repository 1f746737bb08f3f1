"""For the examples: `--simulated` lets a provider on this machine answer, and shows its bill."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenfence_integrations.testing import SimulatedProvider


@contextmanager
def simulated_if_asked(**behavior: Any) -> Iterator[None]:
    """Point OpenAI clients that are made in the block at a simulated provider, if argv says so.

    Args:
        **behavior: How it answers, as fields of `Behavior`.
    """
    if "--simulated" not in sys.argv:
        yield
        return
    with SimulatedProvider(output_tokens=120, latency=0.05, **behavior) as provider:
        os.environ["OPENAI_BASE_URL"] = provider.base_url
        os.environ["OPENAI_API_BASE"] = provider.base_url  # as LlamaIndex calls it
        os.environ["OPENAI_API_KEY"] = "unused"
        yield
        provider.idle()
        print(f"the provider's bill: ${provider.billed / 1e9:.9f}")

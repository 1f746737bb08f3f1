"""Requests that tell the simulated provider how to answer them, in a header of their own.

So a provider in another process, which takes no time from the client's, can be told a length and a
latency per call, and the prompt stays the same. The library under test reads no headers.
"""

import json
from typing import Any

from tokenfence_integrations.testing import Behavior, Request

__all__ = ["SCRIPT", "as_wished", "wish"]

SCRIPT = f"{__name__}:as_wished"
"""What `spawn_provider(script=...)` takes."""

_HEADER = "x-simulated-behavior"


def wish(**behavior: Any) -> dict[str, str]:
    """The header that asks for a behavior.

    Args:
        **behavior: Fields of `Behavior`.

    Returns:
        What `create(extra_headers=...)` takes.

    Example:
        >>> wish(output_tokens=300)
        {'x-simulated-behavior': '{"output_tokens": 300}'}
    """
    return {_HEADER: json.dumps(behavior)}


def as_wished(request: Request) -> Behavior | None:
    """The behavior that a request asks for; None if it has no wish."""
    wished = request.headers.get(_HEADER)
    return None if wished is None else Behavior(**json.loads(wished))

"""Anthropic's clients inside a guarded model: each hidden retry is an attempt of its own.

The SDK runs its middleware once for each HTTP attempt, inside of its retries.
"""

from functools import partial
from typing import Any

from tokenfence_integrations.models.exchange import running
from tokenfence_integrations.models.flows import arun, run

__all__ = ["with_metered_attempts"]


def with_metered_attempts(client: Any) -> Any:
    """A copy of an Anthropic client that meters each attempt of a guarded model's call.

    Args:
        client: Anthropic's client, sync or async.

    Returns:
        The copy; None if the client has no middleware (before anthropic 2), or is none at all.
    """
    if not hasattr(client, "with_middleware"):
        return None
    return client.with_middleware(_meter())


def _meter() -> Any:
    from anthropic import Middleware

    class Meter(Middleware):
        """Ends the reservation of an attempt that failed, and makes one for the next."""

        def handle(self, request: Any, call_next: Any) -> Any:
            exchange, send = running.get(), partial(call_next, request)
            return send() if exchange is None else run(exchange.attempt("admit", send))

        async def handle_async(self, request: Any, call_next: Any) -> Any:
            exchange, send = running.get(), partial(call_next, request)
            if exchange is None:
                return await send()
            return await arun(exchange.attempt("aadmit", send))

    return Meter()

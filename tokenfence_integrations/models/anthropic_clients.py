"""Anthropic's clients inside a guarded model: each hidden retry is an attempt of its own.

The SDK runs its middleware once for each HTTP attempt, inside of its retries.
"""

from functools import partial
from typing import Any

from tokenfence_integrations.models.exchange import Exchange, running
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
            exchange = running.get()
            if exchange is None:
                return call_next(request)
            send = partial(call_next, _capped(request, exchange))
            return run(exchange.attempt("admit", send))

        async def handle_async(self, request: Any, call_next: Any) -> Any:
            exchange = running.get()
            if exchange is None:
                return await call_next(request)
            send = partial(call_next, _capped(request, exchange))
            return await arun(exchange.attempt("aadmit", send))

    return Meter()


def _capped(request: Any, exchange: Exchange) -> Any:
    """The request with the admitted output maximum, where the model's own code sends a higher one.

    LlamaIndex's structured predictions always ask for 8,192 tokens.
    """
    most, body = exchange.call.max_output_tokens, request.json
    if most is None or not isinstance(body, dict) or body.get("max_tokens", 0) <= most:
        return request
    return request.copy(body={**body, "max_tokens": most})

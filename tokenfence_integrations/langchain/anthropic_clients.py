"""The Anthropic clients inside ChatAnthropic: each hidden retry is an attempt of its own.

The SDK runs its middleware once for each HTTP attempt, inside of its retries.
"""

from functools import partial
from typing import Any

from tokenfence_integrations.langchain.exchange import running
from tokenfence_integrations.langchain.flows import arun, run

__all__ = ["with_metered_attempts"]

CLIENTS = ("_client", "_async_client")
"""Where ChatAnthropic, and what is built on it, make their clients when they first need them."""


def with_metered_attempts(model: Any) -> bool:
    """Have a guarded model's Anthropic clients meter each attempt; others stay as they are.

    Args:
        model: A guarded chat model, changed in place.

    Returns:
        Whether it has such clients.
    """
    if not any(cls.__module__.startswith("langchain_anthropic.") for cls in type(model).__mro__):
        return False
    found = False
    for name in CLIENTS:
        client: Any = getattr(model, name, None)
        if hasattr(client, "with_middleware"):  # since anthropic 2
            model.__dict__[name] = client.with_middleware(_meter())
            found = True
    return found


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

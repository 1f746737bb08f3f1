"""The Anthropic clients inside ChatAnthropic, which see each of the SDK's attempts."""

from typing import Any

from tokenfence_integrations.models.anthropic_clients import with_metered_attempts

__all__ = ["meter_attempts"]

CLIENTS = ("_client", "_async_client")
"""Where ChatAnthropic, and what is built on it, make their clients when they first need them."""


def meter_attempts(model: Any) -> bool:
    """Have a guarded model's Anthropic clients meter each attempt; others stay as they are.

    Args:
        model: A guarded chat model, changed in place.

    Returns:
        Whether it has such clients.
    """
    if not any(cls.__module__.startswith("langchain_anthropic.") for cls in type(model).__mro__):
        return False
    metered = {name: with_metered_attempts(getattr(model, name, None)) for name in CLIENTS}
    found = {name: client for name, client in metered.items() if client is not None}
    model.__dict__.update(found)
    return bool(found)

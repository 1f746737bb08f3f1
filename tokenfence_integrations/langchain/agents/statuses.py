"""What is left, in a line for the model to read."""

from collections.abc import Sequence

from langchain_core.messages import SystemMessage

from tokenfence_integrations.money import format_usd
from tokenfence_integrations.stores.base import AccountState, Limits

__all__ = ["status_line", "with_line"]


def status_line(accounts: Sequence[tuple[str, AccountState]]) -> str:
    """What is left in each account that has a limit.

    Args:
        accounts: Names and states.

    Example:
        >>> from tokenfence_integrations.engine.calls.sublimit import Sublimit
        >>> from tokenfence_integrations.stores.base import Limits
        >>> status_line([("this run", Sublimit("this run", Limits(calls=5)).state)])
        'Budget: 5 of 5 calls left for this run.'
    """
    parts = [part for name, state in accounts for part in _parts(name, state)]
    return f"Budget: {'; '.join(parts) or 'no limit'}."


def with_line(message: SystemMessage | None, line: str) -> SystemMessage:
    """A system message with one line more."""
    if message is None:
        return SystemMessage(line)
    if isinstance(message.content, str):
        return SystemMessage(f"{message.content}\n\n{line}")
    return SystemMessage([*message.content, {"type": "text", "text": line}])


def _parts(name: str, state: AccountState) -> list[str]:
    told = []
    for quantity, limit in zip(Limits._fields, state.limits, strict=True):
        if limit is None:
            continue
        used = sum(
            getattr(part, quantity) for part in (state.spent, state.reserved, state.uncertain)
        )
        shown = format_usd if quantity == "usd" else "{:,}".format
        unit = "" if quantity == "usd" else f" {quantity.replace('_', ' ')}"
        told.append(f"{shown(max(0, limit - used))} of {shown(limit)}{unit} left for {name}")
    return told

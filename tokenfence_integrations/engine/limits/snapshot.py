"""A budget at one moment: exact numbers, and the same in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tokenfence_integrations.money import format_usd, to_decimal
from tokenfence_integrations.stores.base import AccountState, Amount, Limits

__all__ = ["Snapshot", "described", "outline", "settled_share"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A budget at one moment, exactly. Dollars inside `Amount` and `Limits` are nano-dollars.

    Args:
        name: Path of the budget, such as ``"team/researcher"``.
        limits: Its limits.
        spent: What calls are known to have cost.
        reserved: What calls in flight hold.
        uncertain: What is charged for calls of unknown outcome.
    """

    name: str
    limits: Limits
    spent: Amount
    reserved: Amount
    uncertain: Amount

    @property
    def remaining_usd(self) -> Decimal | None:
        """Dollars neither spent, nor reserved, nor uncertain; None without a dollar limit."""
        if self.limits.usd is None:
            return None
        used = self.spent.usd + self.reserved.usd + self.uncertain.usd
        return to_decimal(self.limits.usd - used)


def settled_share(state: AccountState) -> float:
    """The share of its limit that is spent or uncertain: of dollars, or else the largest other."""
    charged = Amount(*[a + b for a, b in zip(state.spent, state.uncertain, strict=True)])
    shares = {
        name: getattr(charged, name) / limit if limit else 1.0
        for name, limit in zip(Limits._fields, state.limits, strict=True)
        if limit is not None
    }
    return shares["usd"] if "usd" in shares else max(shares.values(), default=0.0)


def described(name: str, state: AccountState) -> str:
    """An account in a line of text, such as ``"team: $1.00 of $5.00 spent"``."""
    parts = []
    for quantity, limit in zip(Limits._fields, state.limits, strict=True):
        if limit is None:
            continue
        shown = format_usd if quantity == "usd" else "{:,}".format
        unit = "" if quantity == "usd" else f" {quantity.replace('_', ' ')}"
        spent, reserved, uncertain = (
            getattr(part, quantity) for part in (state.spent, state.reserved, state.uncertain)
        )
        parts.append(
            f"{shown(spent)} of {shown(limit)}{unit} spent"
            + (f", {shown(reserved)} reserved" if reserved else "")
            + (f", {shown(uncertain)} uncertain" if uncertain else "")
        )
    return f"{name}: {'; '.join(parts) or format_usd(state.spent_usd) + ' spent'}"


def outline(line: str, below: Sequence[Sequence[str]]) -> list[str]:
    """A line of text, and under it the lines of all below.

    Example:
        >>> outline("team", [["writer"], ["reader"]])
        ['team', '├─ writer', '└─ reader']
    """
    lines = [line]
    for left, (first, *rest) in enumerate(below, 1 - len(below)):
        lines.append(("├─ " if left else "└─ ") + first)
        lines += [("│  " if left else "   ") + each for each in rest]
    return lines

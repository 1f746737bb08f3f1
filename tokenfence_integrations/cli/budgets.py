"""``tokenfence budgets``: what a store keeps of each budget."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.cli.arguments import Commands
from tokenfence_integrations.cli.output import console, fail
from tokenfence_integrations.cli.stores import open_store
from tokenfence_integrations.engine.limits.names import budget_of
from tokenfence_integrations.engine.listing import Listed, listed, remaining
from tokenfence_integrations.errors import TokenFenceError
from tokenfence_integrations.money import format_usd, to_float

if TYPE_CHECKING:
    from rich.table import Table

    from tokenfence_integrations.stores.base import Store

__all__ = ["add", "run"]


def add(commands: Commands) -> None:
    """Add the command's arguments."""
    budgets = commands.add_parser(
        "budgets",
        help="the budgets of a store: limits, spent, reserved, uncertain, remaining",
        description="List the budgets that a store keeps, as a tree, each with its limits and what "
        "is used of them. Nothing is changed.",
    )
    budgets.add_argument(
        "budget",
        nargs="?",
        metavar="NAME",
        help="only this budget, such as acme/writer, and those below it",
    )
    budgets.add_argument(
        "--store", required=True, metavar="URL", help="such as sqlite:///budgets.db"
    )
    budgets.add_argument("--json", action="store_true", help="for programs: dollars, and counts")


def run(arguments: argparse.Namespace) -> int:
    """Print them as a tree, or as JSON."""
    try:
        store = open_store(arguments.store)
        found = listed(store, arguments.budget)
        if arguments.budget is not None and not found:
            return fail(_unknown_budget(arguments.budget, store))
    except (TokenFenceError, ValueError) as error:
        return fail(str(error))
    if arguments.json:
        print(json.dumps([_as_json(each) for each in found], indent=2))
    elif found:
        console().print(_budget_table(found))
    else:
        print("there are no budgets in it")
    return 0


def _unknown_budget(name: str, store: Store) -> str:
    names = sorted({budget_of(account) for account in store.accounts()})
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    told = f"there is no budget {name!r} in this store"
    return f"{told}; near are {', '.join(map(repr, near))}" if near else told


def _as_json(found: Listed) -> dict[str, Any]:
    state = found.state

    def told(parts: dict[str, int | None]) -> dict[str, float]:
        return {
            quantity: to_float(part) if quantity == "usd" else part
            for quantity, part in parts.items()
            if part is not None
        }

    return {
        "budget": found.budget,
        "window": found.window,
        "limits": told(state.limits._asdict()),
        "spent": told(state.spent._asdict()),
        "reserved": told(state.reserved._asdict()),
        "uncertain": told(state.uncertain._asdict()),
        "remaining": told(remaining(state)._asdict()),
    }


def _budget_table(found: Sequence[Listed]) -> Table:
    from rich.table import Table

    windows = any(each.window is not None for each in found)
    table = Table("budget", *(["window"] if windows else []))
    for header in ("limit", "spent", "reserved", "uncertain", "remaining"):
        table.add_column(header, justify="right")
    shown: list[str] = []
    for name, window, state in found:
        # The nearest of those above that is in the table, below which it is shown.
        while shown and name != shown[-1] and not name.startswith(f"{shown[-1]}/"):
            shown.pop()
        if not shown or name != shown[-1]:
            shown.append(name)
        above = f"{shown[-2]}/" if len(shown) > 1 else ""
        label = "  " * (len(shown) - 1) + name.removeprefix(above)
        parts = (state.limits, state.spent, state.reserved, state.uncertain, remaining(state))
        limited = [q for q, limit in state.limits._asdict().items() if limit is not None]
        quantities = dict.fromkeys(["usd", *limited])
        limits, *cells = [[_shown(q, getattr(part, q)) for q in quantities] for part in parts]
        limits = [
            text if quantity == "usd" else f"{text} {quantity.replace('_', ' ')}"
            for quantity, text in zip(quantities, limits, strict=True)
        ]
        texts = ["\n".join(lines) for lines in (limits, *cells)]
        table.add_row(label, *([window or ""] if windows else []), *texts)
    return table


def _shown(quantity: str, part: int | None) -> str:
    if part is None:
        return "–"
    return format_usd(part) if quantity == "usd" else f"{part:,}"

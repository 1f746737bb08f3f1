"""``tokenfence reconcile``: uncertain charges, and what becomes of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tokenfence_integrations.cli.arguments import Commands, duration, settlement
from tokenfence_integrations.cli.output import console, fail
from tokenfence_integrations.cli.stores import open_store
from tokenfence_integrations.errors import TokenFenceError
from tokenfence_integrations.money import format_usd

if TYPE_CHECKING:
    from rich.table import Table

    from tokenfence_integrations.reconcile.command import Report
    from tokenfence_integrations.reconcile.matching import Match

__all__ = ["add", "run"]


def add(commands: Commands) -> None:
    """Add the command's arguments."""
    reconcile = commands.add_parser(
        "reconcile",
        help="list uncertain charges, and settle those whose cost is known",
        description="List the calls that are charged although nobody knows whether they were "
        "billed, and replace those whose cost is known. Nothing is changed without --apply.",
    )
    reconcile.add_argument("url", nargs="?", metavar="STORE_URL", help="the same as --store")
    reconcile.add_argument("--store", metavar="URL", help="such as sqlite:///budgets.db")
    reconcile.add_argument("--budget", metavar="NAME", help="only of this budget and those below")
    reconcile.add_argument(
        "--older-than",
        type=duration,
        default=0.0,
        metavar="AGE",
        help="only of calls this old, such as 90s, 30m, 1h or 2d",
    )
    reconcile.add_argument(
        "--settle",
        type=settlement,
        action="append",
        default=[],
        metavar="ID=USD",
        help="the call cost this, such as 7=$0.0042 (repeatable)",
    )
    reconcile.add_argument(
        "--release",
        action="append",
        default=[],
        metavar="ID",
        help="the call was not billed (repeatable)",
    )
    reconcile.add_argument(
        "--from",
        dest="export",
        type=Path,
        metavar="CSV",
        help="a provider's usage export: settle what is certain by it",
    )
    reconcile.add_argument(
        "--ledger",
        type=Path,
        metavar="CSV",
        help="the file of a LedgerFile: which calls of the export are known; what is settled is "
        "added to it",
    )
    reconcile.add_argument(
        "--provider",
        default="openai",
        help="whose prices count where the export has no cost (default: %(default)s)",
    )
    reconcile.add_argument("--apply", action="store_true", help="do it, instead of showing it")


def run(arguments: argparse.Namespace) -> int:
    """Print what is uncertain and what it cost; with ``--apply``, settle it."""
    from tokenfence_integrations.reconcile import command

    if (arguments.url is None) == (arguments.store is None):
        return fail("give one store: --store sqlite:///budgets.db")
    screen = console()
    costs = dict(arguments.settle) | dict.fromkeys(arguments.release, 0)
    if len(costs) < len(arguments.settle) + len(arguments.release):
        return fail("a charge is named twice by --settle and --release")
    wanted = command.Wanted(
        budget=arguments.budget,
        older_than=arguments.older_than,
        settle=costs,
        export=arguments.export,
        ledger=arguments.ledger,
        provider=arguments.provider,
    )
    try:
        store = open_store(arguments.store or arguments.url)
        report = command.plan(store, wanted)
        gone = command.carry_out(store, report, arguments.ledger) if arguments.apply else []
    except (TokenFenceError, ValueError) as error:
        return fail(str(error))
    if report.matches:
        screen.print(_charge_table(report))
    for line in report.unread:
        screen.print(f"cannot be read: {line}", soft_wrap=True)
    screen.print(_outcome(report, gone, applied=arguments.apply), soft_wrap=True)
    return 1 if gone else 0


def _charge_table(report: Report) -> Table:
    from rich.table import Table

    table = Table("id", "budget", "model", "when (UTC)")
    table.add_column("charged", justify="right")
    table.add_column("cost", justify="right")
    table.add_column("why")
    for charge, spent, _, why in report.matches:
        when = datetime.fromtimestamp(charge.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        cost = "?" if spent is None else format_usd(spent.usd)
        charged = format_usd(charge.amount.usd)
        table.add_row(charge.id, charge.path[0], charge.what, when, charged, cost, why)
    return table


def _outcome(report: Report, gone: Sequence[Match], *, applied: bool) -> str:
    stay = [found for found in report.matches if found.spent is None]
    known = [found for found in report.matches if found.spent is not None and found not in gone]
    charged, left = (
        format_usd(sum(found.charge.amount.usd for found in each)) for each in (known, stay)
    )
    cost = format_usd(sum(found.spent.usd for found in known if found.spent is not None))
    parts = [f"{len(stay)} uncertain, {left} charged"]
    if known:
        verb = "settled" if applied else "to be settled"
        parts.append(f"{len(known)} {verb}: {charged} charged, {cost} true")
    if gone:
        ids = ", ".join(found.charge.id for found in gone)
        parts.append(f"{ids} left alone: not charged any more, so resolved by somebody else")
    if known and not applied:
        parts.append("nothing was changed; add --apply to do it")
    return "; ".join(parts)

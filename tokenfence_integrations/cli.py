"""The command line: ``tokenfence demo``, ``prices``, ``budgets`` and ``reconcile``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.engine.listing import Listed, listed, remaining
from tokenfence_integrations.engine.names import budget_of
from tokenfence_integrations.errors import TokenFenceError, UnknownModelError
from tokenfence_integrations.money import format_usd, parse_usd, to_float
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card, Rates

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tokenfence_integrations.reconcile.command import Report
    from tokenfence_integrations.reconcile.matching import Match
    from tokenfence_integrations.stores.base import Store

DISTRIBUTION = "tokenfence-integrations"

_OPTIONAL = frozenset({"aiohttp", "openai", "rich"})
_OF_STORES = frozenset({"psycopg", "redis"})

_TIERS = ("flex", "priority", "fast")
_PICO_PER_DOLLAR = 10**12
_MILLION = 10**6
_MS_PER_MINUTE = 60_000

# (header, kind of usage, the kind it is a part of, units that the price is shown for)
_COLUMNS = (
    ("input", "input", "", _MILLION),
    ("cached", "cached", "", _MILLION),
    ("cache write", "cache_write", "", _MILLION),
    ("output", "output", "", _MILLION),
    ("audio in", "input_audio", "input", _MILLION),
    ("audio out", "output_audio", "output", _MILLION),
    ("image in", "input_image", "input", _MILLION),
    ("image out", "output_image", "output", _MILLION),
    ("characters", "character", "", _MILLION),
    ("a call", "call", "", 1),
    ("a picture", "image", "", 1),
    ("a minute", "audio_ms", "", _MS_PER_MINUTE),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None (the default) takes those of the process.

    Returns:
        The exit code: 0; 1 if the demo's guarded run overspent, or a charge to be settled was gone;
        2 if what was asked for cannot be done; 130 if it was interrupted.

    Raises:
        SystemExit: The arguments are wrong (code 2), or ask for help or the version (code 0).

    Example:
        >>> main(["prices", "gpt-4o"])
    """
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in _OF_STORES:
            return _fail(str(error))  # which says what to install
        if library not in _OPTIONAL:
            raise
        extra = "demo" if arguments.command == "demo" else "cli"
        return _fail(f"{library} is not installed: pip install '{DISTRIBUTION}[{extra}]'")
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenfence", description="LLM budgets enforced inside the call chain."
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="ten concurrent calls under a budget for four, bare and guarded",
        description="Ask concurrent calls of gpt-4o twice, bare and guarded by a budget with "
        "gpt-4o-mini as the fallback. A small model on this machine answers; its tokens are "
        "priced as those of the models asked for. Exit code 1 if the guarded run overspent.",
    )
    provider = demo.add_mutually_exclusive_group()
    provider.add_argument(
        "--simulated", action="store_true", help="let the simulated provider answer"
    )
    provider.add_argument(
        "--live", action="store_true", help="use the real API, for real money (OPENAI_API_KEY)"
    )
    demo.add_argument(
        "--budget",
        type=_budget,
        metavar="USD",
        help="the guarded run's budget, such as $0.0035 (default: four times a bare call's cost)",
    )
    demo.add_argument("--calls", type=_positive, default=10, help="how many (default: %(default)s)")
    demo.add_argument(
        "--max-tokens",
        type=_positive,
        default=64,
        help="the longest answer that each call asks for (default: %(default)s)",
    )
    demo.add_argument(
        "--plain", action="store_true", help="print final tables only, instead of a live one"
    )

    prices = commands.add_parser(
        "prices",
        help="the rates that budgets reckon with",
        description="Show what models cost, as budgets reckon: in dollars per million tokens "
        "(characters), or for the one thing named.",
    )
    prices.add_argument("models", nargs="+", metavar="model", help="such as gpt-4o")
    prices.add_argument(
        "--provider",
        default="openai",
        help="whose models they are, such as azure, anthropic or google (default: %(default)s)",
    )

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

    reconcile = commands.add_parser(
        "reconcile",
        help="list uncertain charges, and settle those whose cost is known",
        description="List the calls that are charged although nobody knows whether they were "
        "billed, and replace those whose cost is known. Nothing is changed without --apply.",
    )
    reconcile.add_argument("store", metavar="STORE_URL", help="such as sqlite:///budgets.db")
    reconcile.add_argument("--budget", metavar="NAME", help="only of this budget and those below")
    reconcile.add_argument(
        "--older-than",
        type=_duration,
        default=0.0,
        metavar="AGE",
        help="only of calls this old, such as 90s, 30m, 1h or 2d",
    )
    reconcile.add_argument(
        "--settle",
        type=_settlement,
        action="append",
        default=[],
        metavar="ID=USD",
        help="the call did cost this, such as 7=$0.0042 (repeatable)",
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
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from tokenfence_integrations.demo.runner import DemoError, Settings, run_demo

    console = _console()
    settings = Settings(
        provider="live" if arguments.live else "simulated" if arguments.simulated else "real",
        budget=arguments.budget,
        calls=arguments.calls,
        max_tokens=arguments.max_tokens,
        plain=arguments.plain or not console.is_terminal,
    )
    book = PriceBook()
    try:
        kept = asyncio.run(
            run_demo(settings, console, lambda model, usage: book.card(model).cost(usage))
        )
    except DemoError as error:
        return _fail(str(error))
    return 0 if kept else 1


def _prices(arguments: argparse.Namespace) -> int:
    console = _console()
    book = PriceBook(provider=arguments.provider)
    code = 0
    for model in arguments.models:
        try:
            card = book.card(model)
        except UnknownModelError as error:
            code = _fail(_without_a_price(error))
            continue
        console.print(_title(card), _price_table(card), sep="\n", soft_wrap=True)
    return code


def _without_a_price(error: UnknownModelError) -> str:
    told = f"no price is known for model {error.model!r} of provider {error.provider!r}"
    if error.nearest:
        told += f"; nearest known: {', '.join(error.nearest)}"
    if error.elsewhere:
        others = ", ".join(f"--provider {provider}" for provider in error.elsewhere)
        told += f"; it is in the price lists of {others}"
    return told


def _budgets(arguments: argparse.Namespace) -> int:
    try:
        store = _open_store(arguments.store)
        found = listed(store, arguments.budget)
        if arguments.budget is not None and not found:
            return _fail(_unknown_budget(arguments.budget, store))
    except (TokenFenceError, ValueError) as error:
        return _fail(str(error))
    if arguments.json:
        print(json.dumps([_as_json(each) for each in found], indent=2))
    elif found:
        _console().print(_budget_table(found))
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


def _reconcile(arguments: argparse.Namespace) -> int:
    from tokenfence_integrations.reconcile import command

    console = _console()
    costs = dict(arguments.settle) | dict.fromkeys(arguments.release, 0)
    if len(costs) < len(arguments.settle) + len(arguments.release):
        return _fail("a charge is named twice by --settle and --release")
    wanted = command.Wanted(
        budget=arguments.budget,
        older_than=arguments.older_than,
        settle=costs,
        export=arguments.export,
        ledger=arguments.ledger,
        provider=arguments.provider,
    )
    try:
        store = _open_store(arguments.store)
        report = command.plan(store, wanted)
        gone = command.carry_out(store, report, arguments.ledger) if arguments.apply else []
    except (TokenFenceError, ValueError) as error:
        return _fail(str(error))
    if report.matches:
        console.print(_charge_table(report))
    for line in report.unread:
        console.print(f"cannot be read: {line}", soft_wrap=True)
    console.print(_outcome(report, gone, applied=arguments.apply), soft_wrap=True)
    return 1 if gone else 0


def _open_store(url: str) -> Store:
    from tokenfence_integrations.stores.urls import SQLITE, open_store

    if url == "memory:":
        raise ValueError(
            "'memory:' lives in its process alone: use budget.tree() and budget.charges() there"
        )
    if url.startswith(SQLITE) and not os.path.isfile(url.removeprefix(SQLITE)):
        raise ValueError(f"there is no file {url.removeprefix(SQLITE)}")
    return open_store(url)


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


_COMMANDS = {"demo": _demo, "prices": _prices, "budgets": _budgets, "reconcile": _reconcile}


def _price_table(card: Card) -> Table | str:
    from rich.table import Table

    rows = list(_rows(card))
    columns = [column for column in _COLUMNS if _is_worth_showing(column, [r for _, r in rows])]
    if not columns:
        return "free\n"
    table = Table("rates, $ per million")
    for header, *_ in columns:
        table.add_column(header, justify="right")
    for label, rates in rows:
        shown = (_dollars(getattr(rates, kind), units) for _, kind, _, units in columns)
        table.add_row(label, *shown)
    return table


def _rows(card: Card) -> Iterator[tuple[str, Rates]]:
    """The standard rates and those that differ from them, for each step of prompt lengths."""
    for above in (0, *card.thresholds):
        tokens = above + 1
        standard = card.rates(tokens)
        names: dict[Rates, list[str]] = {standard: ["standard"]}
        for tier in _TIERS:
            names.setdefault(card.rates(tokens, service_tier=tier), []).append(tier)
        names.setdefault(card.rates(tokens, batch=True), []).append("batch")
        names[standard] = ["standard"]
        for rates, sharing in names.items():
            yield ", ".join(sharing) + (f", input > {above:,}" if above else ""), rates


def _is_worth_showing(column: tuple[str, str, str, int], rows: Sequence[Rates]) -> bool:
    _, kind, whole, _ = column
    return any(getattr(rates, kind) != (getattr(rates, whole) if whole else 0) for rates in rows)


def _title(card: Card) -> str:
    limits = [
        f", {name} {tokens:,}"
        for name, tokens in (("context", card.context_window), ("answer", card.max_output_tokens))
        if tokens
    ]
    return f"{card.model} ({card.provider}){''.join(limits)}{' tokens at most' if limits else ''}"


def _dollars(pico: int, units: int) -> str:
    text = f"{pico * units / _PICO_PER_DOLLAR:.6f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<2}"


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(a source tree that is not installed)"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _budget(text: str) -> int:
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if amount == 0:
        raise argparse.ArgumentTypeError("a budget of nothing stops every call: give more than 0")
    return amount


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 90s, 30m, 1h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]]


def _settlement(text: str) -> tuple[str, int]:
    charge, _, cost = text.partition("=")
    try:
        return charge.strip(), parse_usd(cost)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no ID=USD: {error}") from error


def _fail(message: str) -> int:
    print(f"tokenfence: {message}", file=sys.stderr)
    return 2

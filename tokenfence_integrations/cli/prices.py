"""``tokenfence prices``: the rates that budgets reckon with."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokenfence_integrations.cli.arguments import Commands
from tokenfence_integrations.cli.output import console, fail
from tokenfence_integrations.errors import UnknownModelError
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card, Rates

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add", "run"]

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


def add(commands: Commands) -> None:
    """Add the command's arguments."""
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


def run(arguments: argparse.Namespace) -> int:
    """Print a table for each model."""
    screen = console()
    book = PriceBook(provider=arguments.provider)
    code = 0
    for model in arguments.models:
        try:
            card = book.card(model)
        except UnknownModelError as error:
            code = fail(_without_a_price(error))
            continue
        screen.print(_title(card), _price_table(card), sep="\n", soft_wrap=True)
    return code


def _without_a_price(error: UnknownModelError) -> str:
    told = f"no price is known for model {error.model!r} of provider {error.provider!r}"
    if error.nearest:
        told += f"; nearest known: {', '.join(error.nearest)}"
    if error.elsewhere:
        others = ", ".join(f"--provider {provider}" for provider in error.elsewhere)
        told += f"; it is in the price lists of {others}"
    return f"{told}. A budget takes prices of your own: guard(..., prices=...)"


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

"""``tokenfence demo``: concurrent calls, bare and guarded."""

from __future__ import annotations

import argparse
import asyncio

from tokenfence_integrations.cli.arguments import Commands, amount, positive
from tokenfence_integrations.cli.output import console, fail
from tokenfence_integrations.pricing.book import PriceBook

__all__ = ["add", "run"]


def add(commands: Commands) -> None:
    """Add the command's arguments."""
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
        type=amount,
        metavar="USD",
        help="the guarded run's budget, such as $0.0035 (default: four times a bare call's cost)",
    )
    demo.add_argument("--calls", type=positive, default=10, help="how many (default: %(default)s)")
    demo.add_argument(
        "--max-tokens",
        type=positive,
        default=64,
        help="the longest answer that each call asks for (default: %(default)s)",
    )
    demo.add_argument(
        "--plain", action="store_true", help="print final tables only, instead of a live one"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask, and tell whether the guarded run kept its budget."""
    from tokenfence_integrations.demo.runner import DemoError, Settings, run_demo

    screen = console()
    settings = Settings(
        provider="live" if arguments.live else "simulated" if arguments.simulated else "real",
        budget=arguments.budget,
        calls=arguments.calls,
        max_tokens=arguments.max_tokens,
        plain=arguments.plain or not screen.is_terminal,
    )
    book = PriceBook()
    try:
        kept = asyncio.run(
            run_demo(settings, screen, lambda model, usage: book.card(model).cost(usage))
        )
    except DemoError as error:
        return fail(str(error))
    return 0 if kept else 1

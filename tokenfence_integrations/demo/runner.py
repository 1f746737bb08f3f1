"""Run the scenario twice, bare and guarded, and show it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import openai
from rich.console import Console, RenderableType
from rich.live import Live

from tokenfence_integrations import async_guard
from tokenfence_integrations.demo import scenario
from tokenfence_integrations.demo.real_model import RealModel
from tokenfence_integrations.demo.scenario import Call, PriceOf, State, total_cost
from tokenfence_integrations.demo.table import BudgetBar, dollars, frame

MODEL = "gpt-4o"
FALLBACK = "gpt-4o-mini"

ProviderName = Literal["real", "simulated", "live"]


class DemoError(Exception):
    """The demo cannot be run as asked; the message says what to do."""


@dataclass(frozen=True)
class Provider:
    """Where the calls go.

    Args:
        description: What answers there, for the person who watches.
        base_url: Its address, or None for the real API's.
        api_key: What to show it.
    """

    description: str
    base_url: str | None
    api_key: str


@dataclass(frozen=True)
class Settings:
    """What the demo is asked to do.

    Args:
        provider: ``"real"`` (a small model on this machine), ``"simulated"`` or ``"live"``.
        budget: The guarded run's budget in nano-dollars, or None to pay for about four calls.
        calls: How many calls there are, all at once. Default 10.
        max_tokens: The longest answer that each asks for, in tokens. Default 64.
        plain: Print each table once, when it is final, instead of a live one. Default False.
    """

    provider: ProviderName = "real"
    budget: int | None = None
    calls: int = 10
    max_tokens: int = 64
    plain: bool = False


async def run_demo(settings: Settings, console: Console, price: PriceOf) -> bool:
    """Run the scenario bare, then guarded, and print both and their sums.

    Args:
        settings: What to run.
        console: Where to print.
        price: What the usage of a model costs, in nano-dollars.

    Returns:
        Whether the guarded run kept its budget, by the usage that the server reported.

    Raises:
        DemoError: The provider cannot be used, or answered no bare call.
    """
    with _provider(settings, console) as provider:
        console.print(
            f"{settings.calls} concurrent calls to {MODEL}, every second one streamed, "
            f"answered by {provider.description}\n"
        )
        local = provider.base_url is not None
        client = openai.AsyncOpenAI(
            base_url=provider.base_url,
            api_key=provider.api_key,
            max_retries=0,
            http_client=scenario.watched_http_client(local=local),
        )
        async with client:
            bare = _plan(settings)
            await _show(
                console,
                settings,
                lambda: frame("bare: nothing watches the money", bare),
                scenario.run(client, bare, price),
            )
            limit = settings.budget or _budget_for(bare)
            guarded_client = async_guard(
                client, budget=dollars(limit, 9), fallback=FALLBACK, on_limit="stop"
            )
            account = guarded_client.tokenfence

            def bar() -> BudgetBar:
                return BudgetBar(_nanos(account.spent), _nanos(account.reserved), limit)

            guarded = _plan(settings)
            title = f'guarded: budget="{dollars(limit)}", fallback="{FALLBACK}"'
            console.print()
            await _show(
                console,
                settings,
                lambda: frame(title, guarded, bar()),
                scenario.run(guarded_client, guarded, price),
            )
    return _conclude(console, bare, guarded, limit=limit, booked=_nanos(account.spent))


def _conclude(
    console: Console, bare: Sequence[Call], guarded: Sequence[Call], *, limit: int, booked: int
) -> bool:
    billed = total_cost(guarded)
    if billed != booked:
        console.print(
            f"the guard booked {dollars(booked, 9)}, the server's usage is {dollars(billed, 9)}"
        )
    console.print(
        f"\nspent {dollars(billed)} of {dollars(limit)}; "
        f"bare would have spent {dollars(total_cost(bare))}"
    )
    return max(billed, booked) <= limit


def _plan(settings: Settings) -> list[Call]:
    return scenario.plan(MODEL, calls=settings.calls, max_tokens=settings.max_tokens)


def _budget_for(bare: Sequence[Call]) -> int:
    try:
        return scenario.budget_for(bare)
    except ValueError as error:
        reason = next((call.error for call in bare if call.state is State.FAILED), "no answer")
        raise DemoError(f"{error}: {reason}") from error


def _nanos(amount: float) -> int:
    return round(amount * 1e9)


async def _show(
    console: Console,
    settings: Settings,
    picture: Callable[[], RenderableType],
    work: Awaitable[None],
) -> None:
    """Do the work, showing the picture as it changes, or once at the end."""
    if settings.plain:
        await work
        console.print(picture())
        return
    with Live(get_renderable=picture, console=console, refresh_per_second=8):
        await work


@contextlib.contextmanager
def _provider(settings: Settings, console: Console) -> Iterator[Provider]:
    if settings.provider == "live":
        yield _live_provider()
        return
    reason = None if settings.provider == "simulated" else RealModel.available()
    if reason is not None:
        console.print(f"no real model on this machine ({reason}); using the simulated provider")
    if settings.provider == "simulated" or reason is not None:
        from tokenfence_integrations.testing import SimulatedProvider

        # Answers as long as asked for, as those of the real model are; and not at once, so that
        # calls are seen to wait for those in flight.
        with SimulatedProvider(output_tokens=settings.max_tokens, latency=0.5) as simulated:
            yield Provider("the simulated provider", simulated.base_url, "unused")
        return
    with RealModel(n_parallel=settings.calls) as model:
        yield Provider("SmolLM2-135M on this machine", model.base_url, "unused")


def _live_provider() -> Provider:
    api_key = os.environ.get("OPENAI_API_KEY")
    if not api_key:
        raise DemoError(
            "OPENAI_API_KEY is not set: export it to spend real money on the real API, "
            "or leave out --live to use a small model on this machine"
        )
    return Provider("the real API, for real money", None, api_key)

"""How much of a budget gets used, and how long that takes: `python -m benchmarks.use_of_budget`.

Exact fit: calls of known size, and a budget for exactly some of them. Heavy tail: answers of
lognormal length without any maximum, and budgets below and above what they truly cost. The budgets
come from the bill of the same calls made bare. The provider is simulated, in another process.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.crowd import Crowd, Request, Tasks, Threads
from benchmarks.table import Figure, failures, figures_table, machine
from benchmarks.wishes import SCRIPT, wish
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.money import to_decimal
from tokenfence_integrations.pricing.book import book_of
from tokenfence_integrations.testing import SpawnedProvider, spawn_provider

__all__ = ["LEVELS", "Level", "Run", "exact_fit", "heavy_tail", "lengths", "main"]

MODELS = ("gpt-4o", "gpt-5")
CALLS = 100
MESSAGES = [{"role": "user", "content": "Tell me about the city that is the capital of France."}]
WAIT = 600.0  # seconds; at half the true cost, calls queue for longer than the default of 60

# Lognormal: its median is e^mu, its 99th percentile e^(mu + 2.326 sigma).
MEDIAN, P99 = 300, 4_000
MU = math.log(MEDIAN)
SIGMA = (math.log(P99) - MU) / 2.326


class Level(NamedTuple):
    """A budget, and the bars of what is measured with it; None: no bar.

    Args:
        name: What it is called.
        multiple: The budget, as a multiple of what the calls truly cost.
        pace: The server's latency, as a multiple of the one asked for: runs of many rounds, whose
            time has no bar, are made shorter; the one with the tightest bar is also run longer,
            where what the client itself takes for a hundred calls weighs less.
        used: At least this much of the budget is spent, in percent.
        refused: At most this many calls are refused.
        cut: At most so many of the calls are cut short by a cap of ours, in percent.
        slowdown: At most this is the makespan over that of the bare calls.
        pairs: Pairs of a bare and a guarded run per draw of lengths; a tight bar needs more.
    """

    name: str
    multiple: float
    pace: float = 1.0
    used: float | None = None
    refused: int | None = None
    cut: float | None = None
    slowdown: float | None = None
    pairs: int = 1


LEVELS = (
    Level("half the cost", 0.5, pace=0.3, used=90),
    Level("twice the cost", 2, refused=0, cut=2, slowdown=8),
    Level("ten times the cost", 10, refused=0, cut=2, slowdown=1.2, pairs=3),
    Level("ten times, long answers", 10, pace=10, refused=0, cut=2, slowdown=1.2),
)


WITHOUT_BARS = [Level(level.name, level.multiple, level.pace) for level in LEVELS]


class Run(NamedTuple):
    """What became of some calls.

    Args:
        bill: Nano-dollars on the server's bill.
        landed: Calls on the server's bill.
        refused: Calls that were not let through.
        cut: Calls that a cap of ours cut short, by the ledger.
        waited: The longest that a call waited for the budget, in seconds, by the ledger.
        seconds: Makespan.
    """

    bill: int
    landed: int
    refused: int
    cut: int
    waited: float
    seconds: float


class Pair(NamedTuple):
    """The same calls bare and guarded, one right after the other, and the budget of the latter."""

    bare: Run
    guarded: Run
    budget: int


def lengths(model: str, seed: int, calls: int) -> list[int]:
    """Output tokens that the answers would have: lognormal, at most the model's ceiling."""
    draw = random.Random(seed)
    ceiling = book_of().card(model).max_output_tokens or math.inf
    wanted = (max(1, round(math.exp(draw.gauss(MU, SIGMA)))) for _ in range(calls))
    return [int(min(length, ceiling)) for length in wanted]


def measure(
    provider: SpawnedProvider,
    crowd: Crowd,
    model: str,
    answers: Sequence[int],
    *,
    latency: float,
    cap: int | None = None,
    budget: int | None = None,
) -> Run:
    """Make calls at the same time.

    Args:
        provider: The simulated provider; its bill is emptied before.
        crowd: Who makes the calls.
        model: The model asked for.
        answers: The answers' lengths in tokens, one per call.
        latency: Seconds that each answer takes, whatever its length.
        cap: The calls' own output maximum; None: they have none.
        budget: Nano-dollars; None: the calls are made bare.
    """
    # First the server's own preparations, then a client without connections: the runs that are
    # compared must not differ by who came first. A pool looks at all of its idle connections at the
    # start and the end of every request, so a hundred that are left of the run before cost seconds.
    crowd.call(crowd.client, [_request(model, length, 0.01, cap) for length in answers])
    crowd.reconnect()
    provider.clear()
    held = None if budget is None else Budget(to_decimal(budget))
    client = crowd.client
    if held is not None:
        # Exact counting, which is the default with OpenAI itself, is right for this server too.
        client = guard(client, budget=held, on_limit="raise", wait=WAIT, exact_input=True)
    begun = time.perf_counter()
    outcomes = crowd.call(client, [_request(model, length, latency, cap) for length in answers])
    seconds = time.perf_counter() - begun
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, BudgetExceeded):
            raise outcome
    bill = provider.bill
    return Run(
        bill=sum(line.cost for line in bill),
        landed=len(bill),
        refused=sum(outcome is not None for outcome in outcomes),
        cut=0 if held is None else sum(record.truncated for record in held.ledger),
        waited=0.0 if held is None else max((r.waited for r in held.ledger), default=0.0),
        seconds=seconds,
    )


def _request(model: str, length: int, latency: float, cap: int | None) -> Request:
    fields = {
        "model": model,
        "messages": MESSAGES,
        "extra_headers": wish(output_tokens=length, latency=latency),
    }
    return Request(fields if cap is None else {**fields, "max_completion_tokens": cap})


def exact_fit(
    provider: SpawnedProvider,
    crowd: Crowd,
    model: str,
    *,
    fits: Sequence[int] = (4, 100),
    calls: int = CALLS,
    latency: float = 0.05,
) -> Iterator[Figure]:
    """A budget for exactly some calls of known size: how many land, and what is billed.

    Args:
        provider: The simulated provider.
        crowd: Who makes the calls.
        model: The model asked for.
        fits: For how many calls each budget is.
        calls: Calls made at the same time.
        latency: Seconds.
    """
    cap = 300
    one = measure(provider, crowd, model, [cap], latency=0.0, cap=cap).bill
    for fit in fits:
        budget = fit * one
        run = measure(
            provider, crowd, model, [cap] * calls, latency=latency, cap=cap, budget=budget
        )
        name = f"budget for exactly {fit}"
        yield Figure(f"{name}: landed of {calls}", run.landed, at_least=fit, at_most=fit)
        yield Figure(f"{name}: bill / budget", run.bill / budget, at_least=1, at_most=1)


def heavy_tail(
    provider: SpawnedProvider,
    crowd: Crowd,
    model: str,
    *,
    seeds: Sequence[int],
    calls: int = CALLS,
    latency: float = 1.0,
    levels: Sequence[Level] = LEVELS,
) -> Iterator[Figure]:
    """Answers of lognormal length without a maximum, under budgets below and above their cost.

    Args:
        provider: The simulated provider.
        crowd: Who makes the calls.
        model: The model asked for.
        seeds: Of the lengths, one draw each.
        calls: Calls made at the same time.
        latency: Seconds that each answer takes.
        levels: The budgets, and their bars.
    """
    for level in levels:
        pairs = []
        for seed in seeds:
            answers, pause = lengths(model, seed, calls), latency * level.pace
            for _ in range(level.pairs):
                bare = measure(provider, crowd, model, answers, latency=pause)
                budget = round(bare.bill * level.multiple)
                guarded = measure(provider, crowd, model, answers, latency=pause, budget=budget)
                pairs.append(Pair(bare, guarded, budget))
        yield from _level_figures(level, pairs, calls)


def _level_figures(level: Level, pairs: Sequence[Pair], calls: int) -> Iterator[Figure]:
    used = [pair.guarded.bill / pair.budget * 100 for pair in pairs]
    overspent = [max(0, pair.guarded.bill - pair.budget) for pair in pairs]
    refused = [pair.guarded.refused for pair in pairs]
    cut = [pair.guarded.cut / calls * 100 for pair in pairs]
    slowdown = [pair.guarded.seconds / pair.bare.seconds for pair in pairs]
    yield Figure(
        f"{level.name}: budget used", min(used), " %", at_least=level.used, detail=_median(used)
    )
    yield Figure(f"{level.name}: overspent", max(overspent), " nano-$", at_most=0)
    yield Figure(
        f"{level.name}: refused", max(refused), at_most=level.refused, detail=_median(refused)
    )
    yield Figure(f"{level.name}: cut short", max(cut), " %", at_most=level.cut, detail=_median(cut))
    waited = [pair.guarded.waited for pair in pairs]
    yield Figure(f"{level.name}: longest wait", max(waited), " s", detail=_median(waited))
    # Counts hold for the worst draw. Times are of a machine that does other things, too.
    yield Figure(
        f"{level.name}: makespan / bare",
        statistics.median(slowdown),
        "x",
        at_most=level.slowdown,
        detail=f"median; worst {max(slowdown):.2f}",
    )


def _median(values: Sequence[float]) -> str:
    return f"worst; median {statistics.median(values):.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.use_of_budget", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="draws of lengths")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of each answer")
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args(arguments)
    fits = (min(4, options.calls), options.calls)
    missed = []

    def show(title: str, figures: list[Figure]) -> None:
        print(figures_table(title, figures), flush=True)
        missed.extend(failures(figures))

    with (
        spawn_provider(script=SCRIPT) as provider,
        Tasks(provider.base_url) as tasks,
        Threads(provider.base_url) as threads,
    ):
        crowds: dict[str, Crowd] = {"asyncio.gather": tasks, "32 threads": threads}
        print(f"{machine()}; {options.calls} calls at the same time")
        for model in options.models:
            for name, crowd in crowds.items():
                fit = exact_fit(provider, crowd, model, fits=fits, calls=options.calls)
                show(f"Exact fit, {model}, {name}", list(fit))
        tail = partial(heavy_tail, provider, calls=options.calls)
        for model in options.models:
            seeds = range(options.seeds)
            figures = list(tail(tasks, model, seeds=seeds, latency=options.latency))
            show(f"Heavy tail, {model}, asyncio.gather, {len(seeds)} draws", figures)
        for model in options.models:
            latency = 0.3 * options.latency
            figures = list(tail(threads, model, seeds=[0], latency=latency, levels=WITHOUT_BARS))
            show(f"Heavy tail, {model}, 32 threads, one draw", figures)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

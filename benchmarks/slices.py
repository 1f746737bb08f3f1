"""What slices save, in each store, and what they hold: `python -m benchmarks.slices`.

A pair is a reservation and its end, on a child and its parent. Pairs are made in batches, without
slices and with them in turn, on the same server or file, so that what slows the machine down slows
both. The ceiling is the memory store, in the same turns. Then the same with `budget.reserve()`,
which does more than the store.

The servers are on this machine: a round trip takes a tenth of a millisecond. It takes longer over a
network, and slices save more. The curves are from a simulation: see `curve`.
"""

import argparse
import operator
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.curve import curve, curve_table, draw
from benchmarks.overhead import AMOUNT, PRICES, SPENT, USAGE
from benchmarks.table import Figure, failures, figures_table, machine
from tokenfence_integrations import Budget
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.stores.base import NOTHING, Limits, Open, Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.slices import SlicedStore
from tokenfence_integrations.stores.sqlite import SQLiteStore

__all__ = ["STORES", "Timed", "main", "slice_figures", "timed"]

BAR = 50.0  # pairs a second with slices / without
SLICE = "2%"
BATCHES = 20
FASTER = 20  # pairs with slices, and in memory, for each one without
PATH = ("slices/leaf", "slices")
LIMIT = Limits(usd=10**18)


class Timed(NamedTuple):
    """Seconds that each pair took, by batch."""

    without: list[list[float]]
    sliced: list[list[float]]
    in_memory: list[list[float]]


@contextmanager
def _sqlite() -> Iterator[Store]:
    with TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "budgets.db")
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _redis() -> Iterator[Store]:
    from tests.stores.factories import new_prefix
    from tests.stores.servers import redis_server
    from tokenfence_integrations.stores.redis import RedisStore

    store = RedisStore(redis_server("valkey8").url, prefix=new_prefix())
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _postgres() -> Iterator[Store]:
    from tests.stores.postgres_servers import address, new_schema
    from tokenfence_integrations.stores.postgres import PostgresStore

    store = PostgresStore(address(), schema=new_schema())
    try:
        yield store
    finally:
        store.close()


STORES = {"SQLite": _sqlite, "Redis": _redis, "PostgreSQL": _postgres}
"""Each makes a new store, on a server of its own where it needs one."""


def slice_figures(name: str, pairs: int) -> list[Figure]:
    """Pairs a second with slices over those without, and percentiles.

    Args:
        name: A key of `STORES`.
        pairs: How many without slices; the others are more.
    """
    with STORES[name]() as store:
        sliced, memory = SlicedStore(store, SLICE), MemoryStore()
        for each in (store, memory):
            for account in PATH:
                each.execute(Open(account, LIMIT))
        try:
            times = timed(_pair(store), _pair(sliced), _pair(memory), pairs)
            public = timed(
                _public(Budget("$1000000000", name="plain", store=store)),
                _public(Budget("$1000000000", name="sliced", store=sliced)),
                _public(Budget("$1000000000", name="memory")),
                pairs,
            )
        finally:
            sliced.give_back()
    return [
        *_figures(f"{name}, the store", times, BAR),
        *_figures(f"{name}, budget.reserve()", public, None),
    ]


def timed(
    without: Callable[[], None],
    sliced: Callable[[], None],
    in_memory: Callable[[], None],
    pairs: int,
) -> Timed:
    """Make pairs of the three kinds in turn, batch by batch.

    Args:
        without: A pair without slices.
        sliced: One with them.
        in_memory: One in the memory store.
        pairs: How many without slices.
    """
    times = Timed([], [], [])
    batch = max(1, pairs // BATCHES)
    for number in range(BATCHES + 1):
        turn = (
            _seconds(without, batch),
            _seconds(sliced, batch * FASTER),
            _seconds(in_memory, batch * FASTER),
        )
        if number:  # the first one makes connections, and borrows
            for kept, seconds in zip(times, turn, strict=True):
                kept.append(seconds)
    return times


def _figures(name: str, times: Timed, bar: float | None) -> list[Figure]:
    without, sliced, in_memory = ([len(each) / sum(each) for each in batches] for batches in times)
    gain, ceiling = (
        statistics.median(map(operator.truediv, rates, without)) for rates in (sliced, in_memory)
    )
    rates = [statistics.median(each) for each in (sliced, without, in_memory)]
    note = "{:,.0f}/s, without {:,.0f}/s; in memory {:,.0f}/s".format(*rates)
    note += f", {ceiling:.0f}x" if bar is None or ceiling >= bar else f", {ceiling:.0f}x at best"
    if bar is not None and ceiling < bar:  # nothing that runs in this process could keep it
        bar = None
    return [
        Figure(f"{name}: pairs a second", gain, "x", at_least=bar, detail=note),
        Figure(f"{name}: p50", _p(50, times.sliced), " µs", detail=_beside(50, times)),
        Figure(f"{name}: p99", _p(99, times.sliced), " µs", detail=_beside(99, times)),
    ]


def _beside(percent: int, times: Timed) -> str:
    return f"without {_p(percent, times.without):,.1f} µs"


def _pair(store: Store) -> Callable[[], None]:
    numbers = count(1)

    def pair() -> None:
        number = next(numbers)
        assert store.reserve(PATH, number, AMOUNT).done
        store.end(PATH, number, SPENT, NOTHING)

    return pair


def _public(budget: Budget) -> Callable[[], None]:
    book = PriceBook(PRICES)

    def pair() -> None:
        with budget.reserve(
            model="own", input_tokens=1_000, max_output_tokens=500, prices=book
        ) as call:
            call.settle(USAGE)

    return pair


def _seconds(work: Callable[[], None], times: int) -> list[float]:
    clock, seconds = time.perf_counter, []
    for _ in range(times):
        begun = clock()
        work()
        seconds.append(clock() - begun)
    return seconds


def _p(percent: int, batches: Sequence[Sequence[float]]) -> float:
    seconds = [each for batch in batches for each in batch]
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slices", description=__doc__)
    parser.add_argument("--pairs", type=int, default=4_000, help="of each kind without slices")
    parser.add_argument("--calls", type=int, default=600, help="of each simulated worker")
    parser.add_argument("--plot", type=Path, help="a file to draw the curves in, such as a .svg")
    options = parser.parse_args(arguments)
    figures = [figure for name in STORES for figure in slice_figures(name, options.pairs)]
    print(figures_table(f"What slices of {SLICE} save ({machine()})", figures))
    points = curve(options.calls)
    print(curve_table(points))
    if options.plot is not None:
        draw(points, options.plot)
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

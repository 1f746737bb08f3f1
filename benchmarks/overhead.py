"""What a guarded call costs beside a bare one: `python -m benchmarks.overhead`.

Calls are measured in pairs, a bare one and a guarded one through the same connection pool, in turn
first, and the figure is the median of the pairs' ratios: what slows the whole machine down slows
both of a pair. Where a process happens to have things in memory shifts that by a percent, so it is
the median of several processes. Rates are medians over many short batches, which a busy machine
disturbs the least.
"""

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import openai

from benchmarks.instant import CHUNKS, instant_server
from benchmarks.table import Figure, failures, figures_table, machine
from tokenfence_integrations import Budget, Price, Usage, async_guard, guard
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.stores.base import NOTHING, Amount, Limits, Open
from tokenfence_integrations.stores.memory import MemoryStore

__all__ = [
    "MODEL",
    "PROCESSES",
    "PROMPTS",
    "Pair",
    "achunks_time",
    "apaired",
    "atime",
    "call_figures",
    "call_time",
    "chunks_time",
    "fewer",
    "import_figure",
    "in_fresh_processes",
    "main",
    "paired",
    "rate_figures",
    "ratio_figure",
]

CALL_BAR = 1.05  # guarded / bare
RATE_BAR = 200_000.0  # reserve+settle per second
AGED_BAR = 1.1  # time per reserve+settle after a million of them / at first; noise is a few percent
IMPORT_BAR = 50.0  # milliseconds

PROCESSES = 5

MODEL = "gpt-4o"
LINE = [{"role": "user", "content": "What is the capital of France?"}]
CONVERSATION = [
    {
        "role": ("user", "assistant")[number % 2],
        "content": f"Message {number}: " + "the quick brown fox jumps over the lazy dog. " * 5,
    }
    for number in range(199)
] + LINE
PROMPTS = {"one line": LINE, "200 messages": CONVERSATION}

PRICES = {"own": Price(input="$1/M", output="$2/M", max_output_tokens=4096)}
USAGE = Usage(input_tokens=800, output_tokens=300)
AMOUNT = Amount(2_000_000, 1, 1_000, 500)
SPENT = Amount(1_400_000, 1, 800, 300)
BATCH = 1_000


class Pair(NamedTuple):
    """Seconds that a bare and a guarded call took, one right after the other."""

    bare: float
    guarded: float


def call_time(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


async def atime(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds that a call takes that is awaited."""
    begun = time.perf_counter()
    await call()
    return time.perf_counter() - begun


def chunks_time(stream: Iterable[object]) -> float:
    """Seconds from the first chunk of a stream to its end."""
    chunks = iter(stream)
    next(chunks)
    begun = time.perf_counter()
    for _ in chunks:
        pass
    return time.perf_counter() - begun


async def achunks_time(stream: AsyncIterable[object]) -> float:
    """Seconds from the first chunk of an async stream to its end."""
    chunks = aiter(stream)
    await anext(chunks)
    begun = time.perf_counter()
    async for _ in chunks:
        pass
    return time.perf_counter() - begun


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside the block, as `timeit` does it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratio_figure(
    name: str, pairs: Sequence[Pair], per: int = 1, at_most: float = CALL_BAR
) -> Figure:
    """The median of the pairs' ratios, and the median times of which it is made."""
    bare, guarded = (statistics.median(side) / per * 1e6 for side in zip(*pairs, strict=True))
    return Figure(
        name,
        statistics.median(pair.guarded / pair.bare for pair in pairs),
        "x",
        at_most=at_most,
        detail=f"bare {bare:.1f} µs, guarded {guarded:.1f} µs",
    )


def in_fresh_processes(
    figures_of: Callable[[int], Sequence[Figure]], rounds: int, processes: int
) -> list[Figure]:
    """Measure in several processes, one after the other; of each figure the median.

    Args:
        figures_of: Measures, given the rounds; a function of a module.
        rounds: All processes together.
        processes: How many; 1 measures in this one.
    """
    if processes == 1:
        return [*figures_of(rounds)]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        runs = list(fresh.map(figures_of, [max(1, rounds // processes)] * processes))
    return [_middle(figures) for figures in zip(*runs, strict=True)]


def _middle(figures: Sequence[Figure]) -> Figure:
    """The figure in the middle, and how far the others are from it."""
    ordered = sorted(figures, key=lambda figure: figure.measured)
    least, middle, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    spread = f"{least.measured:.3f} to {most.measured:.3f} in {len(ordered)} processes"
    return middle._replace(detail=f"{middle.detail}; {spread}")


def paired(bare: Callable[[], float], guarded: Callable[[], float], rounds: int) -> list[Pair]:
    """Measure two things in turn, the one or the other first.

    Args:
        bare: Makes one bare call; returns its seconds.
        guarded: The same, guarded.
        rounds: Pairs; a tenth of that goes before, unmeasured.
    """
    pairs = []
    with collector_off():
        for number in range(-(rounds // 10), rounds):
            if number % 2:
                pair = Pair(bare(), guarded())
            else:
                second = guarded()
                pair = Pair(bare(), second)
            if number >= 0:
                pairs.append(pair)
    return pairs


async def apaired(
    bare: Callable[[], Awaitable[float]], guarded: Callable[[], Awaitable[float]], rounds: int
) -> list[Pair]:
    """As `paired`, awaited."""
    pairs = []
    with collector_off():
        for number in range(-(rounds // 10), rounds):
            if number % 2:
                pair = Pair(await bare(), await guarded())
            else:
                second = await guarded()
                pair = Pair(await bare(), second)
            if number >= 0:
                pairs.append(pair)
    return pairs


def call_figures(rounds: int) -> list[Figure]:
    """Guarded calls over bare ones: sync and async, short and long prompts, streams.

    Args:
        rounds: Pairs of calls; long prompts and streams, which take longer, get an eighth.
    """
    with instant_server() as base_url:
        return [
            *_sync_figures(base_url, rounds),
            *asyncio.run(_async_figures(base_url, rounds)),
        ]


def _sync_figures(base_url: str, rounds: int) -> list[Figure]:
    def ask(client: Any, messages: Any) -> float:
        create = client.chat.completions.create
        return call_time(lambda: create(model=MODEL, messages=messages))

    def read(client: Any) -> float:
        return chunks_time(client.chat.completions.create(model=MODEL, messages=LINE, stream=True))

    figures = []
    with openai.OpenAI(base_url=base_url, api_key="unused") as bare:
        guarded = guard(bare, budget="$1000000")
        for name, messages in PROMPTS.items():
            pairs = paired(
                partial(ask, bare, messages),
                partial(ask, guarded, messages),
                fewer(rounds, messages),
            )
            figures.append(ratio_figure(f"call, sync, {name}", pairs))
        pairs = paired(partial(read, bare), partial(read, guarded), max(1, rounds // 8))
        figures.append(ratio_figure("stream, sync, per chunk", pairs, CHUNKS - 1))
    return figures


async def _async_figures(base_url: str, rounds: int) -> list[Figure]:
    async def ask(client: Any, messages: Any) -> float:
        create = client.chat.completions.create
        return await atime(lambda: create(model=MODEL, messages=messages))

    async def read(client: Any) -> float:
        return await achunks_time(
            await client.chat.completions.create(model=MODEL, messages=LINE, stream=True)
        )

    figures = []
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as bare:
        guarded = async_guard(bare, budget="$1000000")
        for name, messages in PROMPTS.items():
            pairs = await apaired(
                partial(ask, bare, messages),
                partial(ask, guarded, messages),
                fewer(rounds, messages),
            )
            figures.append(ratio_figure(f"call, async, {name}", pairs))
        pairs = await apaired(partial(read, bare), partial(read, guarded), max(1, rounds // 8))
        figures.append(ratio_figure("stream, async, per chunk", pairs, CHUNKS - 1))
    return figures


def rate_figures(total: int) -> list[Figure]:
    """Reserve+settle per second in one thread, without any network.

    Args:
        total: How many of them; the first and the last tenth are compared.
    """
    levels = {
        "in the store": store_steps(),
        "in the engine": engine_steps(),
        "public: with budget.reserve() ...": public_steps(),
    }
    figures = []
    for name, step in levels.items():
        seconds = _batches(step, total)
        tenth = max(1, len(seconds) // 10)
        # The fastest batch of each: a neighbour on the machine slows some batches, growth all.
        first, last = min(seconds[:tenth]), min(seconds[-tenth:])
        rate = BATCH / statistics.median(seconds)
        figures += [
            Figure(
                f"reserve+settle {name}",
                rate,
                "/s",
                at_least=RATE_BAR,
                detail=f"{1e6 / rate:.2f} µs each, best batch {BATCH / min(seconds):,.0f}/s",
            ),
            Figure(
                f"  after {total:,}: time of the last tenth / first",
                last / first,
                "x",
                at_most=AGED_BAR,
            ),
        ]
    return figures


def _batches(step: Callable[[], None], total: int) -> list[float]:
    clock, batch = time.perf_counter, range(BATCH)
    seconds = []
    with collector_off():
        for _ in range(max(1, total // BATCH)):
            begun = clock()
            for _ in batch:
                step()
            seconds.append(clock() - begun)
    return seconds


def store_steps() -> Callable[[], None]:
    """One reservation and its end, as commands to the memory store."""
    store, path, numbers = MemoryStore(), ("budget",), count(1)
    store.execute(Open("budget", Limits(usd=10**18)))

    def step() -> None:
        number = next(numbers)
        store.reserve(path, number, AMOUNT)
        store.end(path, number, SPENT, NOTHING)

    return step


def engine_steps() -> Callable[[], None]:
    """One call's life: its bound, its admission, its settlement, its ledger record."""
    budget, policy, book = Budget("$1000000000"), Policy(), PriceBook(PRICES)
    request = CallRequest("own", lambda card: 1_000, max_output_tokens=500)

    def step() -> None:
        call = Call(budget, request, policy, book)
        call.admit()
        call.settle(USAGE)

    return step


def public_steps() -> Callable[[], None]:
    """The same through the public context manager."""
    budget, book = Budget("$1000000000"), PriceBook(PRICES)

    def step() -> None:
        with budget.reserve(
            model="own", input_tokens=1_000, max_output_tokens=500, prices=book
        ) as call:
            call.settle(USAGE)

    return step


def import_figure(rounds: int) -> Figure:
    """Milliseconds that `import tokenfence_integrations` takes, above those of Python itself.

    The package is compiled before, as it is wherever it was installed or imported once.
    """
    bare, package = "pass", "import tokenfence_integrations"
    with TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _python(package, environment)
        pairs = [
            Pair(_python(bare, environment), _python(package, environment)) for _ in range(rounds)
        ]
    differences = [(pair.guarded - pair.bare) * 1e3 for pair in pairs]
    return Figure(
        "import tokenfence_integrations",
        statistics.median(differences),
        " ms",
        at_most=IMPORT_BAR,
        detail=f"best {min(differences):.1f} ms of {rounds}",
    )


def _python(code: str, environment: Mapping[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.perf_counter() - begun


def fewer(rounds: int, messages: Sequence[Any]) -> int:
    """Fewer rounds of a long prompt, whose bare call takes twenty times as long."""
    return rounds if len(messages) == 1 else max(1, rounds // 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000, help="pairs of calls")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="that share the rounds")
    parser.add_argument("--reservations", type=int, default=1_000_000)
    parser.add_argument("--imports", type=int, default=21)
    options = parser.parse_args(arguments)
    figures = [
        *in_fresh_processes(call_figures, options.rounds, options.processes),
        *rate_figures(options.reservations),
        import_figure(options.imports),
    ]
    print(figures_table(f"What a guard costs ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

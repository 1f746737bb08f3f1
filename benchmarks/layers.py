"""A race inside a framework: the layers at which a budget may be built in, and the ways to call.

What `langchain_race` and `llama_index_race` have in common.
"""

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from benchmarks.race import CALLS, FITS, Result, show
from tokenfence_integrations import Budget, BudgetExceeded
from tokenfence_integrations.money import to_decimal
from tokenfence_integrations.testing import Behavior, SimulatedProvider

__all__ = [
    "ANSWER",
    "MODEL",
    "PRICE",
    "Contender",
    "OverLimit",
    "Way",
    "at_once",
    "booked",
    "budget_of",
    "compete",
    "run",
]

ANSWER = Behavior(output_tokens=300, latency=0.1, chunk_tokens=10, tool_call=True)
MODEL = "gpt-4o"
PRICE = (2_500, 10_000)  # its nano-dollars per token in and out, for those who keep other books


class OverLimit(RuntimeError):
    """What a callback raises that checks before a call: a class that no framework retries."""


class Setup(Protocol):
    """A guard, built in where it belongs."""

    @property
    def books(self) -> Callable[[], int | None]:
        """What the guard believes was spent, in nano-dollars; None: it keeps no books."""


class Contender(NamedTuple):
    """Something that may keep calls within a budget.

    Args:
        name: What it is called.
        setup: Builds it around a model, for nano-dollars.
        agents_only: Whether it is something only agents have.
        refused: What its refusals are, beside `BudgetExceeded` and `OverLimit`.
    """

    name: str
    setup: Callable[[Any, int], Setup]
    agents_only: bool = False
    refused: tuple[type[BaseException], ...] = ()


class Way(NamedTuple):
    """How calls are made at the same time.

    Args:
        name: What it is called.
        calls: Makes so many of them; returns what each ended with.
        agents: Whether they are made by agents.
    """

    name: str
    calls: Callable[[Any, Any, int], Sequence[object]]
    agents: bool = False


class Caller(Protocol):
    """What calls are made with."""

    @property
    def model(self) -> Any:
        """The plain model."""


def budget_of(limit: int) -> Budget:
    """A budget of so many nano-dollars."""
    return Budget(to_decimal(limit))


def booked(budget: Budget) -> int:
    """The nano-dollars that a budget believes were spent, or may have been."""
    state = budget.snapshot()
    return state.spent.usd + state.uncertain.usd


async def at_once(call: Callable[[], Any], calls: int) -> Sequence[object]:
    """Make a call so many times at the same time; returns what each ended with."""
    return await asyncio.gather(*[call() for _ in range(calls)], return_exceptions=True)


def compete(
    provider: SimulatedProvider,
    caller: Caller,
    ways: Sequence[Way],
    contenders: Sequence[Contender],
    bare: Contender,
    calls: int,
) -> Iterator[Result]:
    """Let every contender meet every way.

    Args:
        provider: Who is called; its bill is emptied before each meeting.
        caller: What calls are made with.
        ways: The ways.
        contenders: The contenders; those that only agents have meet only agents.
        bare: The one without a guard, which tells what one call of a way costs.
        calls: Calls made at the same time.
    """
    for way in ways:
        alone = bare.setup(caller.model, 0)
        limit = FITS * _bill(provider, way, caller, bare, alone, 1)
        for contender in contenders:
            if contender.agents_only and not way.agents:
                continue
            setup = contender.setup(caller.model, limit)
            bill = _bill(provider, way, caller, contender, setup, calls)
            yield Result(
                way.name,
                contender.name,
                landed=len(provider.bill),
                bill=bill,
                budget=limit,
                books=setup.books(),
                knowable=True,
            )


def _bill(
    provider: SimulatedProvider,
    way: Way,
    caller: Caller,
    contender: Contender,
    setup: Setup,
    calls: int,
) -> int:
    """What the provider bills for some calls."""
    provider.clear()
    ended = way.calls(caller, setup, calls)
    provider.idle()
    assert len(ended) == calls
    refused = (BudgetExceeded, OverLimit, *contender.refused)
    for end in ended:
        if isinstance(end, BaseException) and not isinstance(end, refused):
            raise end
    return provider.billed


def run(
    race: Callable[[int], Iterator[Result]], prog: str, about: str, arguments: Sequence[str] | None
) -> int:
    """Run a race from the command line, and print it.

    Args:
        race: Runs it, for a number of calls made at the same time.
        prog: The module that it is run as.
        about: What `--help` says.
        arguments: Those of the command line; None: the process's own.

    Returns:
        1 if ours overspends or its books are wrong in any row, else 0.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=about)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    return show(list(race(options.calls)), options.calls, as_json=options.json)

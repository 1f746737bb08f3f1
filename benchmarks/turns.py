"""Two things measured in turns of twenty, and their ratio: p50 and p99."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.table import Figure

__all__ = ["TURN", "figures_of"]

TURN = 20  # of one kind before those of the other


class Turn(NamedTuple):
    """Seconds that each of `TURN` bare steps took, and each of as many in the store after them."""

    bare: list[float]
    stored: list[float]


def figures_of(
    name: str,
    bare: Callable[[], None],
    step: Callable[[], None],
    rounds: int,
    bar: float | None = None,
    what: str = "reserve",
) -> list[Figure]:
    """How long a step takes over a bare one, measured in turns.

    Args:
        name: What is measured.
        bare: The bare one.
        step: The step.
        rounds: Of each.
        bar: The most that it may be.
        what: The step's own name.
    """
    turns = [Turn(_seconds(bare), _seconds(step)) for _ in range(-1, max(1, rounds // TURN))][1:]
    all_bare = [seconds for turn in turns for seconds in turn.bare]
    all_stored = [seconds for turn in turns for seconds in turn.stored]
    ratios = [statistics.median(turn.stored) / statistics.median(turn.bare) for turn in turns]
    return [
        Figure(
            f"{name}, p50",
            statistics.median(ratios),
            "x",
            at_most=bar,
            detail=_micros(what, statistics.median, all_bare, all_stored),
        ),
        Figure(
            f"{name}, p99",
            _p99(all_stored) / _p99(all_bare),
            "x",
            at_most=bar,
            detail=_micros(what, _p99, all_bare, all_stored),
        ),
    ]


def _seconds(work: Callable[[], None]) -> list[float]:
    clock, seconds = time.perf_counter, []
    for _ in range(TURN):
        begun = clock()
        work()
        seconds.append(clock() - begun)
    return seconds


def _micros(
    what: str,
    of: Callable[[Sequence[float]], float],
    bare: Sequence[float],
    stored: Sequence[float],
) -> str:
    return f"bare {of(bare) * 1e6:.1f} µs, {what} {of(stored) * 1e6:.1f} µs"


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, len(seconds) * 99 // 100)]

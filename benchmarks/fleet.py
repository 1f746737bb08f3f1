"""Slices in a large fleet: `python -m benchmarks.fleet`.

1,000 workers and 10,000 tenants share one budget, in a simulation: see `simulation` and `traffic`.
The same calls are made with slices and without, balanced in two ways: any worker gets any call, and
*sticky*, where a tenant goes to a few. Many tenants run out of money; in the third run, all do.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from benchmarks.simulation import Outcome, simulate
from benchmarks.table import Figure, failures, figures_table, machine, table
from benchmarks.traffic import Traffic

__all__ = ["fleet_figures", "main", "scenarios"]

REFUSED_BAR = 0.1  # % of calls
SCARCE = 0.4  # of what all calls would cost


def scenarios(workers: int, tenants: int, calls: int, seed: int) -> dict[str, Traffic]:
    """What is simulated, by name."""
    any_worker = Traffic(workers, tenants, calls, seed=seed)
    sticky = replace(any_worker, sticky=True)
    return {
        "any worker": any_worker,
        "sticky": sticky,
        "sticky, the common limit runs out": replace(sticky, root=SCARCE),
    }


def fleet_figures(name: str, without: Outcome, sliced: Outcome) -> list[Figure]:
    """What slices keep and what they cost, held against the bars."""
    calls, declined = sliced.calls, sliced.refused_although
    return [
        Figure(
            f"{name}: overspent",
            max(without.overspent, sliced.overspent) / 1e9,
            " $",
            at_most=0.0,
            detail=f"${sliced.spent / 1e9:,.2f} spent; {sliced.run_out:,} budgets ran out",
        ),
        Figure(
            f"{name}: refused though affordable",
            declined / calls * 100,
            " %",
            at_most=REFUSED_BAR,
            detail=f"{declined:,} of {calls:,} calls; without {without.refused_although:,}",
        ),
        Figure(
            f"{name}: round trips per call",
            sliced.round_trips / calls,
            detail=f"{sliced.round_trips_of_calls / calls:.2f} by calls; "
            f"without {without.round_trips / calls:.2f}",
        ),
        Figure(
            f"{name}: held unused",
            fmean(map(_share, sliced.idle, sliced.left)) * 100,
            " %",
            detail="of what is left, on average; of the money "
            f"{_share(sum(sliced.idle), sum(sliced.left)) * 100:.1f} %",
        ),
        Figure(
            f"{name}: held unused at the end",
            sliced.idle_at_end / 1e9,
            " $",
            at_most=0.0,
        ),
        Figure(
            f"{name}: waiting since there was room, per call",
            sum(sliced.waited_although) / calls * 1e3,
            " ms",
            detail=f"longest {max(sliced.waited_although):.1f} s; "
            f"without {sum(without.waited_although) / calls * 1e3:.1f} ms",
        ),
    ]


def _share(part: int, whole: int) -> float:
    return part / max(1, whole)


def _counts(outcomes: Mapping[str, tuple[Outcome, Outcome]]) -> str:
    rows = [
        (
            f"{name}, {kind}",
            f"{outcome.admitted:,}",
            f"{outcome.refused:,}",
            f"{outcome.refused_after:,}",
            f"{outcome.spent / 1e9:,.2f}",
            f"{sum(outcome.waited) / outcome.calls * 1e3:.0f}",
        )
        for name, pair in outcomes.items()
        for kind, outcome in zip(("without", "slices"), pair, strict=True)
    ]
    heads = ("calls", "admitted", "refused", "of these, room once", "$ spent", "waited, ms a call")
    return table("What became of the calls", heads, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000, help="processes")
    parser.add_argument("--tenants", type=int, default=10_000, help="each with a limit")
    parser.add_argument("--calls", type=int, default=100_000, help="of all tenants together")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn")
    parser.add_argument("--slice", default="2%", help="share of a limit that a worker may borrow")
    options = parser.parse_args(arguments)
    sizes = options.workers, options.tenants, options.calls, options.seed
    outcomes: dict[str, tuple[Outcome, Outcome]] = {}
    figures: list[Figure] = []
    for name, traffic in scenarios(*sizes).items():
        pair = simulate(traffic, None), simulate(traffic, options.slice)
        outcomes[name] = pair
        figures += fleet_figures(name, *pair)
    title = (
        f"{options.workers:,} workers, {options.tenants:,} tenants, {options.calls:,} calls, "
        f"slices of {options.slice} ({machine()})"
    )
    print(figures_table(title, figures))
    print(_counts(outcomes))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

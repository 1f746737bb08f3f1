"""Slices in a large fleet: `python -m benchmarks.fleet`.

1,000 workers and 10,000 tenants share one budget, in a simulation: see `simulation` and `traffic`.
The same calls are made with slices and without, balanced in two ways: any worker gets any call, and
*sticky*, where a tenant goes to a few. In two runs many tenants run out of money, in a third the
common limit does, and in one nothing does.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from benchmarks.simulation import Outcome, simulate
from benchmarks.table import Figure, failures, figures_table, machine, table
from benchmarks.traffic import Traffic
from tokenfence_integrations.engine.waiting import PATIENCE

__all__ = ["counts_table", "fleet_figures", "main", "scenarios"]

REFUSED_BAR = 0.1  # % of calls
SCARCE, RICH = 0.4, 30.0  # times what all calls would cost


def scenarios(workers: int, tenants: int, calls: int, seed: int) -> dict[str, Traffic]:
    """What is simulated, by name."""
    any_worker = Traffic(workers, tenants, calls, seed=seed)
    sticky = replace(any_worker, sticky=True)
    return {
        "sticky, nothing runs out": replace(sticky, root=RICH, scarce=(RICH, RICH)),
        "any worker": any_worker,
        "sticky": sticky,
        "sticky, the common limit runs out": replace(sticky, root=SCARCE),
    }


def fleet_figures(without: Outcome, sliced: Outcome) -> list[Figure]:
    """What slices keep and what they cost, held against the bars."""
    calls, declined = sliced.calls, sliced.refused_although
    return [
        Figure(
            "overspent",
            max(without.overspent, sliced.overspent) / 1e9,
            " $",
            at_most=0.0,
            detail="of all accounts at all moments, the most",
        ),
        Figure(
            "refused while it might have fitted",
            sliced.refused_with_room,
            " calls",
            at_most=0.0,
            detail=f"without {without.refused_with_room:,}",
        ),
        Figure(
            "refused though affordable",
            declined / calls * 100,
            " %",
            at_most=REFUSED_BAR,
            detail=f"{declined:,} of {calls:,} calls; without {without.refused_although:,}",
        ),
        Figure(
            "refused after later ones passed",
            sliced.refused_passed / calls * 100,
            " %",
            detail=f"{PATIENCE} or more of the tenant; without "
            f"{without.refused_passed / calls * 100:.1f} %",
        ),
        Figure(
            "round trips per call",
            sliced.round_trips / calls,
            detail=f"{sliced.round_trips_of_calls / calls:.2f} by calls; "
            f"without {without.round_trips / calls:.2f}",
        ),
        Figure(
            "looks of those told of room",
            sliced.told / calls,
            detail=f"per call, most in vain, not in the round trips; "
            f"without {without.told / calls:.0f}",
        ),
        Figure(
            "held unused",
            fmean(map(_share, sliced.idle, sliced.left)) * 100,
            " %",
            detail="of what is left, on average; of the money "
            f"{_share(sum(sliced.idle), sum(sliced.left)) * 100:.1f} %",
        ),
        Figure(
            "held unused at the end",
            sliced.idle_at_end / 1e9,
            " $",
            at_most=0.0,
        ),
        Figure(
            "waiting added, per call",
            _milliseconds(sliced.waited, calls) - _milliseconds(without.waited, calls),
            " ms",
            detail=f"since there was room {_milliseconds(sliced.waited_although, calls):.1f} ms, "
            f"at most {max(sliced.waited_although, default=0.0):.1f} s; "
            f"without {_milliseconds(without.waited_although, calls):.1f} ms",
        ),
    ]


def _milliseconds(waited: Sequence[float], calls: int) -> float:
    return sum(waited) / calls * 1e3


def _share(part: int, whole: int) -> float:
    return part / max(1, whole)


def counts_table(without: Outcome, sliced: Outcome) -> str:
    """What became of the calls."""
    rows = [
        (
            kind,
            f"{outcome.admitted:,}",
            f"{outcome.refused:,}",
            f"{outcome.refused_after:,}",
            f"{outcome.run_out:,}",
            f"{outcome.spent / 1e9:,.2f}",
            f"{_milliseconds(outcome.waited, outcome.calls):.0f}",
        )
        for kind, outcome in (("without slices", without), ("with slices", sliced))
    ]
    heads = ("", "admitted", "refused", "room once", "budgets run out", "$", "waited, ms a call")
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
    parser.add_argument("--only", default="", help="runs whose names have this in them")
    parser.add_argument("--slice", default="2%", help="share of a limit that a worker may borrow")
    options = parser.parse_args(arguments)
    sizes = options.workers, options.tenants, options.calls, options.seed
    print(
        f"{options.workers:,} workers, {options.tenants:,} tenants, {options.calls:,} calls, "
        f"slices of {options.slice} ({machine()})"
    )
    figures: list[Figure] = []
    for name, traffic in scenarios(*sizes).items():
        if options.only not in name:
            continue
        outcomes = simulate(traffic, None), simulate(traffic, options.slice)
        of_this = fleet_figures(*outcomes)
        print(figures_table(name, of_this), counts_table(*outcomes), sep="", flush=True)
        figures += of_this
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

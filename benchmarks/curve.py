"""The trade-off of slices: the larger they are, the fewer round trips, and the more is held unused.

From the simulation of `simulation`, with few tenants, whose calls go to any worker. Their limits
are the same whatever the number of workers, and are not used up: near a limit there are no slices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.simulation import simulate
from benchmarks.table import table
from benchmarks.traffic import Traffic

__all__ = ["Point", "curve", "curve_table", "draw"]

SHARES = ("0.1%", "0.2%", "0.5%", "1%", "2%", "5%", "10%", "20%")
WORKERS = (4, 16, 64)
TENANTS = 4
RATE = 20.0  # calls a second that each worker gets
WORTH = 100_000  # calls that the common limit pays for
BLACK, GREY = "#222222", "#888888"
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart also by who sees no red or no green


class Point(NamedTuple):
    """What a share comes to.

    Args:
        workers: How many share the budgets.
        share: The slice, as ``"2%"``.
        round_trips: Per call.
        without: The same without slices.
        idle: % of what is left that is held unused, on average.
        at_stake: % of what is left that one worker, should it be killed, leaves uncertain beyond
            its calls in flight; the mean.
        waited: Milliseconds per call that calls waited since there was room.
    """

    workers: int
    share: str
    round_trips: float
    without: float
    idle: float
    at_stake: float
    waited: float


def curve(
    calls: int, shares: Sequence[str] = SHARES, workers: Sequence[int] = WORKERS
) -> list[Point]:
    """The points of all curves.

    Args:
        calls: Of each worker.
        shares: The slices.
        workers: The sizes of the fleet, a curve each.
    """
    return [point for several in workers for point in _curve(calls, shares, several)]


def _curve(calls: int, shares: Sequence[str], workers: int) -> list[Point]:
    of_all = calls * workers
    share_of_cost = WORTH / of_all
    traffic = Traffic(
        workers,
        TENANTS,
        of_all,
        rate=RATE,
        root=share_of_cost,
        scarce=(share_of_cost, share_of_cost),
    )
    without = simulate(traffic, None)
    points = []
    for share in shares:
        outcome = simulate(traffic, share)
        left = sum(outcome.left) / 100
        points.append(
            Point(
                workers,
                share,
                outcome.round_trips / outcome.calls,
                without.round_trips / without.calls,
                sum(outcome.idle) / left,
                sum(outcome.at_stake) / left,
                sum(outcome.waited_although) / outcome.calls * 1e3,
            )
        )
    return points


def curve_table(points: Sequence[Point]) -> str:
    """The curves as a table."""
    heads = (
        "workers",
        "slice",
        "round trips a call",
        "without",
        "held unused",
        "a killed worker's",
        "waited since there was room",
    )
    rows = [
        (
            point.workers,
            point.share,
            f"{point.round_trips:.3f}",
            f"{point.without:.3f}",
            f"{point.idle:.2f} %",
            f"{point.at_stake:.3f} %",
            f"{point.waited:.1f} ms",
        )
        for point in points
    ]
    return table(f"What slices save and hold ({TENANTS} tenants)", heads, rows)


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw the curves.

    Args:
        points: All points.
        file: The picture to write; its ending tells the format.

    Raises:
        ModuleNotFoundError: There is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same points make the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "slices", "font.size": 9, "svg.fonttype": "none"})
    figure, (trips, idle) = pyplot.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    sizes = sorted({point.workers for point in points})
    for colour, workers in zip(COLOURS, sizes, strict=False):
        own = [point for point in points if point.workers == workers]
        shares = [float(point.share.rstrip("%")) for point in own]
        line = {"color": colour, "marker": "o", "markersize": 3, "label": f"{workers} workers"}
        trips.plot(shares, [point.round_trips for point in own], **line)
        trips.plot(shares, [point.without for point in own], color=colour, linestyle=":")
        idle.plot(shares, [point.idle for point in own], **line)
        idle.plot(shares, [point.at_stake for point in own], color=colour, linestyle="--")
    _label(trips, "round trips a call\n(dotted: without slices)")
    _label(idle, "% of what is left: held unused\n(dashed: at stake with one worker)")
    trips.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, metadata=metadata)
    pyplot.close(figure)


def _label(axes: Any, of_y: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks([0.1, 1, 10], ["0.1 %", "1 %", "10 %"])
    axes.set_xlabel("slice: share of the limit", color=BLACK)
    axes.set_ylabel(of_y, color=BLACK)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(color=GREY, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

"""The benchmark of slices, run small: that it measures what it says, not how much it is here."""

from pathlib import Path

from benchmarks import curve, slices
from benchmarks.curve import Point


def test_rates_and_percentiles_are_measured_in_both_ways() -> None:
    figures = slices.slice_figures("SQLite", slices.BATCHES)
    names = ["pairs a second", "p50", "p99"]
    assert [figure.name.split(": ")[1] for figure in figures] == names * 2
    assert all(figure.measured > 0 for figure in figures)


def test_pairs_are_made_in_turn_and_the_first_turn_does_not_count() -> None:
    made: list[str] = []
    without, sliced, memory = (lambda kind=kind: made.append(kind) for kind in "abc")
    times = slices.timed(without, sliced, memory, slices.BATCHES)
    assert "".join(made) == ("a" + "b" * slices.FASTER + "c" * slices.FASTER) * (slices.BATCHES + 1)
    assert [len(batches) for batches in times] == [slices.BATCHES] * 3


def test_a_bar_that_memory_itself_could_not_keep_is_none() -> None:
    slow, fast = [[1.0, 1.0]], [[0.1, 0.1]]
    [of_few, *_] = slices._figures("", slices.Timed(slow, fast, [[0.05, 0.05]]), 50.0)
    [of_many, *_] = slices._figures("", slices.Timed(slow, fast, [[0.01, 0.01]]), 50.0)
    assert of_few.measured == of_many.measured == 10.0
    assert "20x at best" in of_few.detail
    assert of_few.passed is None
    assert of_many.passed is False


def test_larger_slices_hold_more_and_cost_fewer_round_trips() -> None:
    small, large = curve.curve(100, ["0.1%", "5%"], [3])
    assert (small.workers, small.share, small.without) == (3, "0.1%", large.without)
    assert large.round_trips < small.round_trips
    assert large.idle > small.idle
    text = curve.curve_table([small, large])
    assert "0.1%" in text
    assert f"{large.round_trips:.3f}" in text


def test_the_same_points_make_the_same_picture(tmp_path: Path) -> None:
    points = [Point(4, "1%", 0.5, 2.0, 1.0, 0.2, 3.0), Point(4, "10%", 0.2, 2.0, 9.0, 2.0, 5.0)]
    files = tmp_path / "one.svg", tmp_path / "folder" / "other.svg"
    for file in files:
        curve.draw(points, file)
    one, other = (file.read_bytes() for file in files)
    assert one == other
    assert b"4 workers" in one

"""Tables for the terminal, the bars that figures are held against, and the machine they are of."""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import NamedTuple

__all__ = ["Figure", "failures", "figures_table", "machine", "table"]


class Figure(NamedTuple):
    """One measured figure.

    Args:
        name: What was measured.
        measured: The figure.
        unit: Its unit, put behind it.
        at_most: The bar from above; None: none.
        at_least: The bar from below; None: none.
        detail: What it was made of.
    """

    name: str
    measured: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it keeps its bars; None if it has none."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.measured >= self.at_least
        below = self.at_most is None or self.measured <= self.at_most
        return above and below

    @property
    def bar(self) -> str:
        """The bars, as text."""
        if self.at_most is not None and self.at_most == self.at_least:
            return f"= {_number(self.at_most)}{self.unit}"
        bars = (("<=", self.at_most), (">=", self.at_least))
        return " ".join(f"{sign} {_number(at)}{self.unit}" for sign, at in bars if at is not None)


def figures_table(title: str, figures: Sequence[Figure]) -> str:
    """Measured figures beside their bars."""
    verdicts = {True: "pass", False: "FAIL", None: ""}
    rows = [
        (f.name, _number(f.measured) + f.unit, f.bar, verdicts[f.passed], f.detail) for f in figures
    ]
    return table(title, ("", "measured", "bar", "", ""), rows)


def failures(figures: Iterable[Figure]) -> list[Figure]:
    """The figures that miss their bars."""
    return [figure for figure in figures if figure.passed is False]


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as text: the first column to the left, numbers and what looks like them to the right.

    Args:
        title: The line above it.
        heads: The columns' heads.
        rows: The cells, as many in each row as there are heads.
    """
    cells = [list(heads), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    aligned = [
        "  ".join(
            cell.rjust(width) if column and _is_numeric(cell) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, aligned))
    return "\n".join(["", title, rule, aligned[0], rule, *aligned[1:], ""])


def machine() -> str:
    """One line about what the figures were measured on."""
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    return (
        f"{platform.python_implementation()} {platform.python_version()}, openai "
        f"{version('openai')}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"load {load}"
    )


def _number(value: float) -> str:
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}"


def _is_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell == "-"

"""The demo's tables: calls, and a budget's bar, as rich renderables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tokenfence_integrations.demo.scenario import Call, State, total_cost

_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.ANSWERED: "green",
    State.STOPPED: "yellow",
    State.FAILED: "red",
}


def dollars(nanos: int, decimals: int = 6) -> str:
    """An amount of nano-dollars as text.

    Args:
        nanos: The amount.
        decimals: Digits after the point; 9 are exact. Default 6.

    Example:
        >>> dollars(912_500, 9)
        '$0.000912500'
    """
    return f"${Decimal(nanos).scaleb(-9):.{decimals}f}"


@dataclass(frozen=True)
class BudgetBar:
    """A bar of what is spent and reserved of a limit, all in nano-dollars.

    Args:
        spent: What is settled, shown solid.
        reserved: What calls in flight hold, shown shaded.
        limit: The whole of the bar; what passes it is cut off, and named in the text beside.
        width: The bar's length in characters. Default 22, for a terminal of 80.
    """

    spent: int
    reserved: int
    limit: int
    width: int = 22

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        solid, shaded, empty = "#+." if options.ascii_only else "█▒░"
        spent = self._cells(self.spent)
        reserved = self._cells(self.spent + self.reserved) - spent
        over = self.spent + self.reserved > self.limit
        yield Text.assemble(
            "budget ",
            (solid * spent, "red" if over else "green"),
            (shaded * reserved, "yellow"),
            (empty * (self.width - spent - reserved), "dim"),
            f" spent {dollars(self.spent)} + reserved {dollars(self.reserved)}"
            f" of {dollars(self.limit)}",
        )

    def _cells(self, amount: int) -> int:
        if self.limit <= 0:
            return self.width
        return min(self.width, round(self.width * max(0, amount) / self.limit))


def status(call: Call) -> Text:
    """What has become of a call, in a few words."""
    words = [call.state.value]
    if call.state is State.ANSWERED:
        fell_back = ["fell back"] if call.fell_back else []
        cut = [f"cut to {call.cut_to}"] if call.cut_to is not None else []
        words = fell_back + cut or words
    elif call.error:
        words.append(call.error.splitlines()[0])
    return Text(", ".join(words), style=_STYLES[call.state])


def calls_table(title: str, calls: Sequence[Call]) -> Table:
    """A table of the calls, a row each, and their sum.

    Args:
        title: What stands above it.
        calls: The calls, in any state.
    """
    table = Table(title=title, title_justify="left", show_footer=True, footer_style="bold")
    input_tokens = sum(call.input_tokens for call in calls)
    output_tokens = sum(call.output_tokens for call in calls)
    table.add_column("call", justify="right")
    table.add_column("stream")
    table.add_column("model used", no_wrap=True)
    table.add_column("in", str(input_tokens), justify="right")
    table.add_column("out", str(output_tokens), justify="right")
    table.add_column("cost", dollars(total_cost(calls)), justify="right", no_wrap=True)
    table.add_column("wait", justify="right", no_wrap=True)
    table.add_column("status")
    for call in calls:
        answered = call.state is State.ANSWERED
        table.add_row(
            str(call.number),
            "yes" if call.streamed else "",
            call.sent_model,
            str(call.input_tokens) if answered else "",
            str(call.output_tokens) if answered else "",
            dollars(call.cost) if answered else "",
            "" if call.state is State.WAITING else f"{call.wait:.1f} s",
            status(call),
        )
    return table


def frame(title: str, calls: Sequence[Call], bar: BudgetBar | None = None) -> RenderableType:
    """One picture of a run: its calls and, if it has one, its budget.

    Args:
        title: What stands above the table.
        calls: The calls, in any state.
        bar: The budget as it is now; None (the default) for a run without one.
    """
    table = calls_table(title, calls)
    return Group(table, bar) if bar else table

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from tokenfence_integrations.demo.scenario import State, plan
from tokenfence_integrations.demo.table import BudgetBar, dollars, frame, status


def text(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    ("nanos", "decimals", "shown"),
    [(912_500, 9, "$0.000912500"), (1, 9, "$0.000000001"), (5_000_000_000, 2, "$5.00")],
)
def test_dollars(nanos: int, decimals: int, shown: str) -> None:
    assert dollars(nanos, decimals) == shown


def test_bar_shows_spent_and_reserved_in_proportion() -> None:
    bar = text(BudgetBar(spent=500, reserved=250, limit=1000, width=20))
    assert bar.count("█") == 10
    assert bar.count("▒") == 5
    assert bar.count("░") == 5


def test_bar_never_grows_beyond_its_width() -> None:
    bar = text(BudgetBar(spent=5000, reserved=100, limit=1000, width=20))
    assert bar.count("█") == 20
    assert "▒" not in bar
    assert "░" not in bar


def test_frame_fits_a_terminal_of_80_columns() -> None:
    calls = plan("gpt-4o", calls=2, max_tokens=80)
    calls[0].sent({"model": "gpt-4o-mini", "max_tokens": 40})
    calls[0].state = State.ANSWERED
    calls[0].cost = 912_500
    lines = text(frame("title", calls, BudgetBar(1, 2, 3)), width=80).splitlines()
    assert any("gpt-4o-mini" in line and "$0.000912" in line for line in lines)
    assert lines[-1].startswith("budget ")
    assert lines[-1].rstrip().endswith("of $0.000000")


def test_status_says_what_the_guard_did() -> None:
    (call,) = plan("gpt-4o", calls=1, max_tokens=80)
    assert str(status(call)) == "waiting"
    call.sent({"model": "gpt-4o-mini", "max_tokens": 40})
    assert str(status(call)) == "running"
    call.state = State.ANSWERED
    assert str(status(call)) == "fell back, cut to 40"
    call.failed("broken\nbadly")
    assert str(status(call)) == "failed, broken"


def test_status_of_an_answer_as_asked() -> None:
    (call,) = plan("gpt-4o", calls=1, max_tokens=80)
    call.sent({"model": "gpt-4o", "max_tokens": 80})
    call.state = State.ANSWERED
    assert str(status(call)) == "answered"

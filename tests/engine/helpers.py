"""What the engine's tests have in common: a price of one nano-dollar per token, and a clock."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tokenfence_integrations import Budget, Call, Price, Usage
from tokenfence_integrations.engine.tree import Clock
from tokenfence_integrations.pricing.book import PriceBook

BOOK = PriceBook(
    {
        "model": Price(input="$0.001/M", output="$0.001/M", max_output_tokens=10_000),
        "mini": Price(input="$0.0001/M", output="$0.0001/M", max_output_tokens=10_000),
        "unbounded": Price(input="$0.001/M", output="$0.001/M"),
    }
)
"""A token of "model" costs one nano-dollar, one of "mini" a tenth of that."""


def nano(amount: int) -> Decimal:
    """So many nano-dollars, in dollars: with "model", so many tokens."""
    return Decimal(amount).scaleb(-9)


def small(amount: int, **options: Any) -> Budget:
    """A budget of so many nano-dollars."""
    if "store" in options:
        options.setdefault("name", "budget")
    return Budget(nano(amount), **options)


def reserve(budget: Budget, size: int | None, **options: Any) -> Call:
    """A call that can cost at most `size` nano-dollars; not capped below that."""
    given = {"model": "model", "input_tokens": 0, "min_output_tokens": size or 16, **options}
    return budget.reserve(max_output_tokens=size, prices=BOOK, **given)


def spend(budget: Budget, size: int, **options: Any) -> Call:
    """A call that is reserved and settled for `size` nano-dollars."""
    with reserve(budget, size, **options) as call:
        call.settle(Usage(0, size))
    return call


def charged(budget: Budget) -> tuple[int, int, int]:
    """Nano-dollars spent, reserved and uncertain."""
    now = budget.snapshot()
    return now.spent.usd, now.reserved.usd, now.uncertain.usd


@dataclass
class FakeClock:
    """A clock that stands still until it is moved."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    @property
    def clock(self) -> Clock:
        """For `Budget`."""
        return Clock(self, self)


def listen(budget: Budget) -> list[Any]:
    """The events of a budget, as they come."""
    events: list[Any] = []
    budget.on_event(events.append)
    return events


def outcomes(budget: Budget) -> list[tuple[str, int, int]]:
    """How each call ended, what it cost, and what it may have cost."""
    return [(record.outcome, record.cost, record.uncertain) for record in budget.ledger]

"""An independent model of a budget tree: plain sums, written from the promises of the design."""

from collections.abc import Iterator
from dataclasses import dataclass, field

QUANTITIES = ("usd", "calls", "tokens", "input_tokens", "output_tokens")


@dataclass
class Amounts:
    """Nano-dollars, calls and tokens; what every account adds up."""

    usd: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def add(self, other: "Amounts", times: int = 1) -> None:
        self.usd += times * other.usd
        self.calls += times * other.calls
        self.input_tokens += times * other.input_tokens
        self.output_tokens += times * other.output_tokens


@dataclass
class Account:
    """One budget of the model."""

    name: str
    limits: dict[str, int]
    parent: "Account | None"
    spent: Amounts = field(default_factory=Amounts)
    reserved: Amounts = field(default_factory=Amounts)
    uncertain: Amounts = field(default_factory=Amounts)
    own: Amounts = field(default_factory=Amounts)
    """What was spent here and not in a child, ever."""
    beyond: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUANTITIES, 0))
    """What was booked past any limit, because it was true: `record`, `warn`, more than a bound."""

    def path(self) -> Iterator["Account"]:
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    def has_room(self, amount: Amounts) -> bool:
        """Whether an amount fits every limit of the path."""
        return all(
            account.used(quantity) + getattr(amount, quantity) <= limit
            for account in self.path()
            for quantity, limit in account.limits.items()
        )

    def used(self, quantity: str) -> int:
        return sum(getattr(p, quantity) for p in (self.spent, self.reserved, self.uncertain))

    def excuse(self, amount: Amounts) -> None:
        """So much may be above the limits of the path from now on."""
        for account in self.path():
            for quantity in QUANTITIES:
                account.beyond[quantity] += max(0, getattr(amount, quantity))


@dataclass
class Ending:
    """How a call of the model ended: what it cost, and what it may have cost."""

    spent: Amounts = field(default_factory=Amounts)
    uncertain: Amounts = field(default_factory=Amounts)


def end(account: Account, bound: Amounts, ending: Ending) -> None:
    """Replace a reservation along the path."""
    account.own.add(ending.spent)
    for each in account.path():
        each.reserved.add(bound, -1)
        each.spent.add(ending.spent)
        each.uncertain.add(ending.uncertain)

"""An independent model of a budget tree: plain sums, written from the promises of the design."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import TypeAlias

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


Terms: TypeAlias = Mapping[str, int | Fraction]
"""What a budget may have of each quantity that is limited: an amount, or a part of its parent's."""


@dataclass
class Account:
    """One budget of the model."""

    name: str
    terms: Terms
    parent: "Account | None"
    overflows: bool = False
    spent: Amounts = field(default_factory=Amounts)
    reserved: Amounts = field(default_factory=Amounts)
    uncertain: Amounts = field(default_factory=Amounts)
    own: Amounts = field(default_factory=Amounts)
    """What was spent here and not in a child, ever."""
    beyond: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUANTITIES, 0))
    """What may be above a limit: true costs (`record`, `warn`, more than a bound), and what was
    charged before the limit was lowered."""

    stale: dict[str, int] = field(default_factory=dict)
    """The most that a share may still count as, here, since others changed what it is one of."""

    def path(self) -> Iterator["Account"]:
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    @property
    def limits(self) -> dict[str, int]:
        """Its limits in amounts: a share follows the parent's, rounded down."""
        above = {} if self.parent is None else self.parent.limits
        return {
            quantity: floor(term * above[quantity]) if isinstance(term, Fraction) else term
            for quantity, term in self.terms.items()
        }

    @property
    def walls(self) -> dict[str, int]:
        """The limits that stop its calls."""
        return {} if self.overflows else self.limits

    def most(self, quantity: str) -> int:
        """The most that a limit may count as, here."""
        term = self.terms[quantity]
        if isinstance(term, int):
            return term
        assert self.parent is not None
        return max(floor(term * self.parent.most(quantity)), self.stale.get(quantity, 0))

    def is_sure(self, quantity: str) -> bool:
        """Whether a limit surely counts as what it is."""
        if not isinstance(self.terms[quantity], Fraction):
            return True
        assert self.parent is not None
        return quantity not in self.stale and self.parent.is_sure(quantity)

    def let_go(self, quantity: str) -> None:
        """Others change what it is a share of: it may count as it did until that is noticed."""
        if isinstance(self.terms.get(quantity), Fraction):
            self.stale[quantity] = self.most(quantity)

    def is_sound(self) -> bool:
        """Whether it can be: a share is one of something, and something stops what overflows."""
        above = [] if self.parent is None else [*self.parent.path()]
        for quantity, term in self.terms.items():
            if isinstance(term, Fraction) and (not above or quantity not in above[0].terms):
                return False
            if self.overflows and all(
                each.overflows or quantity not in each.terms for each in above
            ):
                return False
        return bool(self.terms) or not self.overflows

    def has_room(self, amount: Amounts, *, stale: bool = False) -> bool:
        """Whether an amount fits every limit of the path; or what it may still count as."""
        return all(
            account.used(quantity) + getattr(amount, quantity)
            <= (account.most(quantity) if stale else limit)
            for account in self.path()
            for quantity, limit in account.walls.items()
        )

    def used(self, quantity: str) -> int:
        return sum(getattr(p, quantity) for p in (self.spent, self.reserved, self.uncertain))

    def excuse(self, amount: Amounts) -> None:
        """So much may be above the limits of the path from now on."""
        for account in self.path():
            for quantity in QUANTITIES:
                account.beyond[quantity] += max(0, getattr(amount, quantity))

    def excuse_what_is_used(self) -> None:
        """What is above a limit that was lowered stays until it has ended."""
        for quantity, limit in self.walls.items():
            over = self.used(quantity) - limit
            self.beyond[quantity] = max(self.beyond[quantity], over)


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

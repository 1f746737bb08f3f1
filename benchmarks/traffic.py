"""Calls of many tenants, drawn with a seed: who makes them, when, and what they cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from random import Random
from typing import NamedTuple

from tokenfence_integrations.stores.base import Amount

__all__ = ["Planned", "Traffic"]

BOUND, SPREAD, SMALLEST, LARGEST = 5_000_000, 0.8, 200_000, 50_000_000  # nano-dollars, lognormal
MEAN_BOUND, MEAN_COST = 6_700_000, 3_700_000  # of the bounds so drawn, and of what is spent of them
LASTS = 3.0  # seconds on average
UNKNOWN = 0.005  # share of calls of unknown outcome
FEWEST = 4  # calls that each tenant's limit pays for, at least
STICKY_TO = 3  # workers


class Planned(NamedTuple):
    """A call that will be made.

    Args:
        at: Seconds from the beginning.
        worker: Its number.
        tenant: Its number.
        bound: What it reserves.
        spent: What it will have cost; the bound if nobody will know.
        lasts: Seconds from its admission to its end.
        known: Whether its outcome will be known.
    """

    at: float
    worker: int
    tenant: int
    bound: Amount
    spent: Amount
    lasts: float
    known: bool


@dataclass(frozen=True)
class Traffic:
    """What a fleet has to do.

    Args:
        workers: How many processes.
        tenants: How many, each with a limit of its own below the common one.
        calls: How many, of all tenants together.
        rate: Calls that each worker gets in a second.
        sticky: Whether a tenant's calls go to a few workers, and not to any.
        root: The common limit, as a share of what all calls would cost.
        scarce: The tenants' limits, from and to, as a share of what their calls would cost.
        seed: Of all that is drawn.
    """

    workers: int
    tenants: int
    calls: int
    rate: float = 10.0
    sticky: bool = False
    root: float = 2.0
    scarce: tuple[float, float] = (0.4, 1.6)
    seed: int = 1

    def limits(self) -> tuple[int, list[int]]:
        """The common limit, and that of each tenant, in nano-dollars."""
        random = Random(f"limits {self.seed}")
        cost = self.calls * MEAN_COST
        of_tenants = [
            max(FEWEST * MEAN_BOUND, int(cost * share * random.uniform(*self.scarce)))
            for share in self._shares()
        ]
        return int(cost * self.root), of_tenants

    def plan(self) -> Iterator[Planned]:
        """The calls, as they come: by Poisson, tenants by Zipf."""
        random = Random(f"calls {self.seed}")
        shares = self._shares()
        sums = list(accumulate(shares))
        near = [self._near(tenant, share) for tenant, share in enumerate(shares)]
        at = 0.0
        for _ in range(self.calls):
            at += random.expovariate(self.rate * self.workers)
            [tenant] = random.choices(range(self.tenants), cum_weights=sums)
            worker = random.choice(near[tenant])
            usd = round(random.lognormvariate(0, SPREAD) * BOUND)
            bound = Amount(min(LARGEST, max(SMALLEST, usd)), 1, 1_000, 500)
            known = random.random() >= UNKNOWN
            part = random.uniform(0.1, 1.0)
            spent = Amount(int(bound.usd * part), 1, 1_000, int(500 * part)) if known else bound
            yield Planned(at, worker, tenant, bound, spent, random.expovariate(1 / LASTS), known)

    def _shares(self) -> list[float]:
        weights = [1 / rank for rank in range(1, self.tenants + 1)]
        whole = sum(weights)
        return [weight / whole for weight in weights]

    def _near(self, tenant: int, share: float) -> range | list[int]:
        """The workers that may get a tenant's calls; a large tenant needs more of them."""
        if not self.sticky:
            return range(self.workers)
        several = min(self.workers, max(STICKY_TO, ceil(share * self.workers)))
        return Random(f"near {self.seed} {tenant}").sample(range(self.workers), several)

"""What tenants cost in memory and in time: `python -m benchmarks.tenants`.

Each tenant is looked up, spends a cent and is let go; the memory is that which Python allocated
(`tracemalloc`), per tenant. "In use" is measured while all of them are held. Times are taken
without tracemalloc: a cold lookup makes the budget of a tenant whose account is there, a warm one
finds it in use.
"""

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence

from benchmarks.table import Figure, failures, figures_table, machine
from tokenfence_integrations import Budgets

__all__ = ["main", "tenant_figures"]

NAMES = {"below a budget": "users/{tenant}", "trees of their own": "user:{tenant}"}
MOST_GROWTH = 1.0  # bytes per tenant, in a second round


def tenant_figures(tenants: int) -> list[Figure]:
    """Memory and time per tenant, below a common budget and as trees of their own.

    Args:
        tenants: How many.
    """
    return [figure for kind, name in NAMES.items() for figure in _figures(kind, name, tenants)]


def _figures(kind: str, name: str, tenants: int) -> list[Figure]:
    budgets = Budgets.from_dict(
        {
            "default_tier": "free",
            "ledger_size": 100,
            "budgets": {"users": {"usd": "$1000000"}},
            "tiers": {"free": {"name": name, "usd": "$1"}},
        }
    )
    _touch(budgets, 100, "before")
    tracemalloc.start()
    try:
        begun = _allocated(budgets)
        held = [budgets.tenant(f"user-{number}") for number in range(tenants)]
        in_use = _allocated(budgets) - begun
        del held
        _touch(budgets, tenants, "user")
        once = _allocated(budgets) - begun
        _touch(budgets, tenants, "user")
        twice = _allocated(budgets) - begun
    finally:
        tracemalloc.stop()
    numbers = range(tenants)
    cold = _seconds(lambda: [budgets.tenant(f"user-{n}") for n in numbers] and None, tenants)
    found = budgets.tenant("user-0")
    key = found.name
    by_tenant = _seconds(lambda: [budgets.tenant("user-0") and None for _ in numbers], tenants)
    by_key = _seconds(lambda: [budgets[key] and None for _ in numbers], tenants)
    return [
        Figure(f"{kind}: in use", in_use / tenants, " bytes"),
        Figure(f"{kind}: after eviction", once / tenants, " bytes"),
        Figure(
            f"{kind}: growth in a second round",
            (twice - once) / tenants,
            " bytes",
            at_most=MOST_GROWTH,
        ),
        Figure(f"{kind}: lookup, cold", cold * 1e6, " µs"),
        Figure(f"{kind}: lookup, warm, by tenant", by_tenant * 1e6, " µs"),
        Figure(f"{kind}: lookup, warm, by key", by_key * 1e6, " µs"),
    ]


def _touch(budgets: Budgets, tenants: int, prefix: str) -> None:
    for number in range(tenants):
        budgets.tenant(f"{prefix}-{number}").record("$0.01")


def _allocated(budgets: Budgets) -> int:
    budgets["users"].snapshot()  # acts on what finalizers have noted
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _seconds(work: Callable[[], object], times: int) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / times


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    parser.add_argument("--tenants", type=int, default=100_000, help="how many are touched")
    tenants = parser.parse_args(arguments).tenants
    figures = tenant_figures(tenants)
    print(figures_table(f"What {tenants:,} tenants cost ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Budgets for LLM calls, enforced inside the call chain.

Example:
    >>> client = async_guard(openai.AsyncOpenAI(), budget="$5.00")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.events import Event
from tokenfence_integrations.engine.ledger import LedgerRecord
from tokenfence_integrations.engine.limits.snapshot import Snapshot
from tokenfence_integrations.engine.scope import scoped_budget
from tokenfence_integrations.errors import (
    BudgetExceeded,
    NoBudgetError,
    StoreError,
    TokenFenceError,
    UnknownBudgetError,
    UnknownModelError,
    UnmeteredError,
)
from tokenfence_integrations.guard import async_guard, guard
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.list_price import ListPrice
from tokenfence_integrations.pricing.rates import Price
from tokenfence_integrations.usage import Usage

if TYPE_CHECKING:
    from tokenfence_integrations.tenants.budgets import Budgets

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Budgets",
    "Call",
    "Event",
    "LedgerRecord",
    "ListPrice",
    "NoBudgetError",
    "Price",
    "PriceBook",
    "Snapshot",
    "StoreError",
    "TokenFenceError",
    "UnknownBudgetError",
    "UnknownModelError",
    "UnmeteredError",
    "Usage",
    "async_guard",
    "guard",
    "scoped_budget",
]


def __getattr__(name: str) -> Any:
    # Files of budgets, and all that reads them, are a sixth of the import; few programs have one.
    if name == "Budgets":
        from tokenfence_integrations.tenants.budgets import Budgets

        return Budgets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "Budgets"]

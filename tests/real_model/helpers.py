"""What must hold of every budget, whatever a real model made of its calls."""

from tokenfence_integrations import Budget
from tokenfence_integrations.stores.base import NOTHING


def check_ended(budget: Budget) -> None:
    """No reservation is left, the ledger's sum is what was spent, and the cap is held."""
    state = budget.snapshot()
    assert state.reserved == NOTHING
    assert state.spent.usd == budget.ledger.total
    assert state.spent.usd + state.uncertain.usd <= (state.limits.usd or 0)
    for record in budget.ledger:
        assert record.cost <= record.bound

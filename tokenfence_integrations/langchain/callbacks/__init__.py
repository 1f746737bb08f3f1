"""Budgets by callbacks: a handler reserves when a model starts, and settles when it ends."""

from tokenfence_integrations.langchain.callbacks.handler import (
    BudgetCallbackHandler,
    budget_callbacks,
)

__all__ = ["BudgetCallbackHandler", "budget_callbacks"]

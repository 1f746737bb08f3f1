"""Budgets by callbacks alone, and what spans cost."""

from tokenfence_integrations.llama_index.callbacks.handler import BudgetCallbackHandler

__all__ = ["BudgetCallbackHandler"]

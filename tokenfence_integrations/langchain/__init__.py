"""Budgets inside LangChain and LangGraph.

Chat models and embeddings are guarded by `tokenfence_integrations.guard`; everything else is here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.langchain.callbacks.handler import (
    BudgetCallbackHandler,
    budget_callbacks,
)
from tokenfence_integrations.langchain.chat_models import BudgetedChatModel
from tokenfence_integrations.langchain.embeddings import BudgetedEmbeddings
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded

if TYPE_CHECKING:
    from tokenfence_integrations.langchain.agents.middleware import BudgetMiddleware
    from tokenfence_integrations.langchain.graphs import budgeted

__all__ = [
    "BudgetCallbackHandler",
    "BudgetMiddleware",
    "BudgetedChatModel",
    "BudgetedEmbeddings",
    "LangChainBudgetExceeded",
    "budget_callbacks",
    "budgeted",
]

# Agents and graphs take a second to import, and are not needed to guard a model.
_LATER = {
    "BudgetMiddleware": "tokenfence_integrations.langchain.agents.middleware",
    "budgeted": "tokenfence_integrations.langchain.graphs",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Budgets inside LangChain and LangGraph.

Chat models and embeddings are guarded by `tokenfence_integrations.guard`; here is the rest.
"""

from tokenfence_integrations.langchain.chat_models import BudgetedChatModel
from tokenfence_integrations.langchain.embeddings import BudgetedEmbeddings
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded

__all__ = ["BudgetedChatModel", "BudgetedEmbeddings", "LangChainBudgetExceeded"]

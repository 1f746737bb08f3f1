"""Budgets inside LlamaIndex: LLMs, embeddings, engines, agents, callbacks."""

from tokenfence_integrations.llama_index.callbacks.handler import BudgetCallbackHandler
from tokenfence_integrations.llama_index.callbacks.installing import install, installed, uninstall
from tokenfence_integrations.llama_index.callbacks.spans import CallCostEvent, CostReporter
from tokenfence_integrations.llama_index.embeddings import BudgetedEmbedding
from tokenfence_integrations.llama_index.engines import BudgetedQueryEngine, budget_for
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.estimates import Cost, CostEstimate, cost_of
from tokenfence_integrations.llama_index.llms import BudgetedLLM

__all__ = [
    "BudgetCallbackHandler",
    "BudgetedEmbedding",
    "BudgetedLLM",
    "BudgetedQueryEngine",
    "CallCostEvent",
    "Cost",
    "CostEstimate",
    "CostReporter",
    "LlamaIndexBudgetExceeded",
    "budget_for",
    "cost_of",
    "install",
    "installed",
    "uninstall",
]

"""Budgets inside LlamaIndex: LLMs, embeddings, engines, agents, callbacks."""

from tokenfence_integrations.llama_index.callbacks import BudgetCallbackHandler
from tokenfence_integrations.llama_index.embeddings import BudgetedEmbedding
from tokenfence_integrations.llama_index.engines import BudgetedQueryEngine, budget_for
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.estimates import Cost, CostEstimate, cost_of
from tokenfence_integrations.llama_index.installing import install, installed, uninstall
from tokenfence_integrations.llama_index.llms import BudgetedLLM
from tokenfence_integrations.llama_index.spans import CallCostEvent, CostReporter

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

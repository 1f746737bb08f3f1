"""Budgets inside LlamaIndex: LLMs, embeddings, engines, agents, callbacks."""

from tokenfence_integrations.llama_index.embeddings import BudgetedEmbedding
from tokenfence_integrations.llama_index.engines import BudgetedQueryEngine, budget_for
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.estimates import Cost, CostEstimate, cost_of
from tokenfence_integrations.llama_index.llms import BudgetedLLM

__all__ = [
    "BudgetedEmbedding",
    "BudgetedLLM",
    "BudgetedQueryEngine",
    "Cost",
    "CostEstimate",
    "LlamaIndexBudgetExceeded",
    "budget_for",
    "cost_of",
]

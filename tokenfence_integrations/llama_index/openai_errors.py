"""The refusal of LlamaIndex models over OpenAI clients; importing it imports openai."""

from tokenfence_integrations.clients.openai.client import OpenAIBudgetExceeded
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded

__all__ = ["OpenAILlamaIndexBudgetExceeded"]


class OpenAILlamaIndexBudgetExceeded(LlamaIndexBudgetExceeded, OpenAIBudgetExceeded):
    """A `BudgetExceeded` of an LLM, or of embeddings, that calls an OpenAI client."""

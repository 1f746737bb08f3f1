"""The refusal of LangChain models over OpenAI clients; importing it imports openai."""

from tokenfence_integrations.clients.openai.client import OpenAIBudgetExceeded
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded

__all__ = ["OpenAIModelBudgetExceeded"]


class OpenAIModelBudgetExceeded(LangChainBudgetExceeded, OpenAIBudgetExceeded):
    """A `BudgetExceeded` of a model that calls an OpenAI client."""

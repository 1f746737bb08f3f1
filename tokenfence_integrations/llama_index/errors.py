"""The refusal as LlamaIndex needs it."""

from functools import cache

from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["LlamaIndexBudgetExceeded", "refusal_class"]


class LlamaIndexBudgetExceeded(BudgetExceeded):
    """A `BudgetExceeded` that says how far an index has come.

    Attributes:
        completed: How many texts (of an index: nodes) of the list that met the limit are embedded,
            and will not be paid for again. Equal texts count each.
    """

    completed: int = 0


@cache
def refusal_class() -> type[BudgetExceeded]:
    """Refusals that neither the OpenAI SDK nor LlamaIndex's own retries try again."""
    from tokenfence_integrations.clients.openai.client import OpenAIBudgetExceeded

    class OpenAILlamaIndexBudgetExceeded(LlamaIndexBudgetExceeded, OpenAIBudgetExceeded):
        """A `BudgetExceeded` of an LLM, or of embeddings, that calls an OpenAI client."""

    return OpenAILlamaIndexBudgetExceeded

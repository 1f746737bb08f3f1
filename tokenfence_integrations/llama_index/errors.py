"""The refusal as LlamaIndex needs it."""

from typing import Any

from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["LlamaIndexBudgetExceeded", "refusal_class"]


class LlamaIndexBudgetExceeded(BudgetExceeded):
    """A `BudgetExceeded` that says how far an index has got.

    Attributes:
        completed: How many texts of the list (nodes of an index) were embedded before the limit was
            reached, and will not be paid for again. Equal texts each count.
    """

    completed: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"completed": self.completed}


def refusal_class() -> type[BudgetExceeded]:
    """Refusals that neither the OpenAI SDK nor LlamaIndex's own retries try again."""
    from tokenfence_integrations.llama_index.openai_errors import OpenAILlamaIndexBudgetExceeded

    return OpenAILlamaIndexBudgetExceeded

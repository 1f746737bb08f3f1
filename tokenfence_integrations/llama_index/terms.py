"""What an LLM was guarded with, and the LLMs that may answer in its place."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.errors import LlamaIndexBudgetExceeded
from tokenfence_integrations.llama_index.partials import REMEMBERED, Answers
from tokenfence_integrations.llama_index.tools import same_family
from tokenfence_integrations.models import terms

__all__ = ["Terms", "as_it_is"]


def as_it_is(client: Any) -> Any:
    """The client itself."""
    return client


@dataclass(slots=True, weakref_slot=True)
class Terms(terms.Terms):
    """What an LLM was guarded with; its copies and its fallbacks share it.

    Args:
        guard_client: Makes the OpenAI client to use of the one that an LLM has.
        kept_vectors: Embeddings by model and text that were paid for, of lists that met the limit.
        answers: What was answered lately, see `partials`.
    """

    error: type[BudgetExceeded] = LlamaIndexBudgetExceeded
    guard_client: Callable[[Any], Any] = as_it_is
    kept_vectors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    answers: Answers = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def foreign(self, llm: object) -> bool:
        """Whether a fallback is of another provider than the LLM, and takes options unlike it."""
        return any(not same_family(llm, target) for target in self.targets.values())

"""The refusal as LangChain and LangGraph need it, so that nothing retries it."""

from collections.abc import Sequence
from typing import Any

from langchain_core.exceptions import ModelError

from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["LangChainBudgetExceeded"]


class LangChainBudgetExceeded(BudgetExceeded, ModelError):
    """A `BudgetExceeded` that is not worth a retry, and says so to LangChain and LangGraph.

    `ModelRetryMiddleware` retries everything but a ``ModelError`` with ``is_retryable=False``;
    LangGraph's default retry policy everything but a few standard errors, RuntimeError among them.

    Attributes:
        embedded: The vectors that were paid for before a list of texts met the limit.
    """

    is_retryable = False
    embedded: Sequence[Sequence[float]] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"embedded": self.embedded}

"""The refusal as LangChain and LangGraph need it, so that nothing retries it."""

from collections.abc import Sequence
from typing import Any

from langchain_core.exceptions import ModelError

from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["LangChainBudgetExceeded"]


class LangChainBudgetExceeded(BudgetExceeded, ModelError):
    """A `BudgetExceeded` that LangChain and LangGraph do not retry.

    `ModelRetryMiddleware` retries everything except a ``ModelError`` with ``is_retryable=False``;
    LangGraph's default retry policy everything except a few standard errors, such as RuntimeError.

    Attributes:
        embedded: The vectors of a list of texts that were paid for before the limit was reached.
    """

    is_retryable = False
    embedded: Sequence[Sequence[float]] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"embedded": self.embedded}

"""A provider, LLMs that call it, a budget whose clock stands still, and LlamaIndex's settings."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager

from tests.callbacks import budget, clock, provider
from tests.llama_index.callbacks.helpers import PRICES, flat_llm
from tokenfence_integrations import Budget
from tokenfence_integrations.llama_index import BudgetCallbackHandler

__all__ = ["budget", "clock", "provider"]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that no other test sees; `_llm` and others are set by LlamaIndex itself."""
    for name in ("_callback_manager", "_llm", "_embed_model"):
        monkeypatch.setattr(Settings, name, None)


@pytest.fixture
def handler(budget: Budget) -> BudgetCallbackHandler:
    return BudgetCallbackHandler(budget, prices=PRICES)


@pytest.fixture
def with_handlers(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an LLM of "flat" that has these handlers."""

    def with_handlers(*handlers: Any, **options: Any) -> Any:
        return make(flat_llm, callback_manager=CallbackManager([*handlers]), **options)

    return with_handlers


@pytest.fixture
def llm(with_handlers: Callable[..., Any], handler: BudgetCallbackHandler) -> Any:
    """An LLM whose calls the handler hears of."""
    return with_handlers(handler)

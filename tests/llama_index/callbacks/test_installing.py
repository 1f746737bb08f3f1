"""Where LlamaIndex drops a handler, and where it does not."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings, SummaryIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import TextNode

from tests.clients.helpers import check_books
from tests.llama_index import models
from tests.llama_index.callbacks.helpers import FLAT, HELLO, PRICES, flat_llm, for_calls
from tokenfence_integrations import Budget, BudgetExceeded
from tokenfence_integrations.llama_index import (
    BudgetCallbackHandler,
    cost_of,
    install,
    installed,
    uninstall,
)
from tokenfence_integrations.testing import SimulatedProvider


def engine(llm: Any) -> Any:
    return SummaryIndex([TextNode(text="Water is wet.")]).as_query_engine(llm=llm)


@pytest.fixture
def plain(make: Callable[..., Any]) -> Any:
    """An LLM without handlers of its own."""
    return make(flat_llm)


class TestDropped:
    """LlamaIndex's own pitfall, and what `installed` makes of it."""

    @pytest.fixture
    def refusing(self, with_handlers: Callable[..., Any]) -> Any:
        """An LLM whose own handler refuses every call."""
        return with_handlers(BudgetCallbackHandler("$0", prices=PRICES))

    def test_by_a_query_engine(self, refusing: Any, provider: SimulatedProvider) -> None:
        with pytest.raises(BudgetExceeded):
            refusing.chat(HELLO)
        engine(refusing).query("Why?")
        assert provider.requests == 1  # past the handler
        refusing.chat(HELLO)
        assert provider.requests == 2  # and for good

    def test_by_the_settings(self, refusing: Any, provider: SimulatedProvider) -> None:
        Settings.callback_manager = CallbackManager()
        Settings.llm = refusing
        Settings.llm.chat(HELLO)
        assert provider.requests == 1

    def test_not_if_installed(self, refusing: Any, provider: SimulatedProvider) -> None:
        with installed("$0", prices=PRICES):
            with pytest.raises(BudgetExceeded):
                engine(refusing).query("Why?")
            with pytest.raises(BudgetExceeded):
                refusing.chat(HELLO)
        assert provider.requests == 0


class TestInstalled:
    def test_engines(self, plain: Any, budget: Budget, provider: SimulatedProvider) -> None:
        with installed(budget, prices=PRICES) as handler:
            engine(plain).query("Why?")
            assert handler.tokenfence is budget
        check_books(budget, provider)

    def test_llms_made_inside(
        self, make: Callable[..., Any], budget: Budget, provider: SimulatedProvider
    ) -> None:
        with installed(budget, prices=PRICES):
            make(flat_llm).chat(HELLO)
        check_books(budget, provider)

    def test_it_is_removed(self, plain: Any, budget: Budget, provider: SimulatedProvider) -> None:
        before = [*Settings.callback_manager.handlers]
        with contextlib.suppress(ZeroDivisionError), installed(budget, prices=PRICES):
            assert len(Settings.callback_manager.handlers) == len(before) + 1
            raise ZeroDivisionError
        assert Settings.callback_manager.handlers == before
        engine(plain).query("Why?")
        assert len(budget.ledger) == 0

    def test_nested(self, plain: Any, budget: Budget, provider: SimulatedProvider) -> None:
        """Both hold; a child and its parent are charged once."""
        child, other = budget.child("part"), Budget("$1")
        with installed(budget, prices=PRICES), installed(child, prices=PRICES):
            engine(plain).query("Why?")
            with installed(other, prices=PRICES), installed(budget, prices=PRICES):
                engine(plain).query("Why?")
            with installed(for_calls(0), prices=PRICES), pytest.raises(BudgetExceeded):
                engine(plain).query("Why?")
        assert provider.requests == 2
        assert budget.snapshot().spent.usd == child.snapshot().spent.usd == 2 * FLAT
        assert budget.reserved == budget.uncertain == 0
        assert other.snapshot().spent.usd == FLAT

    def test_in_any_order(self, plain: Any, provider: SimulatedProvider) -> None:
        first, second = (install("$1", prices=PRICES) for _ in range(2))
        uninstall(first)
        uninstall(first)
        engine(plain).query("Why?")
        uninstall(second)
        assert first.tokenfence.spent == 0
        assert second.tokenfence.snapshot().spent.usd == provider.billed
        assert not Settings.callback_manager.handlers

    def test_a_manager_set_later(self, plain: Any, provider: SimulatedProvider) -> None:
        """It has to be installed again; then it holds there as well."""
        with installed("$0", prices=PRICES):
            Settings.callback_manager = CallbackManager([_silent()])
            engine(plain).query("Why?")
            assert provider.requests == 1
            with installed("$1", prices=PRICES), pytest.raises(BudgetExceeded):
                engine(plain).query("Why?")

    def test_a_stream_that_outlives_the_block(
        self, make: Callable[..., Any], budget: Budget, provider: SimulatedProvider
    ) -> None:
        with installed(budget, prices=PRICES):
            stream = make(flat_llm).stream_chat(HELLO)
        assert Settings.callback_manager.handlers
        list(stream)
        check_books(budget, provider)
        assert not Settings.callback_manager.handlers

    def test_a_budget_for_each_request(self, plain: Any, provider: SimulatedProvider) -> None:
        """Without a budget of its own it takes the one in scope."""
        team = Budget("$1", name="team")
        with installed(prices=PRICES):
            for name in ("one", "two"):
                with team.child(name).scope():
                    engine(plain).query("Why?")
        spent = [child.snapshot().spent.usd for child in team.children.values()]
        assert spent == [FLAT, FLAT]

    def test_from_many_threads(self, plain: Any, provider: SimulatedProvider) -> None:
        """Each block's budget is charged for all calls in it, whoever comes and goes meanwhile."""
        Settings.llm = plain
        begin = threading.Barrier(8)
        spent: list[int] = []

        def ask() -> None:
            budget = Budget("$1")
            begin.wait()
            with installed(budget, prices=PRICES):
                Settings.llm.chat(HELLO)
                spent.append(budget.snapshot().spent.usd)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(spent) == 8
        assert min(spent) >= FLAT
        assert not Settings.callback_manager.handlers

    def test_a_dry_run_is_not_charged(
        self, make: Callable[..., Any], budget: Budget, provider: SimulatedProvider
    ) -> None:
        with installed(budget, prices=PRICES):
            nodes = [TextNode(text="Water is wet."), TextNode(text="Fire is hot.")]
            asked = SummaryIndex(nodes).as_query_engine(
                llm=make(flat_llm),
                retriever_mode="embedding",
                embed_model=make(models.openai_embedding),
            )
            estimate = cost_of(asked, "Why?", prices=PRICES)
        assert estimate.bound.calls == 4  # the question, two nodes, the answer
        assert provider.requests == 0
        assert len(budget.ledger) == 0

    async def test_tasks(self, plain: Any, budget: Budget, provider: SimulatedProvider) -> None:
        with installed(budget, prices=PRICES):
            asked = engine(plain)
            await asyncio.gather(*[asked.aquery("Why?") for _ in range(5)])
        check_books(budget, provider)


def _silent() -> Any:
    """A handler that leaves its manager with a list of its own."""
    return BudgetCallbackHandler("$100", prices=PRICES)

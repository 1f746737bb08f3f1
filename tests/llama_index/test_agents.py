"""Agents whose budget runs out end on it: they say so, and do not ask on."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.tools import FunctionTool

from tests.clients.helpers import check_books
from tests.llama_index import models
from tests.llama_index.entry_points import (
    OWN_WARNINGS,
    QUESTION,
    TOOL,
    answers,
    function_agent,
    looping,
    memory,
    react_agent,
    team,
)
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = OWN_WARNINGS

SPACE = 200
TURNS = 3
"""Calls that fit."""

AGENTS: dict[str, Callable[[Any], Any]] = {
    "FunctionAgent": lambda llm: function_agent(llm, streaming=False),
    "FunctionAgent stream": lambda llm: function_agent(llm, streaming=True),
    "ReActAgent": lambda llm: react_agent(llm, streaming=False),
    "ReActAgent stream": lambda llm: react_agent(llm, streaming=True),
    "AgentWorkflow": team,
}
each_agent = pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
REACT: dict[str, Any] = {
    "react_chat_formatter": ReActChatFormatter(),
    "output_parser": ReActOutputParser(),
}


@pytest.fixture
def plain(make: Callable[..., Any]) -> Any:
    return make(models.openai_llm, max_tokens=SPACE)


@pytest.fixture
def turns() -> Budget:
    return Budget(calls=TURNS)


@each_agent
async def test_an_agent_ends_on_the_refusal(
    agent: Callable[[Any], Any], plain: Any, provider: SimulatedProvider, turns: Budget
) -> None:
    provider.script = looping
    said = memory([])

    output = await agent(guard(plain, budget=turns)).run(user_msg=QUESTION, memory=said)

    assert "[TokenFence] Budget of 3 calls exceeded" in str(output)
    assert len(output.tool_calls) == provider.requests == TURNS  # what was paid for is kept
    assert "[TokenFence]" in str(said.get_all()[-1].content)
    check_books(turns, provider)


@each_agent
async def test_an_agent_raises_the_refusal(
    agent: Callable[[Any], Any], plain: Any, provider: SimulatedProvider, turns: Budget
) -> None:
    provider.script = looping
    with pytest.raises(BudgetExceeded) as refused:
        await agent(guard(plain, budget=turns, on_limit="raise")).run(
            user_msg=QUESTION, memory=memory([])
        )
    assert (refused.value.quantity, refused.value.budget) == ("calls", TURNS)
    assert provider.requests == TURNS
    check_books(turns, provider)


async def test_an_agent_goes_on_after_a_top_up(
    plain: Any, provider: SimulatedProvider, turns: Budget
) -> None:
    provider.script = looping
    llm, said = guard(plain, budget=turns), memory([])
    await function_agent(llm).run(user_msg=QUESTION, memory=said)
    turns.top_up(calls=1)
    provider.script = answers

    output = await function_agent(llm).run(user_msg="Go on.", memory=said)

    assert "High tide is at noon." in str(output)
    assert provider.requests == TURNS + 1
    check_books(turns, provider)


async def test_a_tool_that_asks_the_same_llm_counts_as_well(
    plain: Any, provider: SimulatedProvider, budget: Budget
) -> None:
    llm = guard(plain, budget=budget)

    async def search(query: str) -> str:
        """Search for something."""
        return str(await llm.acomplete(query))

    provider.script = answers
    agent = function_agent(llm)
    agent.tools = [FunctionTool.from_defaults(async_fn=search, name="search")]
    await agent.run(user_msg=QUESTION, memory=memory([]))
    assert provider.requests == 3
    check_books(budget, provider)


class TestPredictAndCall:
    """Without function calling, LlamaIndex makes a text of any exception, and drops any answer."""

    @pytest.fixture
    def plain(self, make: Callable[..., Any]) -> Any:
        return make(models.openai_like, max_tokens=SPACE, is_function_calling_model=False)

    async def test_the_books_are_the_bill(
        self, plain: Any, provider: SimulatedProvider, budget: Budget
    ) -> None:
        provider.script = answers
        llm = guard(plain, budget=budget)
        for response in (
            llm.predict_and_call([TOOL], QUESTION, **REACT),
            await llm.apredict_and_call([TOOL], QUESTION, **REACT),
        ):
            assert "Error 503" in response.response
        assert provider.requests == 2
        check_books(budget, provider)

    async def test_a_refusal_is_raised(self, plain: Any, provider: SimulatedProvider) -> None:
        budget = Budget("$0.000000001")
        llm = guard(plain, budget=budget, on_limit="raise")
        with pytest.raises(BudgetExceeded):
            llm.predict_and_call([TOOL], QUESTION, **REACT)
        with pytest.raises(BudgetExceeded):
            await llm.apredict_and_call([TOOL], QUESTION, **REACT)
        assert provider.requests == 0

    async def test_a_refusal_is_said(self, plain: Any, provider: SimulatedProvider) -> None:
        llm = guard(plain, budget="$0.000000001")
        for response in (
            llm.predict_and_call([TOOL], QUESTION, **REACT),
            await llm.apredict_and_call([TOOL], QUESTION, **REACT),
        ):
            assert response.response.startswith("[TokenFence] Budget of")
        assert provider.requests == 0

    def test_another_error_stays_a_text(self, plain: Any, provider: SimulatedProvider) -> None:
        provider.behave(status=400)
        response = guard(plain, budget="$1").predict_and_call([TOOL], QUESTION, **REACT)
        assert response.response.startswith("An error occurred while running the tool")

    def test_a_refusal_in_a_tool_is_raised(
        self, plain: Any, make: Callable[..., Any], provider: SimulatedProvider, budget: Budget
    ) -> None:
        inner = guard(make(models.openai_llm), budget="$0.000000001", on_limit="raise")

        def search(query: str) -> str:
            """Search for something."""
            return str(inner.complete(query))

        provider.script = answers
        llm = guard(plain, budget=budget)
        with pytest.raises(BudgetExceeded):
            llm.predict_and_call([FunctionTool.from_defaults(search)], QUESTION, **REACT)
        assert provider.requests == 1

"""Agents of agents: what middleware cannot see is covered where the model itself is guarded."""

from collections.abc import Callable
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import LLMToolSelectorMiddleware, SummarizationMiddleware
from langchain.tools import tool
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph_supervisor import create_supervisor

from tests.clients.helpers import check_books
from tests.langchain.agents import ASK, invoke, is_refusal, search, text_of
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain import BudgetMiddleware
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.script import Request, Say, ToolCall

WAYS = ["sync", "async"]
MakeChat = Callable[..., ChatOpenAI]


def delegating(request: Request) -> Say:
    """A supervisor that has two agents do something, each of which calls its own tool once."""
    tools = {tool["function"]["name"] for tool in request.body.get("tools", ())}
    if "ask_researcher" in tools:
        return [
            ToolCall(name, {"question": "tides?"})
            for name in ("ask_researcher", "ask_writer")
            if request.tool_results == 0
        ] or "Both are done."
    return ToolCall("search", {"query": "tides"}) if request.tool_results == 0 else "I am done."


def team_of(model: Any, **agents: Any) -> Any:
    """A supervisor whose tools are two agents."""
    made = {name: create_agent(m, [search], name=name) for name, m in agents.items()}

    @tool
    def ask_researcher(question: str) -> str:
        """Have the researcher find out."""
        return text_of(made["researcher"].invoke({"messages": [("user", question)]}))

    @tool
    def ask_writer(question: str) -> str:
        """Have the writer write."""
        return text_of(made["writer"].invoke({"messages": [("user", question)]}))

    return model, [ask_researcher, ask_writer]


@pytest.mark.parametrize("way", WAYS)
async def test_a_supervisor_of_two_agents_on_one_tree(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = delegating
    team = Budget("$1", name="team")
    shares = {name: team.child(name, "$0.30") for name in ("boss", "researcher", "writer")}
    boss, tools = team_of(
        plain,
        researcher=guard(plain, budget=shares["researcher"]),
        writer=guard(plain, budget=shares["writer"]),
    )
    agent = create_agent(boss, tools, middleware=[BudgetMiddleware(shares["boss"])])
    result = await invoke(agent, way, ASK)
    assert text_of(result) == "Both are done."
    assert len(provider.bill) == 6
    check_books(team, provider)
    assert all(len(share.ledger) == 2 for share in shares.values())


@pytest.mark.parametrize("way", WAYS)
async def test_a_team_ends_when_the_share_of_one_is_used_up(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = delegating
    team = Budget("$1", name="team")
    poor = guard(plain, budget=team.child("researcher", "$0.0001"))
    boss, tools = team_of(plain, researcher=poor, writer=guard(plain, budget=team.child("writer")))
    agent = create_agent(boss, tools, middleware=[BudgetMiddleware(team)])
    result = await invoke(agent, way, ASK)
    assert text_of(result) == "Both are done."
    told = next(m for m in result["messages"] if getattr(m, "name", "") == "ask_researcher")
    assert "exceeded" in told.text
    check_books(team, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_langgraph_supervisor(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    def script(request: Request) -> Say:
        names = {tool["function"]["name"] for tool in request.body.get("tools", ())}
        if "transfer_to_researcher" in names:
            done = any(m.get("name") == "researcher" for m in request.body["messages"])
            return "All is done." if done else ToolCall("transfer_to_researcher")
        return ToolCall("search", {"query": "tides"}) if request.tool_results < 2 else "Found it."

    provider.script = script
    budget = Budget("$1")
    model = guard(plain, budget=budget)
    researcher = create_agent(
        model, [search], name="researcher", middleware=[BudgetMiddleware(budget.child("research"))]
    )
    with pytest.warns(DeprecationWarning, match="create_react_agent"):
        graph = create_supervisor([researcher], model=model, prompt="You manage.").compile()
    result = await invoke(graph, way, ASK)
    assert text_of(result) == "All is done."
    check_books(budget, provider)
    assert 0 < len(budget.children["research"].ledger) < len(budget.ledger)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("calls", [100, 3])
async def test_deep_agents(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str, calls: int
) -> None:
    def script(request: Request) -> Say:
        names = {tool["function"]["name"] for tool in request.body.get("tools", ())}
        if "task" in names and request.tool_results == 0:
            return ToolCall("task", {"description": "tides?", "subagent_type": "researcher"})
        if "search" in names and "task" not in names and request.tool_results < 2:
            return ToolCall("search", {"query": "tides"})
        return "Here it is."

    provider.script = script
    budget = Budget(calls=calls)
    child = budget.child("research")
    spec: Any = {
        "name": "researcher",
        "description": "Finds things out.",
        "system_prompt": "Search.",
        "tools": [search],
        "middleware": [BudgetMiddleware(child, exit_behavior="end")],
    }
    agent = create_deep_agent(
        model=guard(plain, budget=budget),
        subagents=[spec],
        middleware=[BudgetMiddleware(None, run_limit="$1")],
    )
    result = await invoke(agent, way, ASK)
    assert is_refusal(result) == (calls == 3)
    assert len(provider.bill) == (5 if calls == 100 else 3)
    assert len(child.ledger) == (3 if calls == 100 else 2)
    check_books(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_summaries_and_the_choice_of_tools_count_where_the_model_is_guarded(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    def script(request: Request) -> Say | None:
        asked = str(request.body["messages"])
        return (
            None
            if "selection" in asked or "tool" in str(request.body.get("response_format"))
            else "Done."
        )

    provider.script = script
    budget = Budget("$1")
    model = guard(plain, budget=budget)
    summary = SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 2))
    agent = create_agent(model, [search], middleware=[summary, BudgetMiddleware(None)])
    talk = [HumanMessage("One?"), AIMessage("1"), HumanMessage("Two?"), AIMessage("2")]
    await invoke(agent, way, {"messages": [*talk, HumanMessage("Three?")]})
    assert len(provider.bill) == 2
    check_books(budget, provider)


async def test_a_choice_of_tools_is_refused_like_any_call(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    choosing = LLMToolSelectorMiddleware(model=guard(plain, budget="$0.00001"), max_tools=1)
    agent = create_agent(plain, [search], middleware=[choosing, BudgetMiddleware("$1")])
    with pytest.raises(BudgetExceeded):
        await agent.ainvoke(ASK)
    assert provider.requests == 0

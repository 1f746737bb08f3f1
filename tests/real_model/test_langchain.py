"""Agents and graphs of a real (small) model: a tool loop and two agents, streamed, in a budget.

The model knows no tools: a chat template with worked examples has it call them. It is priced as
the models that it is asked for, and the truth is the usage that its server reported.
"""

import operator
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from tests.real_model.helpers import check_ended
from tokenfence_integrations import Budget, Usage, guard
from tokenfence_integrations.demo.real_model import RealModel
from tokenfence_integrations.langchain import BudgetCallbackHandler, BudgetMiddleware
from tokenfence_integrations.langchain.replies import FINISH_REASON
from tokenfence_integrations.pricing.book import book_of

pytestmark = pytest.mark.real_model

TEMPLATE = Path(__file__).with_name("tools.jinja").read_text(encoding="utf-8")
CARD = book_of().card("gpt-4o")


@pytest.fixture(scope="module")
def tool_model() -> Iterator[RealModel]:
    with RealModel(n_ctx=8192, n_parallel=4, chat_template=TEMPLATE) as model:
        yield model


@pytest.fixture
async def chat(tool_model: RealModel) -> AsyncIterator[ChatOpenAI]:
    with openai.DefaultHttpxClient() as sync:
        async with openai.DefaultAsyncHttpxClient() as asynchronous:
            yield ChatOpenAI(
                model="gpt-4o",
                base_url=tool_model.base_url,
                api_key="unused",
                max_tokens=48,
                max_retries=0,
                stream_usage=True,
                http_client=sync,
                http_async_client=asynchronous,
            )


@tool
def search(query: str) -> str:
    """Search the web."""
    return "Goethe wrote Faust. It was printed in 1808."


def answers(messages: Iterable[Any]) -> list[AIMessage]:
    """The answers among some messages that came from the server."""
    return [
        message
        for message in messages
        if isinstance(message, AIMessage)
        and message.response_metadata.get("finish_reason") != FINISH_REASON
    ]


def cost_of(message: AIMessage) -> int:
    """Nano-dollars of what the server reported for an answer."""
    used = message.usage_metadata
    assert used is not None
    cached = used.get("input_token_details", {}).get("cache_read", 0)
    return CARD.cost(Usage(used["input_tokens"], used["output_tokens"], cached_tokens=cached))


async def stream_agent(agent: Any, question: str) -> tuple[list[Any], list[Any]]:
    """The chunks of a run, and the messages at its end."""
    chunks, state = [], {}
    inputs = {"messages": [HumanMessage(question)]}
    async for mode, part in agent.astream(inputs, stream_mode=["messages", "values"]):
        if mode == "messages":
            chunks.append(part[0])
        else:
            state = part
    return chunks, state["messages"]


async def test_an_agent_calls_its_tool_and_answers(chat: ChatOpenAI) -> None:
    budget = Budget("$1", name="agent")
    agent = create_agent(guard(chat, budget=budget), [search])
    chunks, messages = await stream_agent(agent, "Who wrote Faust?")

    [call] = [call for message in answers(messages) for call in message.tool_calls]
    assert call["name"] == "search"
    assert "Faust" in call["args"]["query"]
    assert [message.content for message in messages if isinstance(message, ToolMessage)]
    assert sum(isinstance(chunk, AIMessageChunk) for chunk in chunks) > 10
    assert len(budget.ledger) == len(answers(messages)) == 2
    assert {record.outcome for record in budget.ledger} == {"settled"}
    assert budget.snapshot().spent.usd == sum(map(cost_of, answers(messages)))
    check_ended(budget)


def test_the_same_without_streaming_or_asyncio(chat: ChatOpenAI) -> None:
    budget = Budget("$1", name="agent")
    agent = create_agent(guard(chat, budget=budget), [search])
    messages = agent.invoke({"messages": [HumanMessage("Who wrote Faust?")]})["messages"]

    assert len(answers(messages)) == 2
    assert budget.snapshot().spent.usd == sum(map(cost_of, answers(messages)))
    check_ended(budget)


async def test_a_run_ends_where_its_budget_does(chat: ChatOpenAI) -> None:
    rich = Budget("$1", name="rich")
    await stream_agent(create_agent(guard(chat, budget=rich), [search]), "Who wrote Faust?")
    first, _ = rich.ledger

    # The first call fits exactly; what it leaves is less than a second one, with more to read.
    budget = Budget(first.bound / 1e9, name="agent")
    agent = create_agent(guard(chat, budget=budget), [search])
    chunks, messages = await stream_agent(agent, "Who wrote Faust?")

    [answer] = answers(messages)
    assert answer.tool_calls
    assert messages[-1].content.startswith("[TokenFence]")
    assert any(chunk.content == messages[-1].content for chunk in chunks)
    assert budget.snapshot().spent.usd == cost_of(answer)
    check_ended(budget)


async def test_an_agent_sums_up_when_its_budget_is_gone(chat: ChatOpenAI) -> None:
    rich = Budget("$1", name="rich")
    await stream_agent(create_agent(guard(chat, budget=rich), [search]), "Who wrote Faust?")
    first, second = rich.ledger

    # Room for the first call beside what is held for the last answer, and for no third one.
    budget = Budget((first.bound + second.bound) / 1e9, name="agent")
    limit = BudgetMiddleware(budget, exit_behavior="wrap_up", run_limit={"calls": 2})
    agent = create_agent(chat, [search], middleware=[limit])
    chunks, messages = await stream_agent(agent, "Who wrote Faust?")

    asked, last = answers(messages)
    assert asked.tool_calls
    assert last.response_metadata["budget_exit"] == "wrap_up"
    assert last.content
    assert not last.tool_calls
    assert len(chunks) > 10
    assert budget.snapshot().spent.usd == cost_of(asked) + cost_of(last)
    check_ended(budget)


async def test_a_callback_handler_sees_the_calls_of_an_agent(chat: ChatOpenAI) -> None:
    budget = Budget("$1", name="agent")
    handler = BudgetCallbackHandler(budget)
    agent = create_agent(chat, [search])
    ask: Any = {"messages": [HumanMessage("Who wrote Faust?")]}
    messages = (await agent.ainvoke(ask, {"callbacks": [handler]}))["messages"]

    assert len(answers(messages)) == len(budget.ledger) == 2
    assert budget.snapshot().spent.usd == sum(map(cost_of, answers(messages)))
    check_ended(budget)


class Article(TypedDict):
    """The state of the graph."""

    questions: list[str]
    notes: Annotated[list[str], operator.add]
    seen: Annotated[list[Any], operator.add]


def team_of(chat: ChatOpenAI, team: Budget) -> Any:
    """Researchers, side by side, that use a tool; and a writer after them."""
    researcher = create_agent(guard(chat, budget=team.child("researcher", "$0.5")), [search])
    writer = guard(chat, budget=team.child("writer", "$0.5"))

    async def research(question: str) -> dict[str, Any]:
        state = await researcher.ainvoke({"messages": [HumanMessage(question)]})
        found = state["messages"]
        return {"notes": [str(found[-1].content)], "seen": found}

    async def write(state: Article) -> dict[str, Any]:
        draft = await writer.ainvoke("Write a line about: " + " ".join(state["notes"]))
        return {"seen": [draft]}

    graph = StateGraph(Article)
    graph.add_node("research", research)
    graph.add_node("write", write)
    graph.add_conditional_edges(
        START, lambda state: [Send("research", text) for text in state["questions"]], ["research"]
    )
    graph.add_edge("research", "write")
    graph.add_edge("write", END)
    return graph.compile()


QUESTIONS = ["Who wrote Faust?", "Where do whales live?", "Why is the sky blue?"]


async def test_two_agents_of_a_team_are_streamed_within_its_budget(chat: ChatOpenAI) -> None:
    team = Budget("$1", name="team")
    start: Any = {"questions": QUESTIONS, "notes": [], "seen": []}
    chunks, state = [], start
    async for mode, part in team_of(chat, team).astream(start, stream_mode=["messages", "values"]):
        if mode == "messages":
            chunks.append(part)
        else:
            state = part

    nodes = {metadata["langgraph_node"] for _, metadata in chunks}
    assert {"write"} < nodes
    *researched, draft = answers(state["seen"])
    assert sum(bool(message.tool_calls) for message in researched) >= len(QUESTIONS) - 1
    researcher, writer = team.child("researcher"), team.child("writer")
    assert researcher.snapshot().spent.usd == sum(map(cost_of, researched))
    assert writer.snapshot().spent.usd == cost_of(draft)
    spent = team.snapshot().spent
    assert spent.usd == researcher.snapshot().spent.usd + writer.snapshot().spent.usd
    assert spent.calls == len(researched) + 1
    for budget in (team, researcher, writer):
        check_ended(budget)


async def test_a_team_without_enough_money_stays_within_it(chat: ChatOpenAI) -> None:
    whole = Budget("$1", name="whole")
    start: Any = {"questions": QUESTIONS, "notes": [], "seen": []}
    await team_of(chat, whole).ainvoke(start)
    team = Budget(0.6 * whole.spent, name="team")
    state = await team_of(chat, team).ainvoke(start)

    assert 0 < team.snapshot().spent.usd == sum(map(cost_of, answers(state["seen"])))
    assert len(answers(state["seen"])) < whole.calls
    check_ended(team)

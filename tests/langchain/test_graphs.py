"""Nodes of a graph within budgets."""

import asyncio
import operator
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, RetryPolicy, Send, StreamWriter, interrupt
from typing_extensions import TypedDict

from tests.clients.helpers import check_books
from tests.langchain.agents import ASK, invoke, params, text_of
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain import BudgetMiddleware, budgeted
from tokenfence_integrations.testing import SimulatedProvider

WAYS = ["sync", "async"]


class State(TypedDict, total=False):
    """A question, an answer from each, and who else had to do something."""

    question: str
    share: str
    answers: Annotated[list[str], operator.add]
    skipped: Annotated[list[str], operator.add]


def asking(model: Any, way: str) -> Callable[..., Any]:
    """A node that asks a model."""

    def ask(state: State) -> State:
        return {"answers": [model.invoke(state["question"]).text]}

    async def aask(state: State) -> State:
        return {"answers": [(await model.ainvoke(state["question"])).text]}

    return ask if way == "sync" else aask


def graph_of(node: Any, **options: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("ask", node, **options)
    graph.add_node("cheap", lambda state: {"skipped": ["cheap"]})
    graph.add_edge(START, "ask")
    return graph.compile()


QUESTION = {"question": "When is the next high tide?"}


@pytest.mark.parametrize("way", WAYS)
async def test_a_node_counts_against_its_budget(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    team = Budget("$1", name="team")
    share = team.child("asking", "$0.10")
    result = await invoke(graph_of(budgeted(asking(guard(plain), way), share)), way, QUESTION)
    assert result["answers"]
    check_books(team, provider)
    assert len(share.ledger) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_node_that_exceeds_its_share_is_raised_once_or_routed(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    node = asking(guard(plain, on_limit="raise"), way)
    poor = Budget("$0.00001", name="poor")
    refused: list[Any] = []
    poor.on_event(lambda event: refused.append(event.kind))
    with pytest.raises(BudgetExceeded, match="poor"):
        await invoke(graph_of(budgeted(node, poor), retry_policy=RetryPolicy()), way, QUESTION)
    assert refused == ["refused"]
    routed = await invoke(graph_of(budgeted(node, poor, on_exceeded="cheap")), way, QUESTION)
    assert routed["skipped"] == ["cheap"]

    def instead(state: State, error: BudgetExceeded) -> Any:
        return Command(update={"answers": [f"{error.name}: {state['question']}"]}, goto="cheap")

    made = await invoke(graph_of(budgeted(node, poor, on_exceeded=instead)), way, QUESTION)
    assert made["answers"] == ["poor: When is the next high tide?"]
    assert made["skipped"] == ["cheap"]
    assert provider.requests == 0


async def test_what_is_done_instead_may_be_async(plain: ChatOpenAI) -> None:
    async def instead(state: State, error: BudgetExceeded) -> State:
        await asyncio.sleep(0)
        return {"answers": ["none"]}

    node = budgeted(
        asking(guard(plain, on_limit="raise"), "async"), Budget("$0.00001"), on_exceeded=instead
    )
    assert (await graph_of(node).ainvoke(QUESTION))["answers"] == ["none"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_hundred_sends_with_a_share_each(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    team = Budget("$1", name="team")
    # A share for each of ten customers, of which one can pay nothing.
    node = budgeted(
        asking(guard(plain, on_limit="raise"), way),
        lambda state: team.child(state["share"], "$0" if state["share"] == "9" else "$0.05"),
        on_exceeded=lambda state, error: {"skipped": [error.name]},
    )
    graph = StateGraph(State)
    graph.add_node("ask", node)
    sends = [Send("ask", {**QUESTION, "share": str(n % 10)}) for n in range(100)]
    graph.add_conditional_edges(START, lambda _: sends)
    graph.add_edge("ask", END)
    result = await invoke(graph.compile(), way, {})
    assert len(result["answers"]) == 90
    assert result["skipped"] == ["team/9"] * 10
    check_books(team, provider)
    assert [len(team.children[str(n)].ledger) for n in range(10)] == [10] * 9 + [0]


@pytest.mark.parametrize("way", WAYS)
async def test_sub_graphs_and_agents_as_nodes(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    from langchain.agents import create_agent

    budget = Budget("$1")
    inner = graph_of(asking(guard(plain), way))
    result = await invoke(graph_of(budgeted(inner, budget)), way, QUESTION)
    assert len(result["answers"]) == 1
    agent = create_agent(plain, middleware=[BudgetMiddleware(None)], name="helper")
    node = budgeted(agent, budget)
    assert node.get_name() == "helper"
    assert text_of(await invoke(node, way, ASK))
    check_books(budget, provider)
    assert len(budget.ledger) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_sub_graph_is_still_found_and_resumed(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    def confirm(state: State) -> State:
        return {"skipped": [interrupt("go on?")]}

    budget = Budget("$1")
    inner = StateGraph(State)
    inner.add_node("ask", asking(guard(plain), way))
    inner.add_node("confirm", confirm)
    inner.add_edge(START, "ask")
    inner.add_edge("ask", "confirm")
    outer = StateGraph(State)
    outer.add_node("inner", budgeted(inner.compile(), budget))
    outer.add_edge(START, "inner")
    graph = outer.compile(checkpointer=InMemorySaver())
    assert [name for name, _ in graph.get_subgraphs()] == ["inner"]
    config = {"configurable": {"thread_id": "one"}}
    assert (await invoke(graph, way, QUESTION, config))["__interrupt__"]
    result = await invoke(graph, way, Command(resume="yes"), config)
    assert result["skipped"] == ["yes"]
    check_books(budget, provider)
    assert len(budget.ledger) == 1


def test_what_langgraph_hands_to_a_node_arrives() -> None:
    got: dict[str, Any] = {}

    def node(
        state: State, config: RunnableConfig, runtime: Runtime[Any], *, writer: StreamWriter
    ) -> State:
        got.update(config=config, runtime=runtime, writer=writer)
        writer("hello")
        return {"answers": ["fine"]}

    wrapped = budgeted(node, Budget("$1"))
    assert params(wrapped) == ["state", "config", "runtime", "writer"]
    assert wrapped.__name__ == "node"
    graph = StateGraph(State)
    graph.add_node(wrapped)
    graph.add_edge(START, "node")
    seen = [*graph.compile().stream({}, {"tags": ["mine"]}, stream_mode="custom")]
    assert seen == ["hello"]
    assert got["config"]["tags"] == ["mine"]


class Callable_:
    """A node that is an object."""

    async def __call__(self, state: State) -> State:
        return {"answers": ["object"]}


async def test_an_object_that_can_be_called() -> None:
    graph = graph_of(budgeted(Callable_(), Budget("$1")))
    assert (await graph.ainvoke(QUESTION))["answers"] == ["object"]


def test_bad_arguments() -> None:
    budget: Any = "$1"
    node: Any = "ask"
    with pytest.raises(TypeError, match="a Budget, or a function"):
        budgeted(lambda state: state, budget)
    with pytest.raises(TypeError, match="a function or a runnable"):
        budgeted(node, Budget("$1"))
    with pytest.raises(TypeError, match="on_exceeded"):
        budgeted(lambda state: state, Budget("$1"), on_exceeded=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must return a Budget"):
        budgeted(lambda state: state, lambda state: "$1")({})  # type: ignore[arg-type, return-value]

"""Shares of a budget: who is charged to which, and that nobody takes another's."""

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from tests.clients.helpers import check_books, in_dollars
from tests.langchain.callbacks.helpers import FLAT, PRICES, for_calls, with_handler
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain.callbacks.allocations import Allocations
from tokenfence_integrations.langchain.callbacks.handler import (
    BudgetCallbackHandler,
    budget_callbacks,
)
from tokenfence_integrations.testing import SimulatedProvider

SHARES = Allocations({"writer": 1, "reader": 2, "team=alpha": 3, "loud": None})


@pytest.fixture
def team() -> Budget:
    return Budget("$100", name="team")


class TestKeys:
    @pytest.mark.parametrize(
        ("metadata", "tags", "expected"),
        [
            ({}, [], "team"),
            ({}, None, "team"),
            ({"langgraph_node": "writer"}, [], "team/writer"),
            ({"lc_agent_name": "writer"}, [], "team/writer"),
            ({}, ["seq:step:1", "writer"], "team/writer"),
            ({"team": "alpha"}, [], "team/team=alpha"),
            ({"team": "beta"}, [], "team"),
            ({"writer": "writer"}, [], "team"),
            ({}, ["loud"], "team/loud"),
            # the first that has a share decides
            ({"lc_agent_name": "writer", "langgraph_node": "reader"}, [], "team/writer"),
            ({"lc_agent_name": "other", "langgraph_node": "reader"}, [], "team/reader"),
            ({"langgraph_node": "model", "team": "alpha"}, ["reader"], "team/reader"),
            # nodes around, innermost first
            (
                {
                    "langgraph_node": "model",
                    "langgraph_checkpoint_ns": "reader:1-2|writer:3-4|model:5-6",
                },
                [],
                "team/writer",
            ),
        ],
    )
    def test_account(self, team: Budget, metadata: Any, tags: Any, expected: str) -> None:
        assert SHARES.account(team, metadata, tags).name == expected

    def test_children_are_made_on_first_use(self, team: Budget) -> None:
        assert not team.children
        writer = SHARES.account(team, {"langgraph_node": "writer"}, [])
        assert writer.budget == 1.0
        assert SHARES.account(team, {}, ["writer"]) is writer
        assert SHARES.account(team, {}, ["loud"]).remaining == float("inf")

    def test_a_child_that_exists_with_another_limit(self, team: Budget) -> None:
        team.child("writer", "$3")
        with pytest.raises(ValueError, match="exists with"):
            BudgetCallbackHandler(team, allocations={"writer": 1})
        BudgetCallbackHandler(team, allocations={"writer": 3})


class TestRuns:
    def test_tags_and_metadata(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        shares = {"writer": 1, "team=alpha": 1}
        config = with_handler(BudgetCallbackHandler(team, prices=PRICES, allocations=shares))
        model.invoke("Hello", {**config, "tags": ["writer"]})
        model.invoke("Hello", {**config, "metadata": {"team": "alpha"}})
        model.invoke("Hello", config)
        check_books(team, provider)
        assert {name: child.calls for name, child in team.children.items()} == {
            "writer": 1,
            "team=alpha": 1,
        }

    def test_the_budget_in_scope_is_split(self, model: ChatOpenAI, team: Budget) -> None:
        config = with_handler(BudgetCallbackHandler(prices=PRICES, allocations={"writer": 1}))
        with team.scope():
            model.invoke("Hello", {**config, "tags": ["writer"]})
        assert team.children["writer"].calls == 1

    def test_agents_by_name(self, model: ChatOpenAI, team: Budget, provider: Any) -> None:
        agent = create_agent(model, [], name="writer")
        handler = BudgetCallbackHandler(team, prices=PRICES, allocations={"writer": 1})
        agent.invoke({"messages": [("user", "Hello")]}, with_handler(handler))
        check_books(team, provider)
        assert team.children["writer"].calls == 1

    def test_agents_without_a_name_by_their_node(self, model: ChatOpenAI, team: Budget) -> None:
        """Inside of it the node is called "model"."""
        graph = StateGraph(create_agent(model, []).builder.state_schema)
        graph.add_node("writer", create_agent(model, []))
        graph.add_edge(START, "writer")
        with budget_callbacks(team, prices=PRICES, allocations={"writer": 1}):
            graph.compile().invoke({"messages": [("user", "Hello")]})
        assert team.children["writer"].calls == 1


class Notes(TypedDict):
    topics: list[str]
    notes: Annotated[list[Any], operator.add]
    text: str


class Graph:
    """A finished graph: a planner, a researcher for each topic, a writer.

    Args:
        model: What all of them call.
        rounds: How often each researcher asks.
    """

    def __init__(self, model: Any, *, rounds: int = 1) -> None:
        self.model = model
        self.rounds = rounds
        graph = StateGraph(Notes)
        graph.add_node("planner", self.plan)
        graph.add_node("researcher", self.research)
        graph.add_node("writer", self.write)
        graph.add_edge(START, "planner")
        graph.add_conditional_edges("planner", self.send, ["researcher"])
        graph.add_edge("researcher", "writer")
        self.app = graph.compile()

    async def plan(self, state: Any) -> Any:
        await self.model.ainvoke("Plan")
        return {"topics": [f"Topic {n}" for n in range(10)]}

    def send(self, state: Any) -> Any:
        return [Send("researcher", {"topic": topic}) for topic in state["topics"]]

    async def research(self, state: Any) -> Any:
        notes: list[Any] = []
        for _ in range(self.rounds):
            try:
                notes.append(await self.model.ainvoke(state["topic"]))
            except BudgetExceeded as refusal:
                return {"notes": [*notes, refusal]}
        return {"notes": notes}

    async def write(self, state: Any) -> Any:
        return {"text": (await self.model.ainvoke("Write")).content}


def dollars(calls: int) -> str:
    return in_dollars(calls * FLAT)


PARTS = {"planner": dollars(1), "researcher": dollars(10), "writer": dollars(2)}


class TestGraph:
    @pytest.mark.parametrize("guarded", [False, True])
    async def test_each_within_its_share(
        self, amodel: ChatOpenAI, provider: SimulatedProvider, guarded: bool
    ) -> None:
        budget = for_calls(13)
        model = guard(amodel, budget=budget, prices=PRICES) if guarded else amodel  # type: ignore[call-overload]
        handler = BudgetCallbackHandler(budget, prices=PRICES, allocations=PARTS)
        state = await Graph(model).app.ainvoke({"notes": []}, with_handler(handler))
        assert len(state["notes"]) == 10
        assert state["text"]
        self.check(budget, provider, planner=1, researcher=10, writer=1)

    async def test_researchers_gone_wild_leave_the_writer_its_money(
        self, amodel: ChatOpenAI, provider: SimulatedProvider
    ) -> None:
        budget = for_calls(13)
        handler = BudgetCallbackHandler(budget, prices=PRICES, allocations=PARTS)
        state = await Graph(amodel, rounds=50).app.ainvoke({"notes": []}, with_handler(handler))
        refused = [note for note in state["notes"] if isinstance(note, BudgetExceeded)]
        assert {refusal.name for refusal in refused} == {"budget/researcher"}
        assert len(refused) == 10
        assert state["text"]
        self.check(budget, provider, planner=1, researcher=10, writer=1)

    async def test_without_shares_they_take_it_all(self, amodel: ChatOpenAI) -> None:
        """What the test above is worth."""
        config = with_handler(BudgetCallbackHandler(for_calls(13), prices=PRICES))
        with pytest.raises(BudgetExceeded):
            await Graph(amodel, rounds=50).app.ainvoke({"notes": []}, config)

    def check(self, budget: Budget, provider: SimulatedProvider, **calls: int) -> None:
        check_books(budget, provider)
        children = budget.children
        assert {name: child.calls for name, child in children.items()} == calls
        assert sum(c.snapshot().spent.usd for c in children.values()) == budget.ledger.total
        for child in children.values():
            state = child.snapshot()
            assert state.limits.usd is not None
            assert state.spent.usd == child.ledger.total <= state.limits.usd

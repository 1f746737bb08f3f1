"""A budget beside what else an agent has: other middleware, approvals, sub-agents in tools."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
)
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tests.clients.helpers import check_books
from tests.langchain.agents import ASK, invoke, is_refusal, looping, search, text_of
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain import BudgetMiddleware
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.script import Behavior, Request, Say, ToolCall

WAYS = ["sync", "async"]
THREAD: dict[str, Any] = {"configurable": {"thread_id": "one"}}
MakeChat = Callable[..., ChatOpenAI]


class Swap(AgentMiddleware[Any, Any, Any]):
    """Puts another model in the place of the agent's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(model=self.model))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(model=self.model))


class Assign(Swap):
    """The same, as it was done before there was `override`."""

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        with pytest.deprecated_call():
            request.model = self.model
        return await handler(request)


class Inner(BudgetMiddleware):
    """A second one in an agent needs a name of its own."""


def spent_of(agent: Any, whose: str, name: str = "BudgetMiddleware") -> tuple[int, int]:
    """What the state keeps of a run or a thread: nano-dollars and calls."""
    record = agent.get_state(THREAD).values["budget_spent"][name][whose]
    return record["spent"][0], record["spent"][1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_that_is_swapped_in_further_in_counts(
    provider: SimulatedProvider, plain: ChatOpenAI, make_chat: MakeChat, way: str
) -> None:
    provider.script = looping
    budget = Budget("$0.02")
    swap = Swap(make_chat(model="gpt-4.1"))
    result = await invoke(
        create_agent(plain, [search], middleware=[BudgetMiddleware(budget), swap]), way, ASK
    )
    assert is_refusal(result)
    assert {line.model for line in provider.bill} == {"gpt-4.1"}
    check_books(budget, provider)
    assert budget.spent <= 0.02


async def test_so_does_one_that_is_assigned(
    provider: SimulatedProvider, plain: ChatOpenAI, make_chat: MakeChat
) -> None:
    budget = Budget("$1")
    swap = Assign(make_chat(model="gpt-4.1"))
    await create_agent(plain, middleware=[BudgetMiddleware(budget), swap]).ainvoke(ASK)
    assert [line.model for line in provider.bill] == ["gpt-4.1"]
    check_books(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_a_fallback_further_in_keeps_to_the_limit_of_the_run(
    provider: SimulatedProvider, plain: ChatOpenAI, make_chat: MakeChat, way: str
) -> None:
    def script(request: Request) -> Behavior | Say:
        return Behavior(status=429) if request.model == "gpt-4o" else looping(request)

    provider.script = script
    budget = Budget("$1")
    guarding = BudgetMiddleware(budget, run_limit={"calls": 3})
    falling_back = ModelFallbackMiddleware(make_chat(model="gpt-4.1"))
    agent = create_agent(plain, [search], middleware=[guarding, falling_back])
    result = await invoke(agent, way, ASK)
    assert is_refusal(result)
    assert [line.model for line in provider.bill] == ["gpt-4.1"] * 3
    check_books(budget, provider, records=6)  # those that were turned away are in the ledger, too


async def test_a_swapped_model_counts_in_both_of_two(
    provider: SimulatedProvider, plain: ChatOpenAI, make_chat: MakeChat
) -> None:
    budget = Budget("$1")
    middleware = [BudgetMiddleware(budget), Inner(budget.child("one")), Swap(make_chat())]
    agent = create_agent(plain, middleware=middleware, checkpointer=InMemorySaver())
    await agent.ainvoke(ASK, THREAD)
    check_books(budget, provider)
    assert spent_of(agent, "run") == spent_of(agent, "run", "Inner") == (provider.billed, 1)


class Guardrail(AgentMiddleware[Any, Any, Any]):
    """Does not let the first answer pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        response = await handler(request)
        self.seen += 1
        if self.seen == 1:
            raise ValueError("that may not be said")
        return response


async def test_an_answer_that_fails_further_out_counts_in_its_thread(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    guarding = BudgetMiddleware("$1", thread_limit={"calls": 2})
    agent = create_agent(plain, middleware=[Guardrail(), guarding], checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="may not be said"):
        await agent.ainvoke(ASK, THREAD)
    assert not is_refusal(await agent.ainvoke(ASK, THREAD))
    assert spent_of(agent, "thread") == (provider.billed, 2)
    assert spent_of(agent, "run")[1] == 1
    assert is_refusal(await agent.ainvoke(ASK, THREAD))
    assert spent_of(agent, "thread") == (provider.billed, 2)


async def _read(agent: Any) -> None:
    async for _ in agent.astream(ASK, THREAD, stream_mode="messages"):
        pass


@pytest.mark.parametrize("way", [*WAYS, "stream"])
async def test_a_refused_summary_does_not_take_the_place_of_the_conversation(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = looping
    budget = Budget("$1")
    model = guard(plain, budget=budget.child("summaries", "$0"))
    summary = SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 2))
    middleware = [summary, BudgetMiddleware(budget)]
    agent = create_agent(plain, [search], middleware=middleware, checkpointer=InMemorySaver())
    runs = invoke(agent, way, ASK, THREAD) if way != "stream" else _read(agent)
    with pytest.raises(BudgetExceeded, match="summaries"):
        await runs
    kept = agent.get_state(THREAD).values["messages"]
    assert kept[0].text == ASK["messages"][0][1]
    check_books(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_a_resumed_run_is_told_what_is_left_before_its_next_call(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    def script(request: Request) -> Say:
        return "Done." if request.tool_results else ToolCall("budget_status", {})

    provider.script = script
    saver = InMemorySaver()
    approve = Command(resume={"decisions": [{"type": "approve"}]})
    for given, told in [("$1", " of $1.00 left for budget"), (None, "not known before the next")]:
        budget = Budget(given or "$1")
        model = plain if given else guard(plain, budget=budget)
        approval = HumanInTheLoopMiddleware(interrupt_on={"budget_status": True})
        guarding = BudgetMiddleware(budget if given else None, tell_model=True)
        agent = create_agent(model, middleware=[approval, guarding], checkpointer=saver)
        config = {"configurable": {"thread_id": str(given)}}
        await invoke(agent, way, ASK, config)
        result = await invoke(agent, way, approve, config)
        assert told in result["messages"][-2].text


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_holds_although_there_is_room_again(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    budget = Budget("$0.0001")
    guarding = BudgetMiddleware(budget, exit_behavior="ask")
    agent = create_agent(plain, middleware=[guarding], checkpointer=InMemorySaver())
    for answer, calls, limit in [({"stop": True}, 0, 1.0), ({"top_up": "$2"}, 1, 3.0)]:
        budget.set_limits("$0.0001")
        asked = await invoke(agent, way, ASK, THREAD)
        budget.set_limits("$1")
        # What is not answered is asked again, and nothing is sent.
        again = await invoke(agent, way, None, THREAD)
        assert again["__interrupt__"][0].value == asked["__interrupt__"][0].value
        assert provider.requests == 0
        result = await invoke(agent, way, Command(resume=answer), THREAD)
        assert is_refusal(result) == (not calls)
        assert (provider.requests, budget.budget) == (calls, limit)
    assert "exceeded" not in text_of(result)


async def test_a_question_that_nobody_answers_is_forgotten_with_its_run(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    budget = Budget("$0.0001")
    guarding = BudgetMiddleware(budget, exit_behavior="ask")
    agent = create_agent(plain, middleware=[guarding], checkpointer=InMemorySaver())
    assert (await agent.ainvoke(ASK, THREAD))["__interrupt__"]
    budget.top_up("$1")
    result = await agent.ainvoke(ASK, THREAD)
    assert not is_refusal(result)
    assert len(provider.bill) == 1


class Reader(AgentMiddleware[Any, Any, Any]):
    """Looks at each answer."""

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        response = await handler(request)
        assert isinstance(response.result[0], AIMessage)
        return response


@pytest.mark.parametrize("ours_first", [True, False])
async def test_nobody_is_asked_twice_to_approve_a_tool_call(
    provider: SimulatedProvider, plain: ChatOpenAI, ours_first: bool
) -> None:
    provider.script = lambda request: looping(request) if request.tool_results < 2 else "Done."
    guarding = BudgetMiddleware("$1", run_limit={"calls": 1}, exit_behavior="ask")
    approval = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    middleware = [guarding, approval] if ours_first else [approval, guarding]
    agent = create_agent(
        plain, [search], middleware=[Reader(), *middleware], checkpointer=InMemorySaver()
    )
    approve = Command(resume={"decisions": [{"type": "approve"}]})
    asked = []
    result = await agent.ainvoke(ASK, THREAD)
    while result.get("__interrupt__"):
        question = result["__interrupt__"][0].value
        assert all(message.text or message.tool_calls for message in result["messages"])
        asked.append(question.get("limit_of", "approval"))
        answer = Command(resume={"top_up": 1}) if "limit_of" in question else approve
        result = await agent.ainvoke(answer, THREAD)
    assert asked == ["approval", "this run", "approval", "this run"]
    assert [m.type for m in result["messages"]] == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert len(provider.bill) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sub_agents", ["wrap_up", "end", "guarded"])
async def test_sub_agents_do_not_wait_for_what_the_agent_holds_meanwhile(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str, sub_agents: str
) -> None:
    def script(request: Request) -> Say:
        offered = [offer["function"]["name"] for offer in request.body.get("tools", [])]
        if "delegate" in offered:
            return [ToolCall("delegate", {"task": "ebb"}), ToolCall("delegate", {"task": "flood"})]
        return looping(request)

    provider.script = script
    budget = Budget("$0.02")
    worker: Any
    if sub_agents == "guarded":
        worker = create_agent(guard(plain, budget=budget), [search])
    else:
        within: Any = BudgetMiddleware(budget, exit_behavior=sub_agents)  # type: ignore[arg-type]
        worker = create_agent(plain, [search], middleware=[within])

    def delegate(task: str) -> str:
        """Have a task done."""
        return text_of(worker.invoke({"messages": [("user", task)]}))

    async def adelegate(task: str) -> str:
        return text_of(await worker.ainvoke({"messages": [("user", task)]}))

    tool = StructuredTool.from_function(delegate, adelegate)
    boss = BudgetMiddleware(budget, exit_behavior="wrap_up")
    agent = create_agent(plain, [tool], middleware=[boss])
    async with asyncio.timeout(40):  # a call may wait for 60 seconds
        result = await invoke(agent, way, ASK)
    assert result["messages"][-1].response_metadata["budget_exit"] == "wrap_up"
    assert budget.spent > 0.01
    check_books(budget, provider)


class Aside(AgentMiddleware[Any, Any, Any]):
    """Before each of the agent's calls but the first, asks for more than the agent leaves free."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self.refused: list[BudgetExceeded] = []

    def before_model(self, state: Any, runtime: Any) -> None:
        if len(state["messages"]) > 1:
            asked = self.budget.remaining + self.budget.reserved / 2
            call = self.budget.reserve(
                model="gpt-4o", input_tokens=int(asked / 2.5e-6), max_output_tokens=0, wait=9
            )
            with pytest.raises(BudgetExceeded) as refusal, call:
                pass
            self.refused.append(refusal.value)


def test_after_its_tools_the_agent_does_not_wait_for_what_it_holds_itself(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = looping
    budget = Budget("$0.02")
    aside = Aside(budget)
    holding = BudgetMiddleware(budget, exit_behavior="wrap_up")
    agent = create_agent(plain, [search], middleware=[aside, holding])
    result = agent.invoke(ASK)
    assert result["messages"][-1].response_metadata["budget_exit"] == "wrap_up"
    assert aside.refused
    assert all(refusal.waited < 9 for refusal in aside.refused)
    check_books(budget, provider)


def test_only_who_holds_something_back_looks_at_calls_of_tools(plain: ChatOpenAI) -> None:
    assert type(BudgetMiddleware("$1")) is BudgetMiddleware
    holding = Inner("$1", exit_behavior="wrap_up")
    assert isinstance(holding, Inner)
    assert holding.name == "Inner"
    assert "tools" not in create_agent(plain, middleware=[BudgetMiddleware("$1")]).nodes

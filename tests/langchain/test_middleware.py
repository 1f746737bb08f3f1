"""A budget inside an agent: its four exits, its limits, and the race."""

import asyncio
import gc
import json
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelRequest,
    ModelResponse,
    ModelRetryMiddleware,
    after_model,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from tests.clients.helpers import check_books, check_covered, in_dollars
from tests.langchain.agents import ASK, CALLS, invoke, is_refusal, looping, search, text_of
from tests.langchain.models import LOCAL_PRICES, LocalChat, answer
from tokenfence_integrations import Budget, BudgetExceeded, NoBudgetError, guard
from tokenfence_integrations.langchain import BudgetCallbackHandler, BudgetMiddleware
from tokenfence_integrations.stores.base import NOTHING, Limits
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.script import Behavior

WAYS = ["sync", "async"]
EXITS = ["end", "error", "wrap_up", "ask"]
MakeChat = Callable[..., ChatOpenAI]


def agent_of(model: Any, *before: Any, tools: Any = (search,), **options: Any) -> Any:
    """An agent whose last middleware is ours; what create_agent does not know is for that."""
    known = ("response_format", "checkpointer", "system_prompt")
    made = {name: options.pop(name) for name in known if name in options}
    budget = options.pop("budget")
    middleware = [*before, BudgetMiddleware(budget, **options)]
    return create_agent(model, [*tools], middleware=middleware, **made)


def thread(name: str = "one") -> dict[str, Any]:
    return {"configurable": {"thread_id": name}}


# The four exits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exit_behavior", EXITS)
async def test_an_agent_that_loops_ends_inside_its_budget(
    provider: SimulatedProvider, plain: ChatOpenAI, exit_behavior: Any, way: str
) -> None:
    provider.script = looping
    budget = Budget("$0.02")
    agent = agent_of(
        plain, budget=budget, exit_behavior=exit_behavior, checkpointer=InMemorySaver()
    )
    if exit_behavior == "error":
        with pytest.raises(BudgetExceeded):
            await invoke(agent, way, ASK, thread())
    else:
        result = await invoke(agent, way, ASK, thread())
        if exit_behavior == "end":
            assert is_refusal(result)
        elif exit_behavior == "wrap_up":
            assert text_of(result) == looping(provider.received[-1])
            assert result["messages"][-1].response_metadata["budget_exit"] == "wrap_up"
        else:
            asked = result["__interrupt__"][0].value
            assert asked["limit"] == 0.02
            assert asked["spent"] == budget.spent
            assert asked["limit_of"] == "budget"
            ended = await invoke(agent, way, Command(resume={"stop": True}), thread())
            assert is_refusal(ended)
    assert 1 < len(provider.bill) < CALLS
    check_books(budget, provider)
    assert budget.spent <= 0.02


@pytest.mark.parametrize("way", WAYS)
async def test_a_last_answer_is_short_without_tools_and_within_every_limit(
    provider: SimulatedProvider, make_chat: MakeChat, way: str
) -> None:
    provider.script = looping
    budget = Budget("$1")
    agent = agent_of(
        make_chat(max_tokens=None),
        budget=budget,
        run_limit="$0.03",
        exit_behavior="wrap_up",
        wrap_up_tokens=77,
        system_prompt="You are thorough.",
    )
    result = await invoke(agent, way, ASK)
    last = provider.received[-1].body
    assert "tools" not in last
    assert last["max_completion_tokens"] == 77
    assert [m["role"] for m in last["messages"]] == ["system", "user"]
    assert "You are thorough." in last["messages"][0]["content"]
    assert "Error 503 while searching" in last["messages"][1]["content"]
    assert "this is your last answer" in last["messages"][1]["content"]
    assert not is_refusal(result)
    assert provider.billed <= 30_000_000
    check_books(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_the_last_answer_is_the_cheapest_models_so_that_the_work_gets_the_money(
    provider: SimulatedProvider, make_chat: MakeChat, way: str
) -> None:
    provider.script = looping
    budget = Budget("$0.02")
    agent = agent_of(
        make_chat(max_tokens=200), budget=budget, fallback="gpt-4o-mini", exit_behavior="wrap_up"
    )
    result = await invoke(agent, way, ASK)
    models = [line.model for line in provider.bill]
    assert models == sorted(models)  # once the cheaper model works, the expensive one does no more
    assert models[-1] == "gpt-4o-mini"
    assert not is_refusal(result)
    # Never refused while what is not held would have paid for a call of the cheaper model.
    assert budget.spent > 0.02 * 0.8
    check_books(budget, provider)


async def test_the_last_answer_is_to_less_where_the_conversation_has_outgrown_what_is_held(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = looping
    budget = Budget("$0.012")

    def read(query: str) -> str:
        """Read a page."""
        return "beginning " + "words " * 20_000 + "ending"

    search_page = search.model_copy(update={"func": read})
    agent = agent_of(plain, budget=budget, exit_behavior="wrap_up", tools=[search_page])
    result = await agent.ainvoke(ASK)
    told = provider.received[-1].body["messages"][-1]["content"]
    assert "beginning" in told
    assert "[…]" in told
    assert "next high tide" in told
    assert not is_refusal(result)
    assert len(provider.bill) == 2
    check_books(budget, provider)


async def test_a_budget_that_cannot_even_pay_a_last_answer_sends_nothing(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    agent = agent_of(plain, budget="$0.0001", exit_behavior="wrap_up")
    assert is_refusal(await agent.ainvoke(ASK))
    assert provider.requests == 0


async def test_nobody_can_take_what_is_held_for_a_last_answer(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    budget = Budget("$0.02")

    def rob(query: str) -> str:
        """Search."""
        taken = budget.snapshot().remaining_usd
        assert budget.reserved > 0
        assert taken is not None
        budget.record(taken)
        return "nothing"

    provider.script = looping
    thief = search.model_copy(update={"func": rob})
    agent = agent_of(plain, budget=budget, exit_behavior="wrap_up", tools=[thief])
    result = await agent.ainvoke(ASK)
    assert not is_refusal(result)
    assert len(provider.bill) == 2
    assert budget.spent <= 0.02
    assert budget.snapshot().reserved == NOTHING


async def test_holds_of_a_failed_and_of_an_interrupted_run_are_released(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    budget = Budget("$1")
    provider.behave(status=400)
    agent = agent_of(plain, budget=budget, exit_behavior="wrap_up")
    with pytest.raises(Exception, match="400"):
        await agent.ainvoke(ASK)
    assert budget.snapshot().reserved == NOTHING
    provider.behave(status=None)
    provider.script = looping
    approval = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    agent = agent_of(
        plain, approval, budget=budget, exit_behavior="wrap_up", checkpointer=InMemorySaver()
    )
    interrupted = await agent.ainvoke(ASK, thread())
    assert interrupted["__interrupt__"]
    gc.collect()
    assert budget.snapshot().reserved == NOTHING
    assert budget.snapshot().uncertain == NOTHING
    check_books(budget, provider, records=2)


async def test_agents_that_all_hold_do_not_wait_for_each_other(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = looping
    budget = Budget("$0.06")
    agent = agent_of(plain, budget=budget, exit_behavior="wrap_up")
    async with asyncio.timeout(30):  # a call may wait for 60 seconds
        results = await asyncio.gather(*[agent.ainvoke(ASK) for _ in range(20)])
    assert any(not is_refusal(result) for result in results)
    check_books(budget, provider)
    assert provider.billed <= 60_000_000


@pytest.mark.parametrize("way", WAYS)
async def test_after_a_top_up_the_agent_goes_on(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = looping
    budget = Budget("$0.01")
    agent = agent_of(plain, budget=budget, exit_behavior="ask", checkpointer=InMemorySaver())
    asked = await invoke(agent, way, ASK, thread())
    before = len(provider.bill)
    asked = await invoke(agent, way, Command(resume={"top_up": "$0.01"}), thread())
    assert asked["__interrupt__"][0].value["limit"] == 0.02
    assert len(provider.bill) > before
    result = await invoke(agent, way, Command(resume={"top_up": 1}), thread())
    assert text_of(result) == "I give up."
    assert budget.budget == 1.02
    assert len(provider.bill) == CALLS + 1
    check_books(budget, provider)


@pytest.mark.parametrize(
    "useless",
    [
        "$1",
        {"top_up": "much"},
        {"top_up": 0},
        {"top_up": -1},
        {"stop": False},
        {"top_up": {"calls": 1}},
        {"top_up": "10 calls"},
        {"top_up": "$1/day"},
    ],
)
async def test_a_useless_answer_is_told_and_asked_for_again(
    provider: SimulatedProvider, plain: ChatOpenAI, useless: Any
) -> None:
    budget = Budget("$0.0001")
    agent = agent_of(plain, budget=budget, exit_behavior="ask", checkpointer=InMemorySaver())
    first = await agent.ainvoke(ASK, thread())
    assert "problem" not in first["__interrupt__"][0].value
    again = await agent.ainvoke(Command(resume=useless), thread())
    assert again["__interrupt__"][0].value["problem"]
    assert budget.budget == 0.0001
    done = await agent.ainvoke(Command(resume={"top_up": "$1"}), thread())
    assert text_of(done)
    assert budget.budget == 1.0001
    assert len(provider.bill) == 1


async def test_a_failure_after_a_top_up_does_not_raise_the_limit_twice(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    budget = Budget("$0.0001")
    agent = agent_of(
        plain, budget=budget, exit_behavior="ask", checkpointer=InMemorySaver(), tools=()
    )
    await agent.ainvoke(ASK, thread())
    provider.behave(status=500)
    with pytest.raises(Exception, match="500"):
        await agent.ainvoke(Command(resume={"top_up": "$1"}), thread())
    provider.behave(status=None)
    assert text_of(await agent.ainvoke(None, thread()))
    assert budget.budget == 1.0001


async def test_refusals_are_not_retried(provider: SimulatedProvider, plain: ChatOpenAI) -> None:
    refused: list[object] = []
    budget = Budget("$0.0001")
    budget.on_event(lambda event: refused.append(event.kind))
    agent = agent_of(plain, ModelRetryMiddleware(), budget=budget, exit_behavior="error")
    graph = StateGraph(dict)
    graph.add_node("agent", lambda _: agent.invoke(ASK), retry_policy=RetryPolicy())
    graph.add_edge(START, "agent")
    with pytest.raises(BudgetExceeded):
        await graph.compile().ainvoke({})
    assert refused == ["refused"]
    assert provider.requests == 0


class Tides(BaseModel):
    """The answer."""

    hour: int


@after_model
def first_hook(state: Any, runtime: Any) -> None:
    return None


@pytest.mark.parametrize("exit_behavior", ["end", "wrap_up"])
@pytest.mark.parametrize("tools", [(), (search,)])
async def test_it_ends_with_structured_output_and_other_hooks_too(
    provider: SimulatedProvider, plain: ChatOpenAI, exit_behavior: Any, tools: Any
) -> None:
    def call_both(request: Any) -> Any:
        return looping(request) if not request.body.get("tools") else Behavior(tool_call=True)

    provider.script = call_both
    hooks = (first_hook, ModelCallLimitMiddleware(run_limit=20))
    budget = Budget("$0.00001" if exit_behavior == "end" else "$0.002")
    agent = agent_of(
        plain,
        *hooks,
        budget=budget,
        exit_behavior=exit_behavior,
        tools=tools,
        response_format=ToolStrategy(Tides),
    )
    result = await agent.ainvoke(ASK, {"recursion_limit": 60})
    assert is_refusal(result) == (exit_behavior == "end")
    assert result.get("structured_response") is None
    check_books(budget, provider)


# The race


async def test_race_of_a_hundred_agents(provider: SimulatedProvider, plain: ChatOpenAI) -> None:
    lone = Budget("$1")
    await agent_of(plain, budget=lone, tools=()).ainvoke(ASK)
    bound = lone.ledger[0].bound
    provider.clear()
    provider.hold()
    budget = Budget(in_dollars(4 * bound))
    most = []
    budget.on_event(lambda _: most.append(_charged(budget)))
    agent = agent_of(plain, budget=budget, tools=())
    runs = [asyncio.create_task(agent.ainvoke(ASK)) for _ in range(100)]
    await asyncio.to_thread(provider.wait_for, 4)
    assert provider.requests == 4
    provider.release()
    results = await asyncio.gather(*runs)
    assert max(most) <= 4 * bound
    assert provider.peak <= 4
    assert provider.billed <= 4 * bound
    assert sum(not is_refusal(result) for result in results) == len(provider.bill) >= 4
    check_books(budget, provider)


class Questions(TypedDict):
    """A hundred questions, and what was answered."""

    answers: Annotated[list[Any], operator.add]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exit_behavior", ["end", "wrap_up"])
async def test_race_of_a_hundred_sends(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str, exit_behavior: Any
) -> None:
    lone = Budget("$1")
    await agent_of(plain, budget=lone, tools=()).ainvoke(ASK)
    limit = 4 * lone.ledger[0].bound
    provider.clear()
    budget = Budget(in_dollars(limit))
    most = []
    budget.on_event(lambda _: most.append(_charged(budget)))
    agent = agent_of(plain, budget=budget, tools=(), exit_behavior=exit_behavior)

    def ask(state: Any) -> Any:
        return {"answers": [agent.invoke(state)]}

    async def aask(state: Any) -> Any:
        return {"answers": [await agent.ainvoke(state)]}

    graph = StateGraph(Questions)
    graph.add_node("ask", ask if way == "sync" else aask)
    graph.add_conditional_edges(START, lambda _: [Send("ask", ASK)] * 100)
    graph.add_edge("ask", END)
    result = await invoke(graph.compile(), way, {"answers": []})
    assert len(result["answers"]) == 100
    assert max(most) <= limit
    assert provider.billed <= limit
    answered = [one for one in result["answers"] if not is_refusal(one)]
    assert len(answered) == len(provider.bill) >= 2
    gc.collect()
    check_books(budget, provider)


def _charged(budget: Budget) -> int:
    state = budget.snapshot()
    return state.spent.usd + state.reserved.usd + state.uncertain.usd


# Limits of runs and threads


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_limit_is_for_each_run_and_a_thread_limit_for_all(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = looping
    budget = Budget("$1")
    agent = agent_of(
        plain,
        budget=budget,
        run_limit={"calls": 3},
        thread_limit={"calls": 7},
        checkpointer=InMemorySaver(),
    )
    made = []
    for _ in range(4):
        result = await invoke(agent, way, ASK, thread())
        assert is_refusal(result)
        made.append(len(provider.bill))
    assert made == [3, 6, 7, 7]
    await invoke(agent, way, ASK, thread("other"))
    assert len(provider.bill) == 10
    check_books(budget, provider)


async def test_a_run_in_dollars_stays_below_its_limit(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = looping
    budget = Budget("$1")
    agent = agent_of(plain, budget=budget, run_limit=Decimal("0.01"))
    text = text_of(await agent.ainvoke(ASK))
    assert "$0.01" in text
    assert 1 < len(provider.bill) < CALLS
    assert provider.billed <= 10_000_000


async def test_what_is_told_of_a_run_and_a_thread_is_what_was_billed(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = lambda request: looping(request) if request.tool_results < 3 else "done"
    budget = Budget("$1")
    agent = agent_of(plain, budget=budget, checkpointer=InMemorySaver())
    await agent.ainvoke(ASK, thread())
    first = provider.billed
    await agent.ainvoke(ASK, thread())
    kept = agent.get_state(thread()).values["budget_spent"]["BudgetMiddleware"]
    assert kept["run"]["spent"][0] == provider.billed - first
    assert kept["thread"]["spent"][:2] == [provider.billed, len(provider.bill)]
    assert "budget_run" not in agent.get_state(thread()).values
    json.dumps(kept)


async def test_failed_attempts_count_in_their_run_and_thread(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.behave(drop="before")  # billed, and nobody is told
    budget = Budget("$1")
    retry = ModelRetryMiddleware(max_retries=9, initial_delay=0, on_failure="error")
    agent = agent_of(
        plain,
        retry,
        budget=budget,
        run_limit={"calls": 3},
        thread_limit={"calls": 5},
        exit_behavior="error",
        checkpointer=InMemorySaver(),
    )
    made = []
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await agent.ainvoke(ASK, thread())
        made.append(len(budget.ledger))
    assert made == [3, 5, 5]
    check_covered(budget, provider)


async def test_retries_of_the_sdk_keep_to_the_limit_of_the_run(
    provider: SimulatedProvider, make_chat: MakeChat
) -> None:
    provider.behave(drop="before")
    budget = Budget("$1")
    agent = agent_of(make_chat(max_retries=9), budget=budget, run_limit={"calls": 3})
    result = await agent.ainvoke(ASK)
    assert is_refusal(result)
    provider.idle()
    assert len(provider.bill) == 3
    check_covered(budget, provider)


@pytest.mark.parametrize("way", WAYS)
async def test_an_interrupted_run_goes_on_with_what_it_has_spent(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    provider.script = looping
    approval = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    agent = agent_of(
        plain, approval, budget="$1", run_limit={"calls": 2}, checkpointer=InMemorySaver()
    )
    yes = Command(resume={"decisions": [{"type": "approve"}]})
    assert (await invoke(agent, way, ASK, thread()))["__interrupt__"]
    assert (await invoke(agent, way, yes, thread()))["__interrupt__"]
    assert is_refusal(await invoke(agent, way, yes, thread()))
    assert len(provider.bill) == 2


async def test_a_top_up_raises_the_limit_that_was_hit(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    provider.script = looping
    budget = Budget("$1")
    agent = agent_of(
        plain,
        budget=budget,
        run_limit={"calls": 2},
        thread_limit={"calls": 3},
        exit_behavior="ask",
        checkpointer=InMemorySaver(),
    )
    asked = (await agent.ainvoke(ASK, thread()))["__interrupt__"][0].value
    assert (asked["limit_of"], asked["quantity"], asked["limit"]) == ("this run", "calls", 2)
    asked = await agent.ainvoke(Command(resume={"top_up": 5}), thread())
    assert asked["__interrupt__"][0].value["limit_of"] == "this thread"
    assert len(provider.bill) == 3
    asked = await agent.ainvoke(Command(resume={"top_up": "10 calls"}), thread())
    assert asked["__interrupt__"][0].value["limit"] == 7
    assert len(provider.bill) == 7
    assert is_refusal(await agent.ainvoke(Command(resume={"stop": True}), thread()))
    assert budget.budget == 1
    # A new run begins with the run's own limit; the thread's stays raised.
    asked = (await agent.ainvoke(ASK, thread()))["__interrupt__"][0].value
    assert (asked["limit_of"], asked["limit"], len(provider.bill)) == ("this run", 2, 9)


async def test_the_limit_of_a_parent_is_raised_where_that_was_hit(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    team = Budget("$0.0001", name="team")
    agent = agent_of(
        plain, budget=team.child("a", "$1"), exit_behavior="ask", checkpointer=InMemorySaver()
    )
    await agent.ainvoke(ASK, thread())
    await agent.ainvoke(Command(resume={"top_up": "$1"}), thread())
    assert (team.budget, team.children["a"].budget) == (1.0001, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"run_limit": "-1"}, "money"),
        ({"run_limit": {"dollars": 1}}, "dollars, or names"),
        ({"thread_limit": {"calls": 1.5}}, "whole number"),
        ({"thread_limit": {}}, "dollars, or names"),
        ({"run_limit": "10 calls/day"}, "without a window"),
        ({"thread_limit": {"calls": "20%"}}, "no share"),
        ({"exit_behavior": "stop"}, "exit_behavior"),
        ({"wrap_up_tokens": 0}, "wrap_up_tokens"),
        ({"wait": -1}, "wait"),
        ({"threshold": 2}, "threshold"),
    ],
)
def test_bad_arguments(options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BudgetMiddleware("$1", **options)


def test_limits_as_they_are_kept() -> None:
    assert BudgetMiddleware("$1", run_limit=Limits(usd=5)).run_limit == Limits(usd=5)
    assert BudgetMiddleware("$1", run_limit="10 calls").run_limit == Limits(calls=10)


# Models


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_that_is_guarded_is_charged_once(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    team = Budget("$1", name="team")
    member = team.child("member", "$0.5")
    for own, given in [(team, member), (member, team), (member, None), (member, member)]:
        agent = agent_of(guard(plain, budget=own), budget=given, tools=())
        await invoke(agent, way, ASK)
    check_books(team, provider)
    assert {record.budget for record in team.ledger} == {"team/member"}


async def test_budgets_that_have_nothing_to_do_with_each_other_are_an_error(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    team = Budget("$1", name="team")
    for own, given in [
        (team.child("a"), team.child("b")),
        (Budget("$1"), team),
        (Budget("$1", name="team"), team),
    ]:
        agent = agent_of(guard(plain, budget=own), budget=given, tools=())
        with pytest.raises(ValueError, match="neither is part of the other"):
            await agent.ainvoke(ASK)
    assert provider.requests == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guarded", [True, False])
async def test_the_budget_in_scope(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str, guarded: bool
) -> None:
    budget = Budget("$1")
    model = guard(plain) if guarded else plain
    agent = agent_of(model, budget=None, tools=())
    with budget.scope():
        await invoke(agent, way, ASK)
    check_books(budget, provider)
    with pytest.raises(NoBudgetError):
        await invoke(agent, way, ASK)
    await invoke(agent_of(guard(plain), budget=budget, tools=()), way, ASK)
    check_books(budget, provider)


async def test_refusals_are_the_middlewares_to_answer(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    for on_limit in ("stop", "raise", "warn"):
        model = guard(plain, budget="$0.0001", on_limit=on_limit)
        with pytest.raises(BudgetExceeded):
            await agent_of(model, budget=None, exit_behavior="error").ainvoke(ASK)
    assert provider.requests == 0


async def test_a_fallback_takes_over(provider: SimulatedProvider, plain: ChatOpenAI) -> None:
    provider.script = looping
    budget = Budget("$0.02")
    agent = agent_of(plain, budget=budget, fallback="gpt-4o-mini", threshold=0.5)
    await agent.ainvoke(ASK)
    models = [line.model for line in provider.bill]
    assert {*models} == {"gpt-4o", "gpt-4o-mini"}
    assert models == sorted(models)
    check_books(budget, provider)


async def test_a_fallback_of_another_provider_takes_over_with_its_own_tools(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    local = LocalChat(model="local-small", max_tokens=50)
    agent = agent_of(
        plain, budget="$0.005", fallback=local, prices=LOCAL_PRICES, exit_behavior="wrap_up"
    )
    provider.script = looping
    result = await agent.ainvoke(ASK)
    assert text_of(result) == "hello"
    assert provider.billed < 5_000_000


async def test_a_fallback_beside_a_guarded_model_is_an_error(plain: ChatOpenAI) -> None:
    agent = agent_of(guard(plain, budget="$1"), budget=None, fallback="gpt-4o-mini")
    with pytest.raises(ValueError, match="give them to guard"):
        await agent.ainvoke(ASK)


async def test_a_binding_keeps_what_is_bound(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    budget = Budget("$1")
    await agent_of(plain.with_config(tags=["bound"]), budget=budget, tools=()).ainvoke(ASK)
    check_books(budget, provider)


async def test_a_thing_that_is_no_model_is_an_error() -> None:
    middleware = BudgetMiddleware("$1")
    model: Any = "gpt-4o"
    request: ModelRequest[Any] = ModelRequest(model=model, messages=[])
    with pytest.raises(TypeError, match="chat model"):
        middleware.wrap_model_call(request, lambda _: ModelResponse([]))


async def test_a_model_without_a_cap_and_unknown_prices(provider: SimulatedProvider) -> None:
    model = LocalChat(serve=lambda messages, **_: answer("hi", 10, 5))
    budget = Budget("$1")
    agent = agent_of(model, budget=budget, prices=LOCAL_PRICES, exit_behavior="wrap_up", tools=())
    assert text_of(await agent.ainvoke(ASK)) == "hi"
    assert budget.snapshot().spent.usd == 150_000
    assert budget.snapshot().reserved == NOTHING


# What the model sees, and who else looks on


@pytest.mark.parametrize("way", WAYS)
async def test_the_model_is_told_what_is_left(
    provider: SimulatedProvider, plain: ChatOpenAI, way: str
) -> None:
    def ask_budget(request: Any) -> Any:
        return Behavior(tool_call="budget_status") if request.tool_results < 1 else "fine"

    provider.script = ask_budget
    budget = Budget("$1", name="team")
    agent = agent_of(
        plain,
        budget=budget,
        run_limit={"usd": "$0.50", "calls": 9},
        tell_model=True,
        system_prompt="Be brief.",
    )
    result = await invoke(agent, way, ASK)
    first, second = (request.body["messages"][0]["content"] for request in provider.received)
    assert first == (
        "Be brief.\n\nBudget: $0.50 of $0.50 left for this run; 9 of 9 calls left for this run; "
        "$1.00 of $1.00 left for budget 'team'."
    )
    assert "8 of 9 calls left for this run" in second
    told = result["messages"][-2]
    assert told.name == "budget_status"
    assert told.text in second


async def test_without_a_system_message_the_line_is_it(
    provider: SimulatedProvider, plain: ChatOpenAI
) -> None:
    await agent_of(plain, budget="$1", tell_model=True, tools=()).ainvoke(ASK)
    message = provider.received[0].body["messages"][0]
    assert message == {
        "role": "system",
        "content": "Budget: $1.00 of $1.00 left for budget 'budget'.",
    }


class Inner(BudgetMiddleware):
    """Another budget in the same agent."""

    @property
    def name(self) -> str:
        return "inner"


async def test_two_in_one_agent_keep_apart(provider: SimulatedProvider, plain: ChatOpenAI) -> None:
    provider.script = looping
    budget = Budget("$1")
    middleware: list[AgentMiddleware[Any, Any, Any]] = [
        BudgetMiddleware(budget, run_limit={"calls": 9}, exit_behavior="error"),
        Inner(budget.child("one"), run_limit={"calls": 5}, exit_behavior="error"),
    ]
    agent = create_agent(plain, [search], middleware=middleware, checkpointer=InMemorySaver())
    with pytest.raises(BudgetExceeded, match="this run"):
        await agent.ainvoke(ASK, thread())
    kept = agent.get_state(thread()).values["budget_spent"]
    assert kept["BudgetMiddleware"]["run"]["spent"] == kept["inner"]["run"]["spent"]
    assert len(provider.bill) == 5
    check_books(budget, provider)


async def test_streams_show_plain_data(provider: SimulatedProvider, plain: ChatOpenAI) -> None:
    agent = agent_of(plain, budget="$1", tools=(), exit_behavior="wrap_up")
    async for update in agent.astream(ASK, stream_mode="updates"):
        for written in update.values():
            shown = {k: v for k, v in (written or {}).items() if k != "messages"}
            json.dumps(shown)
    texts = [
        chunk.text
        async for chunk, _ in agent.astream(
            {"messages": [HumanMessage("Hi")]}, stream_mode="messages"
        )
    ]
    assert len(texts) > 1


def test_it_shows_whose_budget_it_keeps() -> None:
    told = "<BudgetMiddleware of budget 'team', exit_behavior='end'>"
    assert repr(BudgetMiddleware(Budget("$1", name="team"))) == told
    assert (
        repr(BudgetMiddleware()) == "<BudgetMiddleware of the budget in scope, exit_behavior='end'>"
    )
    told = "<BudgetCallbackHandler of budget 'team'>"
    assert repr(BudgetCallbackHandler(Budget("$1", name="team"))) == told

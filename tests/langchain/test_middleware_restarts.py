"""Runs that are interrupted, and go on in another process; their thread is kept in SQLite."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from tests.langchain.agents import ASK, is_refusal, looping, search, text_of
from tokenfence_integrations import Budget
from tokenfence_integrations.langchain import BudgetMiddleware
from tokenfence_integrations.testing import SimulatedProvider

CONFIG: Any = {"configurable": {"thread_id": "one"}}

FIRST = """
import sys
from langgraph.checkpoint.sqlite import SqliteSaver
from tests.langchain.agents import ASK
from tests.langchain.models import chat_openai
from tests.langchain.test_middleware_restarts import CONFIG, agent_on
from tokenfence_integrations import Budget

with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    asked = agent_on(chat_openai(sys.argv[2]), saver, Budget("$1")).invoke(ASK, CONFIG)
print(asked["__interrupt__"][0].value["limit_of"])
"""


def agent_on(model: ChatOpenAI, saver: Any, budget: Budget) -> Any:
    """The agent that each process makes for itself."""
    middleware = BudgetMiddleware(
        budget, run_limit={"calls": 2}, thread_limit={"calls": 7}, exit_behavior="ask"
    )
    return create_agent(model, [search], middleware=[middleware], checkpointer=saver)


def kept(agent: Any) -> Any:
    """What the state keeps of the thread and of the run: calls spent."""
    record = agent.get_state(CONFIG).values["budget_spent"]["BudgetMiddleware"]
    return record["thread"]["spent"][1], record["run"]["spent"][1]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_ask_top_up_and_resume_in_another_process(
    provider: SimulatedProvider, plain: ChatOpenAI, tmp_path: Path, way: str
) -> None:
    provider.script = looping
    file = str(tmp_path / "threads.sqlite")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", FIRST, file, provider.base_url]
    first = await asyncio.to_thread(
        subprocess.run, command, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert first.stdout == "this run\n", first.stderr
    assert len(provider.bill) == 2
    budget = Budget("$1")
    if way == "sync":
        with SqliteSaver.from_conn_string(file) as saver:
            agent = agent_on(plain, saver, budget)
            asked = agent.invoke(Command(resume={"top_up": 2}), CONFIG)
            assert asked["__interrupt__"][0].value["limit"] == 4
            assert (len(provider.bill), *kept(agent)) == (4, 4, 4)
            asked = agent.invoke(Command(resume={"top_up": 20}), CONFIG)
            assert asked["__interrupt__"][0].value["limit_of"] == "this thread"
            ended = agent.invoke(Command(resume={"stop": True}), CONFIG)
            assert kept(agent) == (7, 7)
    else:
        async with AsyncSqliteSaver.from_conn_string(file) as saver:
            agent = agent_on(plain, saver, budget)
            asked = await agent.ainvoke(Command(resume={"top_up": 2}), CONFIG)
            assert asked["__interrupt__"][0].value["limit"] == 4
            assert len(provider.bill) == 4
            asked = await agent.ainvoke(Command(resume={"top_up": 20}), CONFIG)
            assert asked["__interrupt__"][0].value["limit_of"] == "this thread"
            ended = await agent.ainvoke(Command(resume={"stop": True}), CONFIG)
    assert is_refusal(ended)
    provider.idle()
    assert len(provider.bill) == 7
    assert budget.snapshot().spent.usd == sum(line.cost for line in provider.bill[2:])


def test_a_thread_goes_on_with_what_other_processes_have_spent(
    provider: SimulatedProvider, plain: ChatOpenAI, tmp_path: Path
) -> None:
    provider.script = lambda request: looping(request) if request.tool_results < 2 else "Done."
    said = []
    for _ in range(4):
        with SqliteSaver.from_conn_string(str(tmp_path / "threads.sqlite")) as saver:
            middleware = BudgetMiddleware("$1", thread_limit={"calls": 4})
            agent = create_agent(plain, [search], middleware=[middleware], checkpointer=saver)
            said.append(text_of(agent.invoke(ASK, CONFIG)))
    # Three calls (later runs of the thread find the results of the first), one, and no more.
    assert said[:2] == ["Done.", "Done."]
    assert all("exceeded" in text for text in said[2:])
    assert len(provider.bill) == 4

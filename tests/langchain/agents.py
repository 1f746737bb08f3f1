"""Agents for the tests: a tool that always fails, a model that calls it for ever."""

import asyncio
import inspect
from typing import Any

from langchain.tools import tool

from tokenfence_integrations.testing.script import Request, Say, ToolCall

ASK = {"messages": [("user", "When is the next high tide?")]}
CALLS = 50


@tool
def search(query: str) -> str:
    """Search for something."""
    return f"Error 503 while searching for {query!r}: try again."


def looping(request: Request) -> Say:
    """What a model says that calls a failing tool fifty times, and sums up if it has no tools."""
    if not request.body.get("tools"):
        return "I searched, found nothing, and the question is open."
    if request.tool_results >= CALLS:
        return "I give up."
    return ToolCall("search", {"query": "tides"})


async def invoke(agent: Any, way: str, given: Any, config: Any = None) -> Any:
    """Run an agent, sync (in a thread) or async."""
    if way == "async":
        return await agent.ainvoke(given, config)
    return await asyncio.to_thread(agent.invoke, given, config)


def text_of(result: Any) -> str:
    """The last thing that an agent said."""
    return str(result["messages"][-1].text)


def is_refusal(result: Any) -> bool:
    """Whether a run ended with a message of ours."""
    told = result["messages"][-1].response_metadata
    return bool(told.get("finish_reason") == "budget_exceeded")


def params(function: Any) -> list[str]:
    """The names of a function's parameters, as LangGraph looks at them."""
    return list(inspect.signature(function).parameters)

"""The calls of an agent's tools, while the agent holds something back."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from langchain.agents.middleware import AgentMiddleware

__all__ = ["awaiting_tools"]


def _awaiting(middleware: Any, request: Any) -> AbstractContextManager[None]:
    """Have the models and sub-agents that a tool calls know that the agent waits for them."""
    current = middleware._current(request.state)
    awaiting: AbstractContextManager[None]
    awaiting = nullcontext() if current is None else current.awaiting_tool()
    return awaiting


def wrap_tool_call(self: Any, request: Any, handler: Callable[[Any], Any]) -> Any:
    """Run a tool."""
    with _awaiting(self, request):
        return handler(request)


async def awrap_tool_call(self: Any, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run a tool."""
    with _awaiting(self, request):
        return await handler(request)


HOOKS = {"wrap_tool_call": wrap_tool_call, "awrap_tool_call": awrap_tool_call}


@cache
def awaiting_tools(cls: type[Any]) -> type[Any]:
    """A class of middleware, under its own name, with these hooks if it has none for tools.

    They are not hooks of the class itself: an agent that has any is given a node for tools, also if
    it has no tools, and LangChain leaves out a check of those that it has.
    """
    if any(getattr(cls, name) is not getattr(AgentMiddleware, name) for name in HOOKS):
        return cls
    return type(cls.__name__, (cls,), {"__module__": cls.__module__, **HOOKS})

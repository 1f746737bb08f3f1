"""Flows: ways to an answer, written once as generators for sync and for async code.

A flow yields what has to be called, and is sent what that returned (or awaited to).
"""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar

__all__ = ["Flow", "arun", "run"]

T = TypeVar("T")
Flow: TypeAlias = Generator[Callable[[], Any], Any, T]


def run(flow: Flow[T]) -> T:
    """Run a flow to its end in this thread.

    Args:
        flow: Yields functions to call.

    Returns:
        What the flow returns.
    """
    try:
        step = next(flow)
        while True:
            try:
                value = step()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def arun(flow: Flow[T]) -> T:
    """Run a flow to its end in this task; as `run`, awaiting what each function returns."""
    try:
        step: Callable[[], Awaitable[Any]] = next(flow)
        while True:
            try:
                value = await step()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]

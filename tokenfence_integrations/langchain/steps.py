"""A way to an answer, written once as a generator and run from sync or from async code.

It yields what has to be called, and is sent what that returned or has thrown what that raised.
"""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar

__all__ = ["Flow", "arun", "run"]

T = TypeVar("T")
Flow: TypeAlias = Generator[Callable[[], Any], Any, T]


def run(flow: Flow[T]) -> T:
    """Run a way to its end in this thread."""
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
    """As `run`, awaiting each step."""
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

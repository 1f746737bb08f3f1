"""Awaiting what must not be left half-way."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["to_its_end"]

T = TypeVar("T")


async def to_its_end(future: "asyncio.Future[T]", left: Callable[[], object] = lambda: None) -> T:
    """Wait for a future even if cancelled: then it is certain what became of it.

    Args:
        future: What is awaited.
        left: Called if the task is cancelled meanwhile.

    Returns:
        The future's result.

    Raises:
        asyncio.CancelledError: The task was cancelled meanwhile; it is told at the end.
        Exception: The future's own.
    """
    cancelled: BaseException | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            left()
    if cancelled is not None:
        future.exception()  # nobody else looks at it
        raise cancelled
    return future.result()

"""Run a flow, written once as a generator, from sync or from async code.

A flow yields what it needs done: a store's `Command`, to be answered with the `Reply`; or a
`Sleep`. It neither blocks nor awaits itself, so there is one flow for both worlds.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias, TypeVar

from tokenfence_integrations.engine.waiting import (
    AsyncWaiter,
    Owner,
    SyncWaiter,
    Waiter,
)
from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.stores.base import NOTHING, Command, Path, Reply, Reserve, Store

__all__ = ["Flow", "Pause", "Sleep", "aexecute", "arun", "execute", "run"]

T = TypeVar("T")


class Sleep(NamedTuple):
    """Sleep until the waiter is woken, at most ``seconds``."""

    waiter: Waiter
    seconds: float


class Pause(NamedTuple):
    """Let others that are about to call arrive: a turn of the event loop, or a few milliseconds."""

    seconds: float


Flow: TypeAlias = Generator[Command | Sleep | Pause, Reply | None, T]
WaiterFactory: TypeAlias = Callable[[Owner, Path], Waiter]


def run(flow: Callable[[WaiterFactory], Flow[T]], store: Store) -> T:
    """Run a flow to its end in this thread.

    Args:
        flow: Makes the generator, given how this driver makes waiters.
        store: Executes the commands.

    Returns:
        What the flow returns.
    """
    steps = flow(SyncWaiter)
    answer: Reply | None = None
    try:
        while True:
            step = steps.send(answer)
            kind = type(step)
            if kind is Sleep:
                step.waiter.sleep(step.seconds)  # type: ignore[union-attr]
                answer = None
            elif kind is Pause:
                _pause(step.seconds)  # type: ignore[union-attr]
                answer = None
            else:
                answer = execute(store, step)  # type: ignore[arg-type]
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        steps.close()


async def arun(flow: Callable[[WaiterFactory], Flow[T]], store: Store) -> T:
    """Run a flow to its end in this task; as `run`, without blocking the event loop."""
    steps = flow(AsyncWaiter)
    answer: Reply | None = None
    try:
        while True:
            step = steps.send(answer)
            kind = type(step)
            if kind is Sleep:
                await step.waiter.sleep(step.seconds)  # type: ignore[union-attr]
                answer = None
            elif kind is Pause:
                await _apause()
                answer = None
            elif store.instant:
                answer = store.execute(step)  # type: ignore[arg-type]
            else:
                answer = await aexecute(store, step)  # type: ignore[arg-type]
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        steps.close()


def execute(store: Store, command: Command) -> Reply:
    """Have a store apply a command; what is reserved by one that is interrupted is given back.

    Raises:
        StoreError: The books cannot be read or written, or were lost since they were opened.
    """
    try:
        return store.execute(command)
    except BaseException as error:
        _give_back(store, command)
        if isinstance(error, KeyError):
            raise _lost(store, error) from error
        raise


async def aexecute(store: Store, command: Command) -> Reply:
    """As `execute`, without blocking the event loop; a cancelled task keeps nothing reserved."""
    try:
        return await store.aexecute(command)
    except BaseException as error:
        _give_back(store, command)
        if isinstance(error, KeyError):
            raise _lost(store, error) from error
        raise


def _lost(store: Store, error: KeyError) -> StoreError:
    """Every account was opened when its `Budget` was made: its store has lost what it kept."""
    return StoreError(
        repr(store),
        f"{error} was opened, and is not there any more; restore it from a copy, or make its "
        f"Budget again, which begins with nothing spent",
    )


def _give_back(store: Store, command: Command) -> None:
    # It may have been applied although no reply came; if it was not, its end changes nothing.
    if type(command) is Reserve:
        store.end(command.path, command.id, NOTHING, NOTHING)


def _pause(seconds: float) -> None:
    import time

    time.sleep(seconds)


async def _apause() -> None:
    import asyncio

    await asyncio.sleep(0)

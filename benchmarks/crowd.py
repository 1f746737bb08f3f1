"""Many calls at the same time, from asyncio tasks or from threads, each ending in its own way."""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import openai

__all__ = ["Crowd", "Outcome", "Request", "Tasks", "Threads"]


# The SDK's own limit for a connection, 5 seconds, is short for 100 calls on a busy machine.
_OPTIONS: dict[str, Any] = {"api_key": "unused", "max_retries": 0, "timeout": 120.0}


class Request(NamedTuple):
    """A call to make.

    Args:
        fields: The arguments of `create`.
        endpoint: The resource whose `create` it is.
    """

    fields: Mapping[str, Any]
    endpoint: str = "chat.completions"


Outcome: TypeAlias = BaseException | None
"""What a call raised, or None: it was answered."""


class Tasks:
    """All calls at once, by `asyncio.gather`; `client` is the bare client to make them with.

    Args:
        base_url: The provider.
    """

    def __init__(self, base_url: str) -> None:
        self.client = openai.AsyncOpenAI(base_url=base_url, **_OPTIONS)
        self._runner = asyncio.Runner()

    def reconnect(self) -> None:
        """Go on with a new client, which has no connections yet."""
        fresh = self.client.copy(http_client=openai.DefaultAsyncHttpxClient())
        self._runner.run(self.client.close())
        self.client = fresh

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.run(self.client.close())
        self._runner.close()

    def call(
        self, client: Any, requests: Iterable[Request], cancel_after: float | None = None
    ) -> list[Outcome]:
        """Make calls.

        Args:
            client: A guarded client, or the bare one.
            requests: What to ask.
            cancel_after: Cancel all tasks after this many seconds; None: never.

        Returns:
            Their outcomes, in order.
        """
        return self._runner.run(self._call(client, requests, cancel_after))

    async def _call(
        self, client: Any, requests: Iterable[Request], cancel_after: float | None
    ) -> list[Outcome]:
        tasks = [asyncio.create_task(_ask(client, request)) for request in requests]
        if cancel_after is not None:
            await asyncio.wait(tasks, timeout=cancel_after)
            for task in tasks:
                task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)


class Threads:
    """Calls from 32 threads; `client` is the bare client to make them with.

    Args:
        base_url: The provider.
    """

    def __init__(self, base_url: str) -> None:
        self.client = openai.OpenAI(base_url=base_url, **_OPTIONS)
        self._pool = ThreadPoolExecutor(32)

    def reconnect(self) -> None:
        """As `Tasks.reconnect`."""
        fresh = self.client.copy(http_client=openai.DefaultHttpxClient())
        self.client.close()
        self.client = fresh

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self.client.close()

    def call(self, client: Any, requests: Iterable[Request]) -> list[Outcome]:
        """As `Tasks.call`."""
        futures = [self._pool.submit(_ask_sync, client, request) for request in requests]
        return [future.exception() for future in futures]


Crowd: TypeAlias = Tasks | Threads


async def _ask(client: Any, request: Request) -> None:
    answer = await attrgetter(request.endpoint)(client).create(**request.fields)
    if request.fields.get("stream"):
        async for _ in answer:
            pass


def _ask_sync(client: Any, request: Request) -> None:
    answer = attrgetter(request.endpoint)(client).create(**request.fields)
    if request.fields.get("stream"):
        for _ in answer:
            pass

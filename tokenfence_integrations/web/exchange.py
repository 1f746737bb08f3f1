"""One request and its response, between the server and the app."""

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.types import Message, Receive, Send

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.reading import asnapshot
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.money import to_decimal
from tokenfence_integrations.web.problems import Whose

__all__ = ["Exchange", "exchange_of"]

KEY = "tokenfence_integrations"
"""Where an ASGI scope holds the exchange."""

DISCONNECT: Message = {"type": "http.disconnect"}


def exchange_of(scope: MutableMapping[str, Any]) -> "Exchange | None":
    """The exchange that the middleware has begun; None without the middleware."""
    return scope.get(KEY)


class Exchange:
    """What the middleware knows of one request: its budgets, and how far its response is.

    Once the request has a budget, the start of its response is held back until its first body
    part: up to then a refusal can still become a 429, and the headers tell what was spent. Up to
    then, too, a client that leaves ends the request; afterwards that is the app's own concern,
    as Starlette sees to it for streams.

    Args:
        receive: The server's.
        send: The server's.
        cancels: Whether a client that leaves ends the request.
    """

    def __init__(self, receive: Receive, send: Send, cancels: bool) -> None:
        self.begun = False
        self.left = False
        self._receive = receive
        self._send = send
        self._cancels = cancels
        self._budgets: list[Budget] = []
        self._user: Budget | None = None
        self._start: Message | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        # One message is read ahead, so that a disconnect is seen; no more, or bodies would pile up.
        self._ahead: asyncio.Queue[Message | Exception] = asyncio.Queue(1)

    # What the app calls

    def opened(self, budget: Budget, user: Budget | None) -> None:
        """The request has got a budget, and perhaps a user."""
        self._budgets.append(budget)
        self._user = user or self._user
        if self._cancels and self._watcher is None and not self.begun:
            self._watcher = asyncio.create_task(self._watch())

    async def receive(self) -> Message:
        if self._watcher is None:
            return await self._receive()
        if self.left and self._ahead.empty():
            return DISCONNECT
        message = await self._ahead.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._budgets:
            self._start = message
            return
        await self.flush()
        await self._send(message)

    async def flush(self) -> None:
        """Send the start of the response, if it is held back."""
        self.begun = True
        if self._start is not None:
            start, self._start = self._start, None
            told = await self._headers()
            await self._send({**start, "headers": [*start.get("headers", ()), *told]})

    def withdraw(self) -> None:
        """Forget the response that was held back: another one is sent in its place."""
        self._start = None

    async def _headers(self) -> list[tuple[bytes, bytes]]:
        """What this request has spent so far, and what its user, or else it, has left."""
        request = await asnapshot(self._budgets[0])
        headers = [(b"x-budget-spent", f"{to_decimal(request.spent.usd):.9f}".encode())]
        left = request if self._user is None else await asnapshot(self._user)
        if left.remaining_usd is not None:
            headers.append((b"x-budget-remaining", f"{max(0, left.remaining_usd):.9f}".encode()))
        return headers

    def whose(self, error: BudgetExceeded) -> Whose:
        """Whose budget has no room; those of others are nobody's business."""
        if self._user is not None and error.name == self._user.name:
            return "user"
        for budget in self._budgets:
            if error.name == budget.name or error.name.startswith(f"{budget.name}/"):
                return "request"
        return None

    # The client that leaves

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End the block, quietly, when the client leaves before it was sent anything."""
        task = self._task = asyncio.current_task()
        assert task is not None
        try:
            yield
        except asyncio.CancelledError:
            if not self.left or task.cancelling() > 1:
                raise
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            if self.left:
                task.uncancel()

    async def _watch(self) -> None:
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                await self._ahead.put(message)
        except Exception as error:
            await self._ahead.put(error)
            return
        if not self.begun and self._task is not None:
            self.left = True
            self._task.cancel()
        await self._ahead.put(message)

"""Apps whose routes call a model, and browsers that call them."""

import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
from fastapi import FastAPI

from tests.clients.helpers import EXACT
from tokenfence_integrations import Budget
from tokenfence_integrations.money import parse_usd
from tokenfence_integrations.web import RequestBudgets

COST = parse_usd("$0.0000365")
"""A call of `EXACT`: 3 tokens in at $1.50 a million, 16 out at $2."""

FOR_TWO = "$0.00008"
"""Pays for two calls, and not for three."""


def app_with_budgets(**options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestBudgets, **options)
    return app


async def ask(client: openai.AsyncOpenAI, times: int = 1) -> str:
    """Call the model, each call at exactly its bound."""
    for _ in range(times):
        completion = await client.completions.create(**EXACT)
    return completion.choices[0].text


async def words(client: openai.AsyncOpenAI) -> AsyncIterator[str]:
    """The model's answer in pieces."""
    async for chunk in await client.completions.create(**EXACT, stream=True):
        yield chunk.choices[0].text if chunk.choices else ""


async def forgotten(client: openai.AsyncOpenAI) -> None:
    """Have nothing hold the last request's budget any more.

    A connection in the pool keeps the context that it was last read in, until it is read again.
    """
    with Budget("$1").scope():
        await ask(client)
    gc.collect()


def browser(app: Any, user: str = "") -> httpx.AsyncClient:
    headers = {"user": user} if user else {}
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers)


async def get(app: Any, path: str = "/", user: str = "") -> httpx.Response:
    async with browser(app, user) as one:
        return await one.get(path)


def nano(reply: httpx.Response, header: str) -> int:
    """A header's amount."""
    return parse_usd(reply.headers[header])


class Wire:
    """The server's side of one request, by hand: what it received, and when its client leaves."""

    def __init__(self, path: str = "/", **headers: str) -> None:
        import asyncio

        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            "server": ("app", 80),
        }
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        self._asked = False

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def serve(self, app: Any) -> None:
        await app(self.scope, self.receive, self.send)


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The app behind a real server, and its URL."""
    import asyncio
    import socket

    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task

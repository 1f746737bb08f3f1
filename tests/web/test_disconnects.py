"""A client that leaves: nothing of its request stays reserved, and nothing more is spent for it."""

import asyncio

import httpx
import openai
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse

from tests.clients.helpers import check_covered
from tests.engine.waiters import idle
from tests.web.apps import FOR_TWO, Wire, app_with_budgets, ask, served, words
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.web import request_budget


@pytest.fixture
def service() -> Budget:
    return Budget("$1", name="service")


def app_for(client: openai.AsyncOpenAI, service: Budget, **options: bool) -> FastAPI:
    app = app_with_budgets(**options)
    spend = Depends(request_budget(FOR_TWO, parent=service))

    @app.get("/", dependencies=[spend])
    async def answers() -> str:
        return await ask(client, 2)

    @app.get("/stream", dependencies=[spend])
    async def stream() -> StreamingResponse:
        return StreamingResponse(words(client))

    @app.get("/later", dependencies=[spend])
    async def answer_later(tasks: BackgroundTasks) -> str:
        tasks.add_task(ask, client, 2)
        return "later"

    return app


@pytest.mark.parametrize("path", ["/", "/stream"])
async def test_a_client_that_leaves_ends_its_request(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget, path: str
) -> None:
    provider.hold()
    wire = Wire(path)
    request = asyncio.create_task(wire.serve(app_for(client, service)))
    await asyncio.to_thread(provider.wait_for, 1)
    assert service.reserved > 0
    wire.gone.set()
    await request
    assert wire.sent == []
    provider.release()
    check_covered(service, provider)
    assert service.calls == 1  # the second is never made


async def test_a_client_that_leaves_ends_waiting_as_well(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$0.00004", name="service")  # for one call at a time
    app = app_for(client, service)
    provider.hold()
    first = asyncio.create_task(Wire().serve(app))
    await asyncio.to_thread(provider.wait_for, 1)
    wire = Wire()
    second = asyncio.create_task(wire.serve(app))
    await idle()
    assert service._tree.line
    wire.gone.set()
    await second
    assert not service._tree.line
    provider.release()
    await first


async def test_a_request_can_go_on_without_its_client(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget
) -> None:
    provider.hold()
    wire = Wire()
    app = app_for(client, service, cancel_on_disconnect=False)
    request = asyncio.create_task(wire.serve(app))
    await asyncio.to_thread(provider.wait_for, 1)
    wire.gone.set()
    provider.release()
    await request
    assert service.calls == 2
    assert service.uncertain == 0


async def test_a_client_that_leaves_after_its_answer_stops_no_background_task(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget
) -> None:
    provider.hold()
    wire = Wire("/later")
    request = asyncio.create_task(wire.serve(app_for(client, service)))
    await asyncio.to_thread(provider.wait_for, 1)
    assert wire.sent[-1]["body"] == b'"later"'
    wire.gone.set()
    provider.release()
    await request
    assert service.calls == 2


async def test_a_server_that_ends_the_request_is_obeyed(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget
) -> None:
    provider.hold()
    request = asyncio.create_task(Wire().serve(app_for(client, service)))
    await asyncio.to_thread(provider.wait_for, 1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    provider.release()
    check_covered(service, provider)


async def test_a_body_is_read_whole_while_the_client_is_watched(
    client: openai.AsyncOpenAI, service: Budget
) -> None:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from tokenfence_integrations.web import RequestBudgets

    async def length(request: Request) -> PlainTextResponse:
        body = await request.body()
        assert not await request.is_disconnected()
        return PlainTextResponse(str(len(body)))

    app = Starlette(
        routes=[Route("/", length, methods=["POST"])],
        middleware=[Middleware(RequestBudgets, request_budget("$1"))],
    )

    async def parts() -> object:
        for _ in range(100):
            yield b"x" * 1000

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
        assert (await browser.post("/", content=parts())).text == "100000"


@pytest.mark.parametrize("path", ["/", "/stream"])
async def test_behind_a_real_server(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget, path: str
) -> None:
    async with (
        served(app_for(client, service)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as browser,
    ):
        whole = await browser.get(path)
        assert whole.status_code == 200
        assert "x-budget-spent" in whole.headers
        spent = service.spent
        provider.hold()
        leaving = asyncio.create_task(browser.get(path))
        await asyncio.to_thread(provider.wait_for, 1)
        leaving.cancel()
        await asyncio.to_thread(provider.wait_for_disconnects, 1)
        provider.release()
    assert service.spent == spent
    assert service.uncertain > 0
    check_covered(service, provider)


async def test_a_stream_that_is_left_midway_stays_charged_and_holds_nothing(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, service: Budget
) -> None:
    provider.behave(stall=True)
    async with (
        served(app_for(client, service)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as browser,
    ):
        async with browser.stream("GET", "/stream") as reply:
            assert await anext(reply.aiter_raw())
        await asyncio.to_thread(provider.wait_for_disconnects, 1)
    assert service.uncertain > 0
    check_covered(service, provider)

"""Each request has a budget of its own, from its first call to its last background task."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Annotated, Any

import openai
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.clients.helpers import check_books
from tests.web.apps import COST, FOR_TWO, app_with_budgets, ask, forgotten, get, nano, words
from tokenfence_integrations import Budget, BudgetExceeded, async_guard
from tokenfence_integrations.engine.scope import scoped_budget
from tokenfence_integrations.stores.base import Command, Path, Read, Reply
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.web import RequestBudgets, request_budget, users


def app_for(client: openai.AsyncOpenAI, spend: Any) -> FastAPI:
    app = app_with_budgets()

    @app.get("/{times}")
    async def answers(times: int, budget: Annotated[Budget, Depends(spend)]) -> str:
        return await ask(client, times)

    return app


async def test_each_request_starts_with_a_whole_budget(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    app = app_for(client, request_budget(FOR_TWO))
    replies = await asyncio.gather(*[get(app, f"/{times}") for times in (2, 2, 3, 2)])
    assert [reply.status_code for reply in replies] == [200, 200, 429, 200]
    assert [nano(reply, "x-budget-spent") for reply in replies] == [2 * COST] * 4
    provider.idle()
    assert provider.billed == 8 * COST


async def test_requests_with_a_parent_are_in_its_books_and_leave_nothing_else_behind(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    app = app_for(client, request_budget(FOR_TWO, parent=service))
    for _ in range(3):
        assert (await get(app, "/2")).status_code == 200
    check_books(service, provider)
    await forgotten(client)
    assert service.snapshot().spent.usd == 6 * COST
    assert service.children == {}


async def test_the_parents_limit_holds_for_all_requests(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget(calls=3, name="service")
    app = app_for(client, request_budget(FOR_TWO, parent=service))
    replies = [await get(app, "/1") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    check_books(service, provider)


async def test_what_is_guarded_on_the_parent_keeps_the_requests_budget_as_well(
    bare: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    guarded = async_guard(bare, budget=service, on_limit="raise")
    app = app_for(guarded, request_budget(FOR_TWO, parent=service))
    assert (await get(app, "/3")).status_code == 429
    check_books(service, provider)
    assert service.calls == 2


async def test_the_scope_ends_with_the_request(client: openai.AsyncOpenAI) -> None:
    assert (await get(app_for(client, request_budget("$1")), "/1")).status_code == 200
    assert scoped_budget() is None


async def test_a_streamed_body_counts_against_the_request(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    app = app_with_budgets()
    spend = Depends(request_budget(FOR_TWO, parent=service))

    @app.get("/", dependencies=[spend])
    async def answers() -> StreamingResponse:
        return StreamingResponse(words(client), media_type="text/plain")

    @app.get("/sync", dependencies=[spend])
    def sync_body() -> StreamingResponse:
        def body() -> Any:
            yield scoped_budget().name  # type: ignore[union-attr]

        return StreamingResponse(body())

    reply = await get(app)
    assert reply.text.split()
    # What it costs is known only when all of it was sent: the headers tell what was known first.
    assert nano(reply, "x-budget-spent") == 0
    assert nano(reply, "x-budget-remaining") == 80_000 - COST
    check_books(service, provider)
    assert (await get(app, "/sync")).text.startswith("service/")


async def test_a_stream_that_is_refused_at_once_is_a_429(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    app = app_with_budgets()

    @app.get("/", dependencies=[Depends(request_budget("$0.00001"))])
    async def answers() -> StreamingResponse:
        return StreamingResponse(words(client))

    reply = await get(app)
    assert (reply.status_code, reply.json()["budget"]) == (429, "request")
    assert provider.requests == 0


async def test_a_stream_that_is_refused_later_breaks_off(client: openai.AsyncOpenAI) -> None:
    app = app_with_budgets()

    async def body() -> AsyncIterator[str]:
        while True:
            yield await ask(client)

    @app.get("/", dependencies=[Depends(request_budget(FOR_TWO))])
    async def answers() -> StreamingResponse:
        return StreamingResponse(body())

    with pytest.raises(RuntimeError, match="has no room"):
        await get(app)


async def test_background_tasks_count_against_the_request(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    app = app_with_budgets()
    seen: list[str] = []

    async def afterwards(budget: Budget) -> None:
        await ask(client)
        seen.append(budget.name)
        assert budget.calls == 2

    @app.get("/")
    async def answers(
        later: BackgroundTasks,
        budget: Annotated[Budget, Depends(request_budget(FOR_TWO, parent=service))],
    ) -> str:
        later.add_task(afterwards, budget)
        return await ask(client)

    reply = await get(app)
    assert nano(reply, "x-budget-spent") == COST
    check_books(service, provider)
    assert service.calls == 2
    assert len(seen) == 1


async def test_a_task_that_outlives_its_request_stays_within_its_budget(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    app = app_with_budgets()
    tasks: list[asyncio.Task[None]] = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        with contextlib.suppress(BudgetExceeded):
            await ask(client, 3)

    @app.get("/", dependencies=[Depends(request_budget(FOR_TWO, parent=service))])
    async def answers() -> None:
        tasks.append(asyncio.create_task(later()))

    await get(app)
    gc.collect()
    go.set()
    await tasks.pop()
    check_books(service, provider)
    assert service.calls == 2
    await forgotten(client)
    assert service.children == {}


async def test_plain_starlette_has_the_same_by_the_middleware(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")

    async def answers(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await ask(client, int(request.path_params["times"])))

    app = Starlette(
        routes=[Route("/{times}", answers)],
        middleware=[Middleware(RequestBudgets, request_budget(FOR_TWO, parent=service))],
    )
    replies = [await get(app, "/2"), await get(app, "/3")]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert [nano(reply, "x-budget-spent") for reply in replies] == [2 * COST, 2 * COST]
    check_books(service, provider)


async def test_the_middlewares_budget_and_the_routes_both_hold(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    service = Budget("$1", name="service")
    app = app_with_budgets(budget=request_budget(calls=1, parent=service))

    @app.get("/", dependencies=[Depends(request_budget(FOR_TWO, parent=service))])
    async def answers() -> str:
        return await ask(client, 2)

    reply = await get(app)
    assert (reply.status_code, reply.json()["quantity"]) == (429, "calls")
    assert reply.headers.get_list("x-budget-spent") == [f"{COST / 1e9:.9f}"]
    assert "x-budget-remaining" not in reply.headers  # it has no limit of dollars
    check_books(service, provider)


async def test_a_request_without_a_budget_is_left_alone(client: openai.AsyncOpenAI) -> None:
    app = app_with_budgets()

    @app.get("/")
    async def nothing() -> str:
        return "nothing"

    assert "x-budget-spent" not in (await get(app)).headers


def test_a_websocket_has_one_budget_for_as_long_as_it_lasts() -> None:
    app = app_with_budgets()

    @app.websocket("/")
    async def talk(
        socket: WebSocket, budget: Annotated[Budget, Depends(request_budget("$1"))]
    ) -> None:
        await socket.accept()
        await socket.send_text(str(scoped_budget() is budget))
        await socket.close()

    with TestClient(app) as browser, browser.websocket_connect("/") as socket:
        assert socket.receive_text() == "True"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a limit"),
        ({"usd": "5 euros"}, "cannot read"),
        ({"usd": "$1", "per_user": "$1"}, "need key="),
        ({"usd": "$1", "key": lambda _: "a"}, "needs per_user="),
        ({"usd": "$1", "key": lambda _: "a", "per_user": -1}, "negative"),
    ],
)
def test_mistakes_are_told_when_the_app_is_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_budget(**given)


class StoreElsewhere(MemoryStore):
    """A store that has to be waited for, and that tells who waits on an event loop."""

    instant = False

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.blocking: list[str] = []

    def execute(self, command: Command) -> Reply:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.reads += type(command) is Read
        else:
            self.blocking.append(type(command).__name__)
        return super().execute(command)

    async def aexecute(self, command: Command) -> Reply:
        return await asyncio.to_thread(self.execute, command)

    def note(self, command: Any) -> None:
        super().execute(command)

    def peek(self, path: Path) -> None:
        return None


async def test_a_store_that_has_to_be_waited_for_does_not_block_the_event_loop(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "FEW", 2)
    store = StoreElsewhere()
    service = Budget("$1", name="service", store=store)
    spend = request_budget(
        FOR_TWO, parent=service, key=lambda request: request.headers["user"], per_user="$0.5"
    )
    app = app_for(client, spend)
    for number in range(6):
        reply = await get(app, "/1", user=f"user {number}")
        assert (nano(reply, "x-budget-spent"), reply.status_code) == (COST, 200)
    assert (await get(app, "/3", user="user 0")).status_code == 429
    assert store.reads > 0
    assert store.blocking == []


def test_a_budget_is_no_limit_of_each_request() -> None:
    for given in ({"usd": Budget("$1")}, {"usd": "$1", "key": str, "per_user": Budget("$1")}):
        with pytest.raises(TypeError, match=r"budget for each request.*all requests as parent="):
            request_budget(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", ["$5", 5, Budget("$5")])
def test_the_middleware_takes_what_request_budget_returns(budget: Any) -> None:
    with pytest.raises(TypeError, match="takes what request_budget\\(\\) returns, got"):
        RequestBudgets(Starlette(), budget)


def test_it_shows_what_each_request_may_cost() -> None:
    assert repr(request_budget("$0.25", calls=3)) == "<RequestBudget of usd='$0.25', calls=3>"

"""What a client is told of a refusal: the numbers of its own budgets, and of no other."""

import asyncio
from typing import Any

import openai
import pytest
from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from tests.web.apps import COST, FOR_TWO, app_with_budgets, ask, browser, get
from tokenfence_integrations import Budget, BudgetExceeded, async_guard
from tokenfence_integrations.web import request_budget
from tokenfence_integrations.web.problems import problem

MEMBERS = {"type", "title", "status", "detail", "budget"}
NUMBERS = {"quantity", "limit", "spent", "reserved", "uncertain", "remaining", "requested"}


def app_that_asks(client: openai.AsyncOpenAI, times: int, spend: Any) -> FastAPI:
    app = app_with_budgets()

    @app.get("/", dependencies=[Depends(spend)] if spend else [])
    async def answers() -> str:
        return await ask(client, times)

    return app


async def test_the_problem_tells_the_numbers_of_the_request(client: openai.AsyncOpenAI) -> None:
    reply = await get(app_that_asks(client, 3, request_budget(FOR_TWO)))
    assert reply.status_code == 429
    assert reply.headers["content-type"] == "application/problem+json"
    assert "retry-after" not in reply.headers
    told = reply.json()
    assert set(told) == MEMBERS | NUMBERS
    assert (told["status"], told["budget"], told["quantity"]) == (429, "request", "usd")
    assert told["limit"] == 0.00008
    assert told["spent"] == pytest.approx(2 * COST / 1e9)
    assert told["requested"] == pytest.approx(COST / 1e9)
    assert told["remaining"] == pytest.approx((80_000 - 2 * COST) / 1e9)
    assert "$0.00008 " in told["detail"]
    assert "$0.0000365: " in told["detail"]


async def test_numbers_of_a_shared_budget_are_nobodys_business(client: openai.AsyncOpenAI) -> None:
    service = Budget(FOR_TWO, name="secret-project")
    reply = await get(app_that_asks(client, 3, request_budget("$1", parent=service)))
    assert (reply.status_code, set(reply.json())) == (429, MEMBERS)
    assert reply.json()["budget"] == "service"
    assert "secret" not in reply.text
    assert "$" not in reply.text
    # Not the service's 0.000007 either: what the request's own budget has left.
    assert reply.headers["x-budget-remaining"] == f"{1 - 2 * COST / 1e9:.9f}"


@pytest.mark.parametrize("spend", [None, request_budget("$1")], ids=["no budget", "another"])
async def test_numbers_of_a_clients_own_budget_are_not_told(
    bare: openai.AsyncOpenAI, spend: Any
) -> None:
    own = async_guard(bare, budget=Budget(FOR_TWO, name="request"), on_limit="raise")
    reply = await get(app_that_asks(own, 3, spend))
    assert (reply.status_code, set(reply.json())) == (429, MEMBERS)


async def test_a_child_of_the_requests_budget_is_the_requests(client: openai.AsyncOpenAI) -> None:
    app = app_with_budgets()

    @app.get("/")
    async def answers(budget: Budget = Depends(request_budget("$1"))) -> str:  # noqa: B008
        with budget.child("researcher", FOR_TWO).scope():
            return await ask(client, 3)

    assert (await get(app)).json()["budget"] == "request"


async def test_a_refusal_in_a_group_of_tasks_is_a_429(client: openai.AsyncOpenAI) -> None:
    app = app_with_budgets()

    @app.get("/", dependencies=[Depends(request_budget(FOR_TWO))])
    async def answers() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(ask(client))

    assert (await get(app)).status_code == 429


async def test_other_exceptions_are_left_alone() -> None:
    app = app_with_budgets()

    @app.get("/{group}", dependencies=[Depends(request_budget("$1"))])
    async def answers(group: bool) -> None:
        errors = [BudgetExceeded(1.0, 1.0), KeyError("else")]
        raise ExceptionGroup("both", errors) if group else errors[1]

    with pytest.raises(KeyError, match="else"):
        await get(app, "/0")
    with pytest.raises(ExceptionGroup, match="both"):
        await get(app, "/1")


async def test_the_apps_own_handler_comes_first(client: openai.AsyncOpenAI) -> None:
    app = app_that_asks(client, 3, request_budget(FOR_TWO))

    @app.exception_handler(BudgetExceeded)
    async def teapot(request: object, error: BudgetExceeded) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse("no", 418)

    assert (await get(app)).status_code == 418


async def test_middleware_added_later_sees_the_429(client: openai.AsyncOpenAI) -> None:
    app = app_that_asks(client, 3, request_budget(FOR_TWO))
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    async with browser(app) as one:
        reply = await one.get("/", headers={"origin": "http://elsewhere"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (429, "*")


@pytest.mark.parametrize(("seconds", "header"), [(None, None), (0.2, "1"), (3600, "3600")])
def test_retry_after_is_told_if_it_is_known(seconds: float | None, header: str | None) -> None:
    error = BudgetExceeded(1.0, 1.0, quantity="calls", requested=1.0, retry_after=seconds)
    for whose in ("user", None):
        assert problem(error, whose).headers.get("retry-after") == header  # type: ignore[arg-type]
    assert b"Your budget of 1 call has no room" in problem(error, "user").body

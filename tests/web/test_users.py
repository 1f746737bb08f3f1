"""Users have budgets of their own: what one spends changes nothing for another."""

import asyncio
import gc
from typing import Any

import openai
import pytest
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from tests.clients.helpers import check_books
from tests.web.apps import COST, FOR_TWO, app_with_budgets, ask, browser, get, nano
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.web import request_budget, users
from tokenfence_integrations.web.users import Users


def user_of(request: HTTPConnection) -> str | None:
    return request.headers.get("user")


async def later_user_of(request: HTTPConnection) -> str | None:
    await asyncio.sleep(0)
    return user_of(request)


def app_for(client: openai.AsyncOpenAI, **options: Any) -> FastAPI:
    app = app_with_budgets()
    given = {"usd": "$1", "key": user_of, "per_user": FOR_TWO, **options}
    spend = Depends(request_budget(**given))

    @app.get("/{times}", dependencies=[spend])
    async def answers(times: int) -> str:
        return await ask(client, times)

    return app


@pytest.mark.parametrize("key", [user_of, later_user_of])
@pytest.mark.parametrize("parent", [None, "$1"])
async def test_one_users_exhaustion_changes_nothing_for_another(
    client: openai.AsyncOpenAI, provider: SimulatedProvider, key: Any, parent: str | None
) -> None:
    service = None if parent is None else Budget(parent, name="service")
    app = app_for(client, key=key, parent=service)

    alone = await get(app, "/1", user="ann")
    bob = [await get(app, "/1", user="bob") for _ in range(5)]
    beside = await get(app, "/1", user="ann")

    assert [reply.status_code for reply in bob] == [200, 200, 429, 429, 429]
    assert {reply.json()["budget"] for reply in bob[2:]} == {"user"}
    assert (alone.status_code, beside.status_code) == (200, 200)
    assert nano(alone, "x-budget-spent") == nano(beside, "x-budget-spent") == COST
    # Bob's spending is nowhere in what Ann is told.
    assert nano(alone, "x-budget-remaining") == 80_000 - COST
    assert nano(beside, "x-budget-remaining") == 80_000 - 2 * COST
    provider.idle()
    assert provider.billed == 4 * COST
    if service is not None:
        check_books(service, provider)


async def test_one_users_waiting_calls_do_not_hold_up_another(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    """Bob's calls wait for those of his that are in flight, and Ann's pass them all the time."""
    service = Budget("$1", name="service")
    app = app_for(client, parent=service, per_user="$0.001")
    poor = app_for(client, parent=service)
    provider.hold()
    bob = [asyncio.create_task(get(poor, "/1", user="bob")) for _ in range(6)]
    await asyncio.to_thread(provider.wait_for, 2)
    provider.behave(hold=False)

    async with asyncio.timeout(30), browser(app, "ann") as ann:
        replies = [await ann.get("/1") for _ in range(20)]

    assert [reply.status_code for reply in replies] == [200] * 20
    assert not any(task.done() for task in bob)
    provider.release()
    statuses = sorted([(await task).status_code for task in bob])
    assert statuses == [200, 200, 429, 429, 429, 429]
    check_books(service, provider)


async def test_requests_without_a_user_share_one_budget(client: openai.AsyncOpenAI) -> None:
    app = app_for(client)
    replies = [await get(app, "/1") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    # It is shared, so nobody is told its numbers: only those of the request.
    assert "limit" not in replies[2].json()
    assert nano(replies[1], "x-budget-remaining") == 10**9 - COST
    assert (await get(app, "/2", user="ann")).status_code == 200


async def test_requests_without_a_user_can_be_refused(
    client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    assert (await get(app_for(client, anonymous=0), "/1")).status_code == 429
    assert provider.requests == 0


async def test_a_key_of_another_type_is_a_mistake(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(TypeError, match="a str or an int, or None; got bytes"):
        await get(app_for(client, key=lambda _: b"ann"), "/1")


@pytest.mark.parametrize("pair", [("a/b", "a%2Fb"), ("1", " 1"), ("ü", "u")])
async def test_no_key_is_anothers(client: openai.AsyncOpenAI, pair: tuple[str, str]) -> None:
    keys = iter([pair[0], pair[0], pair[1]])
    app = app_for(client, key=lambda _: next(keys))
    assert [(await get(app, "/2")).status_code for _ in range(3)] == [200, 429, 200]


async def test_routes_below_one_parent_share_its_users(client: openai.AsyncOpenAI) -> None:
    service = Budget("$1", name="service")
    one, other = app_for(client, parent=service), app_for(client, parent=service)
    assert (await get(one, "/2", user="ann")).status_code == 200
    assert (await get(other, "/1", user="ann")).status_code == 429
    service.children["user:ann"].top_up("$1")
    third = app_for(client, parent=service)
    assert (await get(third, "/1", user="ann")).status_code == 200


# Memory


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Idle users are looked for at ten."""
    monkeypatch.setattr(users, "FEW", 10)
    return 10


def request_of(key: str) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(b"user", key.encode())]})


async def test_users_who_never_spent_are_forgotten(few: int) -> None:
    everybody = Users(user_of, "$1", "$1", None)
    for number in range(500):
        await everybody.known(request_of(f"passer-by {number}"))
    assert len(everybody) <= few


async def test_what_users_have_spent_is_never_forgotten(few: int) -> None:
    everybody = Users(user_of, "$1", "$1", None)
    for number in range(50):
        user = await everybody.known(request_of(str(number)))
        assert user is not None
        user.record("$0.01")
    assert len(everybody) == 50
    for number in range(50):
        user = await everybody.known(request_of(str(number)))
        assert user is not None
        assert user.spent == 0.01


async def test_below_a_parent_only_the_accounts_of_idle_users_are_kept(few: int) -> None:
    service = Budget("$1", name="service")
    everybody = Users(user_of, "$0.1", "$0.1", service)
    user = None
    for number in range(500):
        user = await everybody.known(request_of(str(number)))
        assert user is not None
        user.record("$0.001")
    del user
    gc.collect()
    assert len(everybody) == len(service.children) <= few
    first = await everybody.known(request_of("0"))
    assert first is not None
    assert first.spent == 0.001
    assert service.spent == 0.5


async def test_a_user_with_a_request_or_a_call_under_way_is_the_same_for_all(few: int) -> None:
    everybody = Users(user_of, "$1", "$1", None)
    slow = await everybody.known(request_of("slow"))
    calling = await everybody.known(request_of("calling"))
    assert slow is not None
    assert calling is not None
    request = Budget("$1", parent=slow, kept=False)
    with calling.reserve(model="gpt-4o", input_tokens=1, max_output_tokens=1) as call:
        for number in range(100):
            await everybody.known(request_of(str(number)))
        assert await everybody.known(request_of("slow")) is request.parent
        assert await everybody.known(request_of("calling")) is call.budget
        call.release()

"""Users whose budgets are found elsewhere, such as the tenants of a file."""

import asyncio
import gc
from typing import Any

import openai
import pytest

from tests.clients.helpers import check_books
from tests.web.apps import COST, FOR_TWO, forgotten, get, nano
from tests.web.test_users import app_for, user_of
from tokenfence_integrations import Budget, Budgets
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.web import request_budget

FILE = {
    "default_tier": "free",
    "budgets": {"all": {"usd": "$1", "nobody": {"calls": 1}}},
    "tiers": {
        "free": {"name": "all/{tenant}", "usd": FOR_TWO},
        "pro": {"name": "all/{tenant}", "calls": 4},
    },
}


@pytest.fixture
def budgets() -> Budgets:
    return Budgets.from_dict(FILE, tier_of=lambda tenant: "pro" if tenant == "ann" else None)


@pytest.fixture
def app(client: openai.AsyncOpenAI, budgets: Budgets) -> Any:
    return app_for(client, per_user=budgets.tenant, anonymous=budgets["all/nobody"])


async def test_each_user_has_the_budget_of_the_tenant(
    app: Any, budgets: Budgets, client: openai.AsyncOpenAI, provider: SimulatedProvider
) -> None:
    bob = [await get(app, "/1", user="bob") for _ in range(3)]
    ann = [await get(app, "/1", user="ann") for _ in range(5)]
    assert [reply.status_code for reply in bob] == [200, 200, 429]
    assert [reply.status_code for reply in ann] == [200, 200, 200, 200, 429]
    assert (bob[2].json()["budget"], bob[2].json()["quantity"]) == ("user", "usd")
    assert (ann[4].json()["budget"], ann[4].json()["quantity"]) == ("user", "calls")
    assert nano(bob[0], "x-budget-remaining") == 80_000 - COST
    assert budgets.tenant("bob").snapshot().spent.usd == 2 * COST
    check_books(budgets["all"], provider)


async def test_what_is_above_the_tenants_holds_and_is_nobodys_business(
    app: Any, budgets: Budgets
) -> None:
    budgets["all"].set_limits("$0.0001")
    assert (await get(app, "/2", user="bob")).status_code == 200
    refused = await get(app, "/1", user="ann")
    assert refused.json()["budget"] == "service"
    assert "limit" not in refused.json()


async def test_requests_without_a_user_have_the_budget_that_is_for_them(
    app: Any, budgets: Budgets
) -> None:
    assert [(await get(app, "/1")).status_code for _ in range(2)] == [200, 429]
    assert budgets["all/nobody"].calls == 1


async def test_a_tenant_is_there_only_while_a_request_uses_it(
    app: Any, budgets: Budgets, client: openai.AsyncOpenAI
) -> None:
    assert (await get(app, "/2", user="bob")).status_code == 200
    await forgotten(client)
    gc.collect()
    assert list(budgets["all"].children) == ["nobody"]
    assert (await get(app, "/1", user="bob")).status_code == 429


async def test_the_function_may_be_async_and_know_no_budget(client: openai.AsyncOpenAI) -> None:
    ann = Budget("$1", name="ann")

    async def budget_of(key: str | int) -> Budget | None:
        await asyncio.sleep(0)
        return ann if key == "ann" else None

    app = app_for(client, per_user=budget_of, anonymous=0)
    assert (await get(app, "/1", user="ann")).status_code == 200
    assert (await get(app, "/1", user="bob")).status_code == 429
    assert ann.calls == 1


async def test_what_is_no_budget_is_a_mistake(client: openai.AsyncOpenAI) -> None:
    app = app_for(client, per_user=lambda key: f"${key}", anonymous=0)
    with pytest.raises(TypeError, match="per_user must return the Budget of a user, or None; got"):
        await get(app, "/1", user="5")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anonymous": None}, "say what requests without a user may cost"),
        ({"parent": Budget("$1")}, r"not with parent= and tz="),
        ({"tz": "UTC"}, r"not with parent= and tz="),
        ({"per_user": "$1", "anonymous": Budget("$1")}, "only if per_user= is a function"),
        ({"anonymous": "x"}, "cannot read"),
        ({"key": None}, "need key="),
    ],
)
def test_what_does_not_go_together_is_an_error(
    budgets: Budgets, options: dict[str, Any], said: str
) -> None:
    given = {"key": user_of, "per_user": budgets.tenant, "anonymous": 0, **options}
    with pytest.raises(ValueError, match=said):
        request_budget("$1", **given)

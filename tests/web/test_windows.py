"""Users' budgets for a day, and when a client may come again."""

from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from tests.clients.helpers import check_books
from tests.engine.helpers import FakeClock
from tests.web.apps import FOR_TWO, get
from tests.web.test_users import app_for, user_of
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.web import request_budget

DAY = 86_400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime(2026, 11, 24, 10, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("per_user", [f"{FOR_TWO}/day", "2 calls per day"])
@pytest.mark.parametrize(("tz", "hours"), [(None, 14), ("Europe/Berlin", 13)])
async def test_users_have_a_budget_for_each_day(
    client: openai.AsyncOpenAI,
    provider: SimulatedProvider,
    clock: FakeClock,
    per_user: str,
    tz: str | None,
    hours: int,
) -> None:
    service = Budget("$1", name="service", clock=clock.clock)
    app = app_for(client, parent=service, per_user=per_user, tz=tz)
    for _ in range(2):
        replies = [await get(app, "/1", user="ann") for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert replies[2].headers["retry-after"] == str(hours * 3600)
        assert f"The next window opens in {hours} h 0 min" in replies[2].json()["detail"]
        assert (await get(app, "/1", user="bob")).status_code == 200
        clock.advance(DAY)
    check_books(service, provider)


async def test_a_shared_window_is_told_without_its_numbers(
    client: openai.AsyncOpenAI, clock: FakeClock
) -> None:
    service = Budget("1 call/day", name="secret", clock=clock.clock)
    app = app_for(client, parent=service)
    replies = [await get(app, "/1", user="ann") for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert replies[1].headers["retry-after"] == str(14 * 3600)
    assert "limit" not in replies[1].json()


async def test_no_retry_after_where_no_window_helps(
    client: openai.AsyncOpenAI, clock: FakeClock
) -> None:
    service = Budget(FOR_TWO, name="service", clock=clock.clock)
    app = app_for(client, parent=service, per_user="2 calls/day")
    replies = [await get(app, "/1", user="ann") for _ in range(3)]
    assert replies[2].status_code == 429
    assert "retry-after" not in replies[2].headers


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"usd": "$1/day"}, r"gets a new budget.*per_user="),
        ({"usd": "$1", "tz": "UTC"}, "tz need key="),
        ({"usd": "$1", "key": user_of, "per_user": "$1/fortnight"}, "is not a window"),
        ({"usd": "$1", "key": user_of, "per_user": "$1/day", "tz": "Mars"}, "no time zone"),
    ],
)
def test_windows_that_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        request_budget(**options)


async def test_keys_with_the_mark_of_windows(client: openai.AsyncOpenAI, clock: FakeClock) -> None:
    service = Budget("$1", name="service", clock=clock.clock)
    app = app_for(client, parent=service, per_user="1 call/day")
    for user in ("a~2026-11-24", "a"):
        assert (await get(app, "/1", user=user)).status_code == 200
        assert (await get(app, "/1", user=user)).status_code == 429

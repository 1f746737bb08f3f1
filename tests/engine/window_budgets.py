"""What the tests of budgets with windows have in common."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tests.engine.helpers import FakeClock, nano
from tokenfence_integrations import Budget

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600
DAY = 24 * HOUR


def at(text: str, zone: Any = UTC) -> FakeClock:
    """A clock that stands at this time."""
    return FakeClock(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


def daily(limit: int, clock: FakeClock, **options: Any) -> Budget:
    """A budget of so many nano-dollars a day."""
    return Budget(nano(limit), per="day", clock=clock.clock, **{"name": "budget", **options})

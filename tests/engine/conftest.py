"""For tests of what threads do to each other: who sleeps, and who comes when."""

import sys
from collections.abc import Iterator

import pytest

from tests.engine.waiters import Asleep


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """Switch threads a thousand times as often as usual, in the midst of everything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Asleep:
    return Asleep(monkeypatch)

"""For tests of what threads do to each other."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """Switch threads a thousand times as often as usual, in the midst of everything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)

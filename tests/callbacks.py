"""What the tests of every framework's callback handler begin with, for their conftest."""

from collections.abc import Iterator

import pytest

from tests.engine.helpers import FakeClock
from tokenfence_integrations import Budget
from tokenfence_integrations.testing import SimulatedProvider

__all__ = ["budget", "clock", "provider"]


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    """One whose model "flat" costs 10 nano-dollars for each token of an answer."""
    with SimulatedProvider(prices={"flat": (0, 10)}) as provider:
        yield provider


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def budget(clock: FakeClock) -> Budget:
    """Enough for anything that is not about the limit; its clock stands still."""
    return Budget("$100", clock=clock.clock)

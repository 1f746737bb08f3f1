"""An empty store of each kind."""

import pytest

from tests.stores.factories import STORES
from tokenfence_integrations.stores.base import Store


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()

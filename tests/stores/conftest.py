"""An empty store of each kind."""

import pytest

from tests.stores.factories import OLDER, STORES
from tokenfence_integrations.stores.base import Store


@pytest.fixture(params=sorted(STORES | OLDER))
def store(request: pytest.FixtureRequest) -> Store:
    return (STORES | OLDER)[request.param]()

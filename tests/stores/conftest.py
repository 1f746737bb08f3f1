"""An empty store of each kind."""

import pytest

from tests.stores.factories import VERSIONS
from tokenfence_integrations.stores.base import Store


@pytest.fixture(params=sorted(VERSIONS))
def store(request: pytest.FixtureRequest) -> Store:
    return VERSIONS[request.param]()

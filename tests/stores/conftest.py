"""An empty store of each kind, and a place for a file."""

from pathlib import Path

import pytest

from tests.stores.factories import VERSIONS
from tokenfence_integrations.stores.base import Store


@pytest.fixture(params=sorted(VERSIONS))
def store(request: pytest.FixtureRequest) -> Store:
    return VERSIONS[request.param]()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where there may be a file of budgets; there is none yet."""
    return tmp_path / "budgets.db"

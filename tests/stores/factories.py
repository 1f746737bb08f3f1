"""The stores that all tests of stores and all properties run on, by name."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from tests.stores import postgres_servers
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.sqlite import SQLiteStore

_numbers = count(1)
_folders: list[Path] = []


def _sqlite() -> SQLiteStore:
    if not _folders:
        _folders.append(Path(tempfile.mkdtemp(prefix="tokenfence-tests-")))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    return SQLiteStore(_folders[0] / f"{next(_numbers)}.db")


STORES: dict[str, Callable[[], Store]] = {
    "memory": MemoryStore,
    "sqlite": _sqlite,
    "postgres": postgres_servers.newest,
}
"""Each makes a new, empty store."""

OLDER: dict[str, Callable[[], Store]] = {"postgres 16": postgres_servers.oldest}
"""The same on servers of older versions: for the contract alone."""

"""The stores that all tests of stores and all properties run on, by name."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from weakref import WeakSet

from tests.ending import at_end
from tests.stores import postgres_servers
from tests.stores.servers import REDIS, redis_server
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.slices import SlicedStore
from tokenfence_integrations.stores.slices import store as slices
from tokenfence_integrations.stores.sqlite import SQLiteStore

_numbers = count(1)
_folders: list[Path] = []


def _sqlite() -> SQLiteStore:
    if not _folders:
        _folders.append(Path(tempfile.mkdtemp(prefix="tokenfence-tests-")))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    return SQLiteStore(_folders[0] / f"{next(_numbers)}.db")


def redis_url(kind: str = "valkey8") -> str:
    """The URL of a Redis or Valkey server: a bundled one, unless tests are told of another."""
    return os.environ.get("TOKENFENCE_TEST_REDIS_URL") or redis_server(kind).url


def new_prefix() -> str:
    """A prefix under which there is nothing yet."""
    return f"test-{os.getpid()}-{next(_numbers)}"


def _redis(kind: str) -> RedisStore:
    return RedisStore(redis_url(kind), prefix=new_prefix())


def _sliced() -> SlicedStore:
    """Slices are borrowed for every call, however small, and kept."""
    store = SlicedStore(_redis("valkey8"), "50%", on_store_error="local")
    if not _slices:
        at_end(_give_back_all)
    _slices.add(store)
    return store


_slices: "WeakSet[SlicedStore]" = WeakSet()


def _give_back_all() -> None:
    """While their servers are still there."""
    for store in _slices:
        store.close()
        store.begin_life()  # calls that tests have left in flight
    slices._lending.clear()


STORES: dict[str, Callable[[], Store]] = {
    "memory": MemoryStore,
    "sqlite": _sqlite,
    "redis": partial(_redis, "valkey8"),
    "postgres": postgres_servers.empty,
    "sliced": _sliced,
}
"""Each makes a new, empty store."""

VERSIONS: dict[str, Callable[[], Store]] = {
    **STORES,
    **{kind: partial(_redis, kind) for kind in REDIS if kind != "valkey8"},
    **{
        f"postgres{version}": partial(postgres_servers.empty, version)
        for version in postgres_servers.VERSIONS[:-1]
    },
}
"""The same, and further versions of their servers: for what each has to keep by itself."""

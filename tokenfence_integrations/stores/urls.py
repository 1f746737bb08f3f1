"""Stores by URL: ``memory:``, ``sqlite:///budgets.db``, ``redis://...``, ``postgresql://...``."""

import os
import re
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary, WeakValueDictionary

from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.troubles import OnStoreError

__all__ = ["check_slices", "open_store", "opener", "sliced"]

DEFAULT_SLICE = "2%"

SQLITE = "sqlite:///"
REDIS = "redis://", "rediss://", "unix://", "valkey://", "valkeys://"
POSTGRES = "postgresql://", "postgres://"

_opened: "WeakValueDictionary[str, Store]" = WeakValueDictionary()
_opening = OwnLock()
_slices: "WeakKeyDictionary[Store, WeakValueDictionary[tuple[str, str], Store]]" = (
    WeakKeyDictionary()
)


def open_store(url: str) -> Store:
    """The store at a URL; the same one is opened once in a process, however often it is asked for.

    Args:
        url: ``"memory:"``, a new store in memory; ``"sqlite:///budgets.db"``, a file by a relative
            path; ``"sqlite:////var/lib/budgets.db"``, one by an absolute path;
            ``"redis://user:password@host:6379/0"``, a Redis or Valkey server, also as
            ``rediss://``, ``unix:///path/to/socket?db=0``, ``valkey://`` and ``valkeys://``;
            ``"postgresql://user:password@host:5432/database"``, a PostgreSQL database.

    Returns:
        The store.

    Raises:
        ValueError: It is no such URL.
        StoreError: The file cannot be used. (A server is connected to at the first call.)
        ModuleNotFoundError: The extra that has the server's client is not installed.

    Example:
        >>> open_store("memory:").instant
        True
    """
    return opener(url)()


def opener(url: str) -> Callable[[], Store]:
    """What opens the store at a URL: `MemoryStore` itself for one in memory.

    Raises:
        ValueError: It is no such URL.
    """
    if url == "memory:":
        return MemoryStore
    if url.startswith(REDIS):
        return partial(_once, url, _redis)
    if url.startswith(POSTGRES):
        return partial(_once, url, _postgres)
    if not url.startswith(SQLITE):
        raise ValueError(
            f"no store is known for {_without_secrets(url)!r}: give 'memory:', "
            f"'sqlite:///relative/path.db', 'sqlite:////absolute/path.db', 'redis://host:6379/0', "
            f"'postgresql://user@host/database', or a Store"
        )
    path = url.removeprefix(SQLITE)
    if not path or path == ":memory:" or "?" in path:
        raise ValueError(
            f"{url!r} names no file: give 'sqlite:///relative/path.db' or "
            f"'sqlite:////absolute/path.db'. Options are arguments of SQLiteStore(path, ...), and "
            f"what is to live in memory is 'memory:'"
        )
    return partial(_once, os.path.realpath(path), _sqlite)


def sliced(store: Store, slice: str | None, on_store_error: OnStoreError = "raise") -> Store:
    """A store of which this process borrows slices; the same one for all who ask for the same.

    Args:
        store: The store.
        slice: The share of a limit that is borrowed, such as ``"2%"``; None: none, unless calls are
            to go on while the store does not answer, which takes 2 %.
        on_store_error: As for `SlicedStore`.

    Returns:
        A `SlicedStore`; the store itself where no slices are asked for.

    Raises:
        ValueError: An argument is not valid, or the store is one in memory.
    """
    check_slices(slice, on_store_error)
    if slice is None and on_store_error == "raise":
        return store
    if store.instant:
        raise ValueError(
            "slice= and on_store_error= are for a store that processes share: give store= one on a "
            "disk or a server, or leave them out; a store in memory is quicker, and does not fail"
        )
    from tokenfence_integrations.stores.slices import SlicedStore

    share = DEFAULT_SLICE if slice is None else slice
    with _opening:
        slices = _slices.setdefault(store, WeakValueDictionary())
        found = slices.get((share, on_store_error))
        if found is None:
            found = SlicedStore(store, share, on_store_error=on_store_error)
            slices[share, on_store_error] = found
        return found


def check_slices(slice: str | None, on_store_error: OnStoreError) -> None:
    """Check what is asked for before a store is opened.

    Raises:
        ValueError: An argument is not valid, as for `sliced`.
    """
    if on_store_error not in ("raise", "local"):
        raise ValueError(f"on_store_error must be 'raise' or 'local', got {on_store_error!r}")
    if slice is not None:
        from tokenfence_integrations.stores.slices.slicing import parse_slice

        parse_slice(slice)


def _once(name: str, make: Callable[[str], Store]) -> Store:
    """The store of this name: made now, or the one that there is."""
    with _opening:
        store = _opened.get(name)
        if store is None:
            store = _opened[name] = make(name)
        return store


def _without_secrets(url: str) -> str:
    """A URL as errors may show it: such as one of SQLAlchemy's, given where it does not belong."""
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"//.*@", "//***@", url))


# Not imported before they are asked for: sqlite3 takes milliseconds, redis-py and psycopg
# a tenth of a second.


def _sqlite(path: str) -> Store:
    from tokenfence_integrations.stores.sqlite import SQLiteStore

    return SQLiteStore(path)


def _redis(url: str) -> Store:
    try:
        from tokenfence_integrations.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ModuleNotFoundError(
            "a store in Redis needs redis-py: pip install 'tokenfence-integrations[redis]'",
            name="redis",
        ) from error

    return RedisStore(url)


def _postgres(url: str) -> Store:
    try:
        from tokenfence_integrations.stores.postgres import PostgresStore
    except ImportError as error:  # psycopg raises another one if it finds no libpq
        if error.name != "psycopg" and "pq wrapper" not in str(error):
            raise
        raise ModuleNotFoundError(
            "a store in PostgreSQL needs psycopg: pip install 'tokenfence-integrations[postgres]'",
            name="psycopg",
        ) from error

    return PostgresStore(url)

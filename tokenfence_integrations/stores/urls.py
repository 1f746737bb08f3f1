"""Stores by URL: ``memory:``, ``sqlite:///budgets.db``."""

import os
from threading import Lock
from weakref import WeakValueDictionary

from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore

__all__ = ["open_store"]

SQLITE = "sqlite:///"

_opened: "WeakValueDictionary[str, Store]" = WeakValueDictionary()
_opening = Lock()


def open_store(url: str) -> Store:
    """The store at a URL; the same file is opened once in a process, however often it is asked for.

    Args:
        url: ``"memory:"``, a new store in memory; ``"sqlite:///budgets.db"``, a file by a relative
            path; ``"sqlite:////var/lib/budgets.db"``, one by an absolute path.

    Returns:
        The store.

    Raises:
        ValueError: It is no such URL.
        StoreError: The file cannot be used.

    Example:
        >>> open_store("memory:").instant
        True
    """
    if url == "memory:":
        return MemoryStore()
    if not url.startswith(SQLITE):
        raise ValueError(
            f"no store is known for {url!r}: give 'memory:', 'sqlite:///relative/path.db', "
            f"'sqlite:////absolute/path.db', or a Store"
        )
    path = url.removeprefix(SQLITE)
    if not path or path == ":memory:" or "?" in path:
        raise ValueError(
            f"{url!r} names no file: give 'sqlite:///relative/path.db' or "
            f"'sqlite:////absolute/path.db'. Options are arguments of SQLiteStore(path, ...), and "
            f"what is to live in memory is 'memory:'"
        )
    # Not before it is asked for: sqlite3 takes milliseconds to import.
    from tokenfence_integrations.stores.sqlite import SQLiteStore

    name = os.path.realpath(path)
    with _opening:
        store = _opened.get(name)
        if store is None:
            store = _opened[name] = SQLiteStore(name)
        return store

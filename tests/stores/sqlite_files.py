"""Stores in files, as the tests of SQLite use them."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenfence_integrations.stores.base import (
    Limits,
    Open,
)
from tokenfence_integrations.stores.sqlite import SQLiteStore

__all__ = ["PATH", "ROOT", "locked", "opened"]

ROOT = ("root",)
PATH = ("root/leaf", "root")


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """The file as it is while another program writes to it."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def opened(file: Path, usd: int | None = 100, **options: Any) -> SQLiteStore:
    store = SQLiteStore(file, **options)
    store.execute(Open("root", Limits(usd=usd)))
    return store

"""A store in a SQLite file."""

from tokenfence_integrations.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]

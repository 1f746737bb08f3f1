"""A store in PostgreSQL."""

from tokenfence_integrations.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]

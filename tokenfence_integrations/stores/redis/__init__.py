"""A store in Redis or Valkey."""

from tokenfence_integrations.stores.redis.store import RedisStore

__all__ = ["RedisStore"]

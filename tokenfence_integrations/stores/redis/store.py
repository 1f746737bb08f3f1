"""Accounts in Redis or Valkey: exact among all processes of all machines, each command a script."""

import re
from typing import TYPE_CHECKING

from tokenfence_integrations.stores.redis.nodes import nodes_of
from tokenfence_integrations.stores.redis.wire import RedisWire
from tokenfence_integrations.stores.remote import RemoteStore

if TYPE_CHECKING:
    import redis

__all__ = ["RedisStore"]

ATTEMPT = 5.0
"""Seconds that a server may take for an answer before the connection counts as broken."""


class RedisStore(RemoteStore):
    """Accounts on a Redis server, 6.2 or newer, or a Valkey server, 7.2 or newer.

    Each command is one Lua script over the whole path, in integers, and one round trip; commands
    issued at the same time share it. All keys of a tree have the same hash tag, so on a cluster it
    lives on one slot. Leases follow the server's clock.

    Event loops are never blocked: the store's own thread sends what tasks ask for, on one
    connection, whichever loop a task runs on.

    The server must not evict keys (``maxmemory-policy noeviction``), and keeps what was spent over
    a restart only if it persists (``appendonly yes``).

    Args:
        server: A URL (``redis://``, ``rediss://``, ``unix://``, ``valkey://``, ``valkeys://``), or
            a `redis.Redis` or `redis.RedisCluster`, whose settings are used for the store's own
            connection.
        prefix: What the keys begin with; letters, digits, ``.``, ``_``, ``-`` and ``:``.
        lease: Seconds after which a process that gives no sign of life counts as dead; 1 or more.
            Default 60.
        timeout: Seconds to try to reach the server before a call fails; above 0. Default 30.

    Raises:
        ValueError: The URL, a number or the prefix is not valid.
        TypeError: The server is an asyncio client.

    Example:
        >>> budget = Budget("$5", store=RedisStore("redis://localhost", lease=10))  # doctest: +SKIP
    """

    def __init__(
        self,
        server: "str | redis.Redis | redis.RedisCluster",
        *,
        prefix: str = "tokenfence",
        lease: float = 60.0,
        timeout: float = 30.0,
    ) -> None:
        if not re.fullmatch(r"[\w.:-]+", prefix):
            raise ValueError(
                f"a prefix may only have letters, digits, '.', '_', '-' and ':', got {prefix!r}"
            )
        wire = RedisWire(nodes_of(server, min(ATTEMPT, timeout)), f"{prefix}:")
        super().__init__(wire, lease=lease, timeout=timeout)

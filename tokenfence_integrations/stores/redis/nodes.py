"""Where a Redis server is, or which servers of a cluster have which keys, and how to connect."""

import random
import re
import time
from contextlib import suppress
from copy import copy
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

__all__ = ["ClusterNodes", "Nodes", "SentinelNodes", "nodes_of"]

_chance = random.Random()  # the module's own is the user's: seeded, perhaps

LOOK = 1.0
"""Seconds after which Sentinels are asked again for the primary."""

Address: TypeAlias = tuple[str, int]


class Nodes:
    """How to connect to the one server there is.

    Args:
        pool: Whose settings are used.
        attempt: Seconds that an answer may take, if the settings do not say.

    Raises:
        ValueError: The settings have one that there is not.
    """

    is_cluster = False

    def __init__(self, pool: Any, attempt: float) -> None:
        settings = {**pool.connection_kwargs, **_ours(pool.connection_kwargs, attempt)}
        self.where = _where(pool.connection_class, settings)
        self.pool = redis.ConnectionPool(pool.connection_class, **settings)
        try:
            self.pool.connection_class(**self.pool.connection_kwargs)  # which does not connect
        except TypeError as error:
            raise ValueError(f"{self.where} has an unknown setting: {error}") from error

    def pool_of(self, key: str) -> Any:
        """The pool of the server that has a key."""
        return self.pool

    def pools(self) -> list[Any]:
        """The pools of all servers."""
        return [self.pool]

    def any_pool(self) -> Any:
        """The pool of any server: not always the same, for one of them may be gone."""
        return _chance.choice(self.pools())

    def moved(self) -> None:
        """Learn anew which server has which keys, if that can change."""


class SentinelNodes(Nodes):
    """How to connect to the primary that Sentinels tell of.

    They are asked each second: a primary whose place was taken answers for some seconds more, until
    it is made a replica, and forgets what it was told.
    """

    def __init__(self, pool: Any, attempt: float) -> None:
        if not pool.is_master:
            raise ValueError(
                f"this client is one of the replicas of {pool.service_name!r}, which must not be "
                f"written: give the one of Sentinel.master_for()"
            )
        sentinels = copy(pool.sentinel_manager)
        sentinels.sentinels = [
            redis.Redis(connection_pool=Nodes(client.connection_pool, attempt).pool)
            for client in sentinels.sentinels
        ]
        settings = {**pool.connection_kwargs, "connection_class": pool.connection_class}
        del settings["connection_pool"]  # which the new one brings
        self._told = redis.SentinelConnectionPool(pool.service_name, sentinels, **settings)  # type: ignore[no-untyped-call]
        self._primary: Address | None = None
        self._look_at = 0.0
        super().__init__(self._told, attempt)
        self.where = f"sentinel://{pool.service_name}"

    def pool_of(self, key: str) -> Any:
        now = time.monotonic()
        if now >= self._look_at:
            with suppress(RedisError, OSError):  # else it goes on as it is
                primary = self._told.get_master_address()  # type: ignore[no-untyped-call]
                if primary != self._primary:
                    self._primary = primary
                    self.pool = redis.ConnectionPool(
                        self.pool.connection_class, **self.pool.connection_kwargs
                    )
            # Sentinels that do not answer shall not hold up each second's calls.
            self._look_at = now + max(LOOK, 10 * (time.monotonic() - now))
        return self.pool

    def moved(self) -> None:
        self._look_at = 0.0


class ClusterNodes(Nodes):
    """How to connect to the servers of a cluster.

    Which of them has which keys the client knows, until one does not answer, or has them no longer.
    From then on they are asked, on connections of our own: a client may wait for ever for a server
    that is stopped.
    """

    is_cluster = True

    def __init__(self, cluster: Any, attempt: float) -> None:
        self._cluster = cluster
        self._told: dict[int, Address] = {}  # by slot
        self._primaries: tuple[Address, ...] = ()
        self._nodes: frozenset[Address] = frozenset()
        self._pools: dict[Address, Any] = {}
        client = cluster.get_redis_connection(cluster.get_default_node())
        super().__init__(client.connection_pool, attempt)

    def pool_of(self, key: str) -> Any:
        address = self._told.get(self._cluster.keyslot(key))
        if address is None:
            try:
                address = _address(self._cluster.get_node_from_key(key))
            except RedisClusterException:  # nobody has it, which any server will say
                return self.pool
        return self._pool(address)

    def pools(self) -> list[Any]:
        primaries = self._primaries or map(_address, self._cluster.get_primaries())
        return [self._pool(each) for each in primaries]

    def moved(self) -> None:
        known = {*self._nodes, *map(_address, self._cluster.get_nodes())}
        # In any order, lest it be always one that has not heard of it.
        for address in _chance.sample(sorted(known), len(known)):
            with suppress(RedisError, OSError):
                told = self._told_by(address)
                self._told = {slot: nodes[0] for slots, nodes in told for slot in slots}
                self._primaries = tuple({nodes[0] for _, nodes in told})
                self._nodes = frozenset(node for _, nodes in told for node in nodes)
                return

    def _told_by(self, address: Address) -> list[tuple[range, list[Address]]]:
        """What a server says which slots there are, and who has them: a primary, then replicas."""
        pool = self._pool(address)
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            reply = connection.read_response()
        finally:
            connection.disconnect()
        return [
            (range(first, last + 1), [self._reached(node[0], node[1], address) for node in nodes])
            for first, last, *nodes in reply
        ]

    def _reached(self, host: bytes, port: int, told_by: Address) -> Address:
        """Where we reach a server that is told of; without a host it is the one that tells."""
        address = host.decode() if host else told_by[0], port
        return self._cluster.nodes_manager.remap_host_port(*address)  # type: ignore[no-any-return]

    def _pool(self, address: Address) -> Any:
        pool = self._pools.get(address)
        if pool is None:
            host, port = address
            settings = {**self.pool.connection_kwargs, "host": host, "port": port}
            pool = self._pools[address] = redis.ConnectionPool(
                self.pool.connection_class, **settings
            )
        return pool


def nodes_of(server: Any, attempt: float) -> Nodes:
    """How to connect to a server, given as a URL or as a client.

    Args:
        server: As for `RedisStore`.
        attempt: Seconds that an answer may take, if the URL or the client does not say.

    Raises:
        ValueError: The URL is none, or the client is one for replicas.
        TypeError: It is neither.
    """
    if isinstance(server, str):
        return Nodes(_pool_of_url(server), attempt)
    if isinstance(server, redis.RedisCluster):
        return ClusterNodes(server, attempt)
    if isinstance(server, redis.Redis):
        pool = server.connection_pool
        is_told = isinstance(pool, redis.SentinelConnectionPool)
        return SentinelNodes(pool, attempt) if is_told else Nodes(pool, attempt)
    raise TypeError(
        f"a RedisStore takes a URL, a redis.Redis or a redis.RedisCluster, got {server!r}; it "
        f"talks to the server in a thread of its own, so that these serve asyncio as well"
    )


def _ours(settings: dict[str, Any], attempt: float) -> dict[str, Any]:
    """What is other on a connection of ours than these settings say."""
    return {
        "socket_timeout": settings.get("socket_timeout") or attempt,
        "socket_connect_timeout": settings.get("socket_connect_timeout") or attempt,
        "retry": Retry(NoBackoff(), 0),  # whatever fails is tried again above
        "decode_responses": False,
    }


def _pool_of_url(url: str) -> redis.ConnectionPool:
    url = re.sub(r"^valkey(s?)://", r"redis\1://", url)
    # redis-py would connect to this machine, or take database 0, or show a part of the password.
    if not _is_url(url):
        raise ValueError(
            "this is no URL of a Redis server: give 'redis://user:password@host:6379/0', where the "
            "0 is a number, and '/', '?', '#', '@', ':' and '%' in a user or a password are "
            "written as %2F, %3F, %23, %40, %3A and %25"
        )
    return redis.ConnectionPool.from_url(url)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_database = parts.scheme == "unix" or re.fullmatch(r"/?\d*", parts.path)
        has_settings = all("=" in each for each in parts.query.split("&") if each)
        return bool(has_database and has_settings and not parts.fragment and parts.port != 0)
    except ValueError:
        return False


def _where(connection_class: type[Any], settings: dict[str, Any]) -> str:
    """A server as errors name it."""
    database = f"/{settings['db']}" if settings.get("db") else ""
    if settings.get("path"):
        return f"unix://{settings['path']}{database}"
    host = str(settings.get("host", "localhost"))
    host = f"[{host}]" if ":" in host else host
    scheme = "rediss" if issubclass(connection_class, redis.SSLConnection) else "redis"
    return f"{scheme}://{host}:{settings.get('port', 6379)}{database}"


def _address(node: Any) -> Address:
    return node.host, node.port

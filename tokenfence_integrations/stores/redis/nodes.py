"""Where a Redis server is, or which servers of a cluster have which keys, and how to connect."""

import re
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["ClusterNodes", "Nodes", "nodes_of"]


class Nodes:
    """How to connect to the one server there is.

    Args:
        pool: Whose settings are used.
        attempt: Seconds that an answer may take, if the settings do not say.
    """

    def __init__(self, pool: Any, attempt: float) -> None:
        self.pool = pool
        settings = pool.connection_kwargs
        if settings.get("path"):
            self.where = f"unix://{settings['path']}"
        else:
            host, port = settings.get("host", "localhost"), settings.get("port", 6379)
            self.where = f"redis://{host}:{port}"
        if settings.get("db"):
            self.where += f"/{settings['db']}"
        if not isinstance(pool, redis.SentinelConnectionPool):
            ours = {
                "socket_timeout": settings.get("socket_timeout") or attempt,
                "socket_connect_timeout": settings.get("socket_connect_timeout") or attempt,
                "retry": Retry(NoBackoff(), 0),  # whatever fails is tried again above
                "decode_responses": False,
            }
            self.pool = redis.ConnectionPool(pool.connection_class, **{**settings, **ours})

    def pool_of(self, key: str) -> Any:
        """The pool of the server that has a key."""
        return self.pool

    def pools(self) -> list[Any]:
        """The pools of all servers."""
        return [self.pool]

    def moved(self) -> None:
        """Learn anew which server has which keys."""


class ClusterNodes(Nodes):
    """How to connect to the servers of a cluster."""

    def __init__(self, cluster: Any, attempt: float) -> None:
        self._cluster = cluster
        self._attempt = attempt
        self._by_name: dict[str, Nodes] = {}
        client = cluster.get_redis_connection(cluster.get_default_node())
        super().__init__(client.connection_pool, attempt)

    def pool_of(self, key: str) -> Any:
        return self._pool(self._cluster.get_node_from_key(key))

    def pools(self) -> list[Any]:
        return [self._pool(node) for node in self._cluster.get_primaries()]

    def moved(self) -> None:
        self._by_name.clear()
        self._cluster.nodes_manager.initialize()

    def _pool(self, node: Any) -> Any:
        nodes = self._by_name.get(node.name)
        if nodes is None:
            pool = self._cluster.get_redis_connection(node).connection_pool
            nodes = self._by_name[node.name] = Nodes(pool, self._attempt)
        return nodes.pool


def nodes_of(server: Any, attempt: float) -> Nodes:
    """How to connect to a server, given as a URL or as a client.

    Args:
        server: As for `RedisStore`.
        attempt: Seconds that an answer may take, if the URL or the client does not say.
    """
    if isinstance(server, str):
        url = re.sub(r"^valkey(s?)://", r"redis\1://", server)
        return Nodes(redis.ConnectionPool.from_url(url), attempt)
    if isinstance(server, redis.RedisCluster):
        return ClusterNodes(server, attempt)
    if isinstance(server, redis.Redis):
        return Nodes(server.connection_pool, attempt)
    raise TypeError(
        f"a RedisStore takes a URL, a redis.Redis or a redis.RedisCluster, got {server!r}; it "
        f"talks to the server in a thread of its own, so that these serve asyncio as well"
    )

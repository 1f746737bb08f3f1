"""Redis clusters of several servers, on this machine."""

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from tests.stores.servers import RedisServer

__all__ = ["Cluster", "free_port", "has_heard", "until"]

SLOTS = 16_384


class Cluster:
    """Primaries that share the slots evenly, and replicas of the first ones.

    Args:
        kind: A key of `REDIS`.
        primaries: How many, 2 or more.
        replicas: How many of them have a replica.

    Attributes:
        servers: The primaries, then the replicas.
    """

    def __init__(self, kind: str = "valkey8", *, primaries: int = 3, replicas: int = 0) -> None:
        ports = [free_port() for _ in range(primaries + replicas)]
        self.ports = ports
        self.servers = [_node(kind, port) for port in ports]
        self.clients = [server.client() for server in self.servers]
        self.ids = [client.cluster("MYID") for client in self.clients]
        share = -(-SLOTS // primaries)
        for number, client in enumerate(self.clients):
            client.cluster("SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                slots = range(SLOTS)[number * share : (number + 1) * share]
                client.cluster("ADDSLOTS", *slots)
            for port in ports[:number]:
                client.cluster("MEET", "127.0.0.1", port)
        until(lambda: all(self._knows_all(client) for client in self.clients))
        for number in range(replicas):
            replica = self.clients[primaries + number]
            until(lambda: _done(replica, "REPLICATE", self.ids[number]))  # noqa: B023
            until(lambda: replica.info("replication")["master_link_status"] == "up")  # noqa: B023
        until(lambda: all(_state(client) == "ok" for client in self.clients))

    def client(self, **options: Any) -> redis.RedisCluster:
        """A client of it, which knows the first server to begin with."""
        return redis.RedisCluster(host="127.0.0.1", port=self.ports[0], **options)

    def server_of(self, tree: str) -> int:
        """Which of its primaries has the keys of a tree."""
        return self.ids.index(_owner(self.clients[0], self.clients[0].cluster("KEYSLOT", tree)))

    @property
    def url(self) -> str:
        """As `tests.stores.processes` takes it."""
        return f"cluster://127.0.0.1:{self.ports[0]}"

    def tree_on(self, server: int, prefix: str) -> str:
        """The name of a tree that lives on one of the servers."""
        names = (f"{prefix}-{number}" for number in range(1_000))
        return next(name for name in names if self.server_of(name) == server)

    @contextmanager
    def moving(self, tree: str) -> Iterator[None]:
        """Move the slot of a tree, from the first server to the second: its keys at the end."""
        slot = self.clients[0].cluster("KEYSLOT", tree)
        source, target = self.clients[:2]
        target.cluster("SETSLOT", slot, "IMPORTING", self.ids[0])
        source.cluster("SETSLOT", slot, "MIGRATING", self.ids[1])
        yield
        while keys := source.cluster("GETKEYSINSLOT", slot, 2):
            source.migrate("127.0.0.1", self.ports[1], keys, 0, 1_000)
        for client in (target, source):
            client.cluster("SETSLOT", slot, "NODE", self.ids[1])

    def fail_over(self) -> None:
        """Kill the first primary, and have the first replica take its place."""
        self.servers[0].stop()
        replica = self.clients[-1]
        replica.cluster("FAILOVER", "TAKEOVER")
        until(lambda: all(_owner(client, 0) == self.ids[-1] for client in self.clients[1:]))

    def is_replicated(self) -> bool:
        """Whether the first replica has all that the first primary was told."""
        return has_heard(self.clients[-1], self.clients[0])

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.stop()

    def _knows_all(self, client: Any) -> bool:
        nodes = client.cluster("NODES").values()
        return len(nodes) == len(self.servers) and all(
            node["connected"] and "handshake" not in node["flags"] for node in nodes
        )


def _node(kind: str, port: int) -> RedisServer:
    options = ["--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"]
    # A server that is killed here is not missed before a test says so.
    return RedisServer(
        kind, *options, "--cluster-node-timeout", "10000", "--repl-diskless-sync-delay", "0"
    )


def _done(client: Any, *command: object) -> bool:
    with suppress(redis.ResponseError):
        client.cluster(*command)
        return True
    return False


def _state(client: Any) -> str:
    return str(client.cluster("INFO")["cluster_state"])


def _owner(client: Any, slot: int) -> str:
    """Who has a slot, by what a server knows."""
    return next(
        str(node["node_id"])
        for node in client.cluster("NODES").values()
        if any(int(slots[0]) <= slot <= int(slots[-1]) for slots in node["slots"])
    )


def has_heard(replica: Any, primary: Any) -> bool:
    """Whether a replica has all that its primary was told. (WAIT is about its caller's writes.)"""
    told = primary.info("replication")["master_repl_offset"]
    return bool(replica.info("replication")["slave_repl_offset"] >= told)


def until(happens: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    by = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < by
        time.sleep(0.005)


def free_port() -> int:
    """A port of this machine on which nobody listens, nor on the one that a cluster adds to it."""
    while True:
        port = random.randrange(10_000, 22_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port

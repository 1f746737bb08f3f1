"""Budgets on a Valkey server that writes each command to its disk before it answers."""

from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from socket import socket
from typing import NamedTuple

from tests.crashes.points import Held
from tests.crashes.servers import TIMEOUT, Servers, server_faults
from tests.crashes.worker import Stop, Worker
from tests.proxy import connected
from tests.stores.servers import RedisServer
from tokenfence_integrations.stores.base import Read
from tokenfence_integrations.stores.redis import RedisStore

__all__ = ["REDIS_FAULTS", "RedisServers"]

_numbers = count(1)


class Opening(NamedTuple):
    """How a worker opens its store."""

    port: int
    prefix: str

    def __call__(self, stop: Stop) -> RedisStore:
        return RedisStore(f"redis://127.0.0.1:{self.port}", prefix=self.prefix, timeout=TIMEOUT)


class RedisServers(Servers):
    """Budgets under a prefix of their own."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self._prefix = f"crash-{next(_numbers)}"
        self._redis = server

    def connect(self) -> socket:
        return connected(self._redis.folder / "socket")

    def opening_at(self, port: int) -> Opening:
        return Opening(port, self._prefix)

    def held(self, worker: Worker) -> Held:
        with self._redis.client() as client:
            account = f"{self._prefix}:{{{worker.account}}}:account:{worker.account}"
            amounts = client.hmget(account, "spent", "reserved", "uncertain")
            return Held(*[int((amount or "0").split()[0]) for amount in amounts])

    def expire(self, workers: Sequence[Worker]) -> None:
        store = RedisStore(self._redis.url, prefix=self._prefix)
        with self._redis.client() as client:
            for worker in workers:
                owners = f"{self._prefix}:{{{worker.account}}}:owners"
                client.zadd(owners, dict.fromkeys(client.zrange(owners, 0, -1), 0), xx=True)
                store.execute(Read((worker.account,)))
        store.close()


@cache
def _durable() -> RedisServer:
    return RedisServer("valkey8", "--appendonly", "yes", "--appendfsync", "always")


def _site(_: Path) -> RedisServers:
    return RedisServers(_durable())


REDIS_FAULTS = server_faults("Valkey", _site)

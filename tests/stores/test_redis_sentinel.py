"""Budgets on a Redis primary that Sentinels tell of: followed to the server that takes over."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from tests.engine.helpers import charged, reserve, small, spend
from tests.stores.clusters import free_port, has_heard, until
from tests.stores.servers import REDIS, RedisServer, program
from tokenfence_integrations import Usage
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.redis import store as redis_store
from tokenfence_integrations.stores.remote import listening

SERVICE = "budgets"


class Watched:
    """A primary and its replica, and a Sentinel that has one replace the other."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.ports = [free_port() for _ in range(2)]
        self.servers = [
            RedisServer(kind, "--port", str(port), "--bind", "127.0.0.1") for port in self.ports
        ]
        self.clients = [server.client() for server in self.servers]
        self.clients[0].config_set("repl-diskless-sync-delay", 0)
        self.clients[1].replicaof("127.0.0.1", self.ports[0])
        until(lambda: self.clients[1].info("replication")["master_link_status"] == "up")
        self.port = free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        self.process = subprocess.Popen(
            [program(kind), str(settings), "--sentinel"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.sentinel = Sentinel([("127.0.0.1", self.port)])
        until(lambda: bool(self.sentinel.discover_slaves(SERVICE)))

    def is_replicated(self) -> bool:
        """Whether the replica has all that the primary was told."""
        return has_heard(self.clients[1], self.clients[0])

    def takes_orders(self) -> bool:
        """Whether it begins to have the replica take over, as it does once it knows it well."""
        with suppress(redis.ResponseError):
            self.sentinel.sentinels[0].execute_command("SENTINEL", "FAILOVER", SERVICE)
            return True
        return False

    def is_taken_over(self) -> bool:
        """Whether the replica is the primary, for the Sentinel and for itself."""
        with suppress(redis.ConnectionError):  # there is none at the moment
            is_found = self.sentinel.discover_master(SERVICE) == ("127.0.0.1", self.ports[1])
            return is_found and self.clients[1].role()[0] == "master"
        return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.sentinel.close()
        for client, server in zip(self.clients, self.servers, strict=True):
            client.close()
            server.stop()


@pytest.fixture(params=sorted(REDIS))
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(request.param, tmp_path)
    yield watched
    watched.stop()


@pytest.fixture
def client(watched: Watched) -> Iterator[Any]:
    with watched.sentinel.master_for(SERVICE) as client:
        yield client


@pytest.mark.parametrize("is_killed", [True, False])
def test_calls_in_flight_end_on_the_server_that_takes_over(
    monkeypatch: pytest.MonkeyPatch, watched: Watched, client: Any, is_killed: bool
) -> None:
    """Whether the primary is dead, or lives on without its replica (min-replicas-to-write)."""
    if is_killed:  # else nobody knows before somebody looks
        monkeypatch.setattr(listening, "LOOK", 60.0)
    watched.clients[0].config_set("min-replicas-to-write", 1)
    one, other = (RedisStore(client) for _ in range(2))
    assert repr(one) == f"<RedisStore sentinel://{SERVICE}>"
    mine, theirs = (small(100, name="acme", store=store) for store in (one, other))
    held = reserve(theirs, 80).admit()
    waiting = threading.Thread(target=lambda: spend(mine, 50))
    waiting.start()
    until(lambda: bool(mine._tree.line))
    until(watched.is_replicated)
    if is_killed:
        watched.servers[0].stop()
    else:
        until(watched.takes_orders)
        until(watched.is_taken_over)
        until(lambda: watched.clients[0].info("replication")["min_slaves_good_slaves"] == 0)
    held.settle(Usage(0, 30))
    waiting.join(20)
    assert not waiting.is_alive()
    assert charged(mine) == charged(theirs) == (80, 0, 0)
    assert watched.clients[1].hget("tokenfence:{acme}:account:acme", "spent") == "80 2 0 80"
    for store in (one, other):
        store.close()


def test_a_primary_whose_place_was_taken_is_left_although_it_still_answers(
    monkeypatch: pytest.MonkeyPatch, watched: Watched, client: Any
) -> None:
    """It does for some seconds, and forgets what it was told when it is made a replica."""
    store = RedisStore(client)
    budget = small(100, name="acme", store=store)
    spend(budget, 20)
    until(watched.is_replicated)
    until(watched.takes_orders)
    until(watched.is_taken_over)
    monkeypatch.setattr(store._wire._nodes, "_look_at", 0.0)  # type: ignore[attr-defined]
    spend(budget, 30)
    assert charged(budget) == (50, 0, 0)
    assert watched.clients[0].role()[0] == "master"
    assert watched.clients[1].hget("tokenfence:{acme}:account:acme", "spent") == "50 2 0 50"
    store.close()


def test_a_sentinel_that_is_stopped_does_not_hold_up_the_others(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its client, as older versions of redis-py make it, waits for it for ever."""
    monkeypatch.setattr(redis_store, "ATTEMPT", 0.2)
    silent = subprocess.Popen(
        [program("valkey8"), "--port", str(port := free_port()), "--save", ""],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(port=port) as probe:
            until(lambda: _answers(probe))
        os.kill(silent.pid, signal.SIGSTOP)
        addresses = [("127.0.0.1", port), ("127.0.0.1", watched.port)]
        sentinel = Sentinel(addresses, sentinel_kwargs={"socket_timeout": None})
        store = RedisStore(sentinel.master_for(SERVICE), timeout=10)
        spend(small(100, name="acme", store=store), 20)
        store.close()
    finally:
        silent.kill()
        silent.wait()


def _answers(client: Any) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def test_a_client_of_replicas_is_refused(watched: Watched) -> None:
    with pytest.raises(ValueError, match=r"replicas of 'budgets'.*Sentinel\.master_for"):
        RedisStore(watched.sentinel.slave_for(SERVICE))

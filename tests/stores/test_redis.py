"""Budgets on Redis and Valkey: exact beyond doubles, exactly once, leased, closed when broken."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.engine.helpers import charged, nano, reserve, small, spend
from tests.proxy import Fault, Proxy, bad_network
from tests.stores.factories import VERSIONS, new_prefix, redis_url
from tests.stores.heartbeat import PATIENCE, beating
from tests.stores.servers import REDIS, RedisServer, redis_server
from tests.stores.test_contract import parts, read
from tests.stores.twins import run_beside_memory
from tokenfence_integrations import Budget, BudgetExceeded, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    Adjust,
    Amount,
    Anchor,
    Book,
    Draw,
    End,
    Limits,
    Open,
    Read,
    Reserve,
    Resolve,
)
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.remote import backing_off, listening
from tokenfence_integrations.stores.urls import open_store

ROOT = ("root",)
SERVERS = [name for name in VERSIONS if name == "redis" or name in REDIS]


def opened(store: RedisStore, usd: int = 100) -> RedisStore:
    store.execute(Open("root", Limits(usd=usd)))
    return store


def redis_client() -> Any:
    return redis.Redis.from_url(redis_url(), decode_responses=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_as_exact_as_in_memory(server: str, seed: int) -> None:
    run_beside_memory(VERSIONS[server](), seed, 150)


# A bad network


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(backing_off, "BACK_OFF", (0.0001, 0.001))


@pytest.fixture
def network() -> Iterator[Proxy]:
    """A network in front of a server, of which a fault may befall each command."""
    path = Path(redis_server("valkey8").url.removeprefix("unix://"))
    with bad_network(path, lambda data: b"EVALSHA" in data) as network:
        yield network


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(2))
def test_every_command_is_applied_once_whatever_becomes_of_it_and_its_answer(
    network: Proxy, seed: int
) -> None:
    chance = random.Random(seed)
    faults: tuple[Fault, ...] = ("none", "none", "request lost", "reply lost", "late")
    store = RedisStore(f"redis://127.0.0.1:{network.port}", prefix=new_prefix())

    def fault() -> Fault:
        if chance.random() < 0.1:
            network.deliver()
        return chance.choice(faults)

    network.fault = fault
    run_beside_memory(store, seed, 120)
    network.fault = lambda: "none"
    network.deliver()
    store.close()
    assert network.faults > 50


@pytest.mark.usefixtures("quick")
def test_a_reservation_that_arrives_after_its_end_does_nothing(network: Proxy) -> None:
    """It lay in the buffer of a server that was stopped, on a connection long given up."""
    url = f"redis://127.0.0.1:{network.port}"
    store = opened(RedisStore(url, prefix=new_prefix(), timeout=0.05))
    network.fault = lambda: "late"
    with pytest.raises(StoreError, match="cannot be reached"):
        store.execute(Reserve(ROOT, 1, Amount(60)))
    network.fault = lambda: "none"
    assert parts(read(store, "root")) == (NOTHING, NOTHING, NOTHING)  # its end went first
    network.deliver()
    assert parts(read(store, "root")) == (NOTHING, NOTHING, NOTHING)
    store.close()


def test_scripts_that_a_server_has_forgotten_are_loaded_again() -> None:
    store = opened(RedisStore(redis_url(), prefix=new_prefix()))
    with redis_client() as client:
        client.script_flush()
    assert store.execute(Reserve(ROOT, 1, Amount(60))).done
    store.close()


# A server that is stopped, or gone


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own, which keeps what it is told."""
    server = RedisServer("valkey8", "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


@contextlib.contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


async def test_an_event_loop_goes_on_while_the_server_is_stopped(server: RedisServer) -> None:
    store = RedisStore(server.url)
    budget = small(100, store=store)

    async def ask() -> None:
        async with reserve(budget, 20) as call:
            await call.asettle(Usage(0, 7))

    held = reserve(budget, 30).admit()
    async with beating() as heart:
        with stopped(server):
            asking = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0.02)
            held.settle(Usage(0, 5))  # nor does an end wait
            budget.record(nano(2))
            budget.child("late", nano(9))
            assert store.peek(budget.path)[0].spent.usd == 7  # type: ignore[index]
            assert not any(task.done() for task in asking)
            gone = asyncio.create_task(ask())
            await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.wait([gone])  # nor does a task that is cancelled
            assert gone.cancelled()
        await asyncio.gather(*asking)
    assert charged(budget) == (28, 0, 0)
    assert not budget._tree.live
    assert heart.longest_pause < PATIENCE
    await store.aclose()


def test_a_server_that_stays_stopped_is_an_error_that_says_so(server: RedisServer) -> None:
    store = RedisStore(server.url, timeout=0.5)
    budget = small(100, store=store)
    held = reserve(budget, 30).admit()
    with stopped(server):
        with pytest.raises(StoreError, match=r"unix://.*it does not answer"):
            reserve(budget, 20).admit()
        with pytest.raises(StoreError, match="may have been applied all the same"):
            store.execute(Adjust(budget.path, Amount(1)))
        held.settle(Usage(0, 5))
    assert charged(budget) == (5, 0, 0)
    spend(budget, 95)
    store.close()


def test_calls_in_flight_outlast_a_restart_of_the_server(server: RedisServer) -> None:
    store = RedisStore(server.url)
    budget = small(100, store=store)
    held, lost = reserve(budget, 30).admit(), reserve(budget, 20).admit()
    charged(budget)
    server.stop()
    held.settle(Usage(0, 5))
    lost.lose()
    server.start()
    assert charged(budget) == (5, 0, 20)
    spend(budget, 75)
    with pytest.raises(BudgetExceeded):
        spend(budget, 1)
    store.close()


def test_a_server_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    budget = small(100, store=RedisStore(f"unix://{tmp_path}/nobody", timeout=0.05))
    with pytest.raises(StoreError, match=r"nobody cannot be used: it cannot be reached.*running"):
        reserve(budget, 20).admit()


@pytest.mark.parametrize("kind", sorted(REDIS))
def test_a_full_server_admits_nothing_and_takes_ends_all_the_same(kind: str) -> None:
    server = RedisServer(kind)
    store = RedisStore(server.url)
    budget = small(100, store=store)
    held = reserve(budget, 30).admit()
    store.execute(Open("root", Limits()))
    store.execute(Reserve(ROOT, 10**9, Amount(60)))
    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="its memory is full: raise its maxmemory"):
            reserve(budget, 20).admit()
        held.settle(Usage(0, 5))
        assert charged(budget) == (5, 0, 0)
        assert store.execute(Draw(ROOT, 10**9, Amount(10), Amount(5), Amount(45))).done
        assert parts(read(store, "root")) == (Amount(10), Amount(45), Amount(5))
        client.config_set("maxmemory", 0)
    spend(budget, 95)
    store.close()
    server.stop()


@pytest.mark.parametrize("kind", sorted(REDIS))
def test_a_replica_is_an_error_that_says_so_and_ends_are_kept_meanwhile(kind: str) -> None:
    server = RedisServer(kind)
    store = RedisStore(server.url, timeout=0.5)
    budget = small(100, store=store)
    held = reserve(budget, 30).admit()
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreError, match=r"it is a replica.*address of the primary"):
            reserve(budget, 20).admit()
        held.settle(Usage(0, 5))
        client.replicaof("NO", "ONE")
    assert charged(budget) == (5, 0, 0)
    store.close()
    server.stop()


@pytest.mark.parametrize("kind", sorted(REDIS))
def test_a_wrong_password_is_an_error_at_once(kind: str) -> None:
    server = RedisServer(kind, "--requirepass", "secret")
    for url in (server.url, f"{server.url}?password=wrong"):
        budget = small(100, store=RedisStore(url, timeout=900))  # for which it is not tried
        with pytest.raises(StoreError, match=r"needs a user or a password"):
            reserve(budget, 20).admit()
    store = RedisStore(f"{server.url}?password=secret")
    spend(small(100, store=store), 20)
    assert "secret" not in repr(store)
    store.close()
    server.stop()


def test_keys_of_something_else_are_left_alone() -> None:
    prefix = new_prefix()
    with redis_client() as client:
        client.set(f"{prefix}:{{root}}:account:root", "a guest's")
        store = RedisStore(redis_url(), prefix=prefix)
        with pytest.raises(StoreError, match="used by something else: give RedisStore another pre"):
            store.execute(Open("root", Limits()))
        assert client.get(f"{prefix}:{{root}}:account:root") == "a guest's"


# Leases and charges


def lapse(prefix: str, tree: str = "root") -> None:
    """The leases of all owners are over."""
    with redis_client() as client:
        owners = f"{prefix}:{{{tree}}}:owners"
        client.zadd(owners, dict.fromkeys(client.zrange(owners, 0, -1), 0), xx=True)


@pytest.fixture
def pair() -> Iterator[tuple[RedisStore, RedisStore, str]]:
    """Two stores on the same keys, as two processes have them, and their prefix."""
    prefix = new_prefix()
    one, other = (opened(RedisStore(redis_url(), prefix=prefix)) for _ in range(2))
    yield one, other, prefix
    for store in (one, other):
        store.close()


Pair = tuple[RedisStore, RedisStore, str]


def test_what_a_silent_process_holds_turns_uncertain_when_its_lease_is_over(pair: Pair) -> None:
    silent, other, prefix = pair
    silent.execute(Reserve(ROOT, 1, Amount(60, 1, 2, 3), what="gpt-4o"))
    assert parts(read(other, "root")) == (NOTHING, Amount(60, 1, 2, 3), NOTHING)
    lapse(prefix)
    begun = time.time()
    assert parts(read(other, "root")) == (NOTHING, NOTHING, Amount(60, 1, 2, 3))
    [charge] = other.charges("root")
    assert charge[1:3] == (ROOT, Amount(60, 1, 2, 3))
    assert charge.what == "gpt-4o"
    assert abs(charge.at - begun) < 5
    assert other.charges() == (charge,)
    assert other.charges("elsewhere") == ()
    assert other.execute(Resolve(charge.id, Amount(7, 1, 1, 1))).done
    assert not other.execute(Resolve(charge.id, Amount(7, 1, 1, 1))).done
    assert not other.execute(Resolve("no charge", Amount(7, 1, 1, 1))).done
    assert parts(read(silent, "root")) == (Amount(7, 1, 1, 1), NOTHING, NOTHING)
    silent.execute(End(ROOT, 1, Amount(60), NOTHING))  # too late: somebody has seen to it
    assert parts(read(silent, "root")) == (Amount(7, 1, 1, 1), NOTHING, NOTHING)


def test_a_refused_reservation_tells_of_what_has_expired(pair: Pair) -> None:
    silent, other, prefix = pair
    silent.execute(Reserve(ROOT, 1, Amount(60)))
    lapse(prefix)
    reply = other.execute(Reserve(ROOT, 1, Amount(60)))
    assert not reply.done
    assert parts(reply.states[0]) == (NOTHING, NOTHING, Amount(60))


def test_the_true_end_of_an_expired_reservation_corrects_it_once(pair: Pair) -> None:
    stopped, other, prefix = pair
    stopped.execute(Reserve(ROOT, 1, Amount(60, 1, 5, 5)))
    stopped.execute(Reserve(ROOT, 2, Amount(10)))
    lapse(prefix)
    assert read(other, "root").uncertain == Amount(70, 1, 5, 5)
    assert stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert not stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(13))
    stopped.execute(End(ROOT, 2, NOTHING, NOTHING))
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(3))


def test_a_process_that_was_stopped_reserves_under_a_lease_of_its_own_again(pair: Pair) -> None:
    stopped, other, prefix = pair
    stopped.execute(Reserve(ROOT, 1, Amount(10)))
    lapse(prefix)
    other.execute(Read(ROOT))
    stopped.execute(Reserve(ROOT, 2, Amount(20)))
    assert parts(read(other, "root")) == (NOTHING, Amount(20), Amount(10))
    lapse(prefix)
    assert parts(read(other, "root")) == (NOTHING, NOTHING, Amount(30))


def test_a_lease_is_renewed_while_calls_are_in_flight(pair: Pair) -> None:
    alive, other, prefix = pair
    alive.execute(Reserve(ROOT, 1, Amount(10)))
    lapse(prefix)
    alive._courier.renewals.at = 0.0  # a third of the lease later
    pause = alive._courier.tend()
    assert pause is not None
    assert 19 < pause <= 20
    assert parts(read(other, "root")) == (NOTHING, Amount(10), NOTHING)
    alive.execute(End(ROOT, 1, NOTHING, NOTHING))
    alive._courier.tend()
    assert alive._courier.tend() is None


def test_a_tree_that_was_renewed_in_between_does_not_keep_the_thread_busy(pair: Pair) -> None:
    store, *_ = pair
    courier = store._courier
    courier.tend()
    sends, send = [], courier._send
    courier._send = lambda: sends.append(1) or send()  # type: ignore[method-assign]
    store.execute(Reserve(ROOT, 1, Amount(10)))
    courier.renewals.at = 0.0  # as told of others a third of the lease ago
    before = len(sends)
    pause = courier.tend()
    assert pause is not None
    assert 19 < pause <= 20
    assert len(sends) <= before + 2  # its own thread may do the same
    store.execute(End(ROOT, 1, NOTHING, NOTHING))


def test_two_trees_have_leases_of_their_own(pair: Pair) -> None:
    """The one that is in use keeps the other's from nothing."""
    store, other, prefix = pair
    for each in (store, other):
        each.execute(Open("tree", Limits()))
    store.execute(Reserve(("tree",), 1, Amount(1)))
    store.execute(End(("tree",), 1, NOTHING, NOTHING))
    lapse(prefix, "tree")  # long ago it held something there
    store._courier.renewals._trees["tree"] -= 60
    store.execute(Reserve(ROOT, 2, Amount(10)))
    store.execute(Reserve(("tree",), 3, Amount(10)))
    assert parts(read(other, "tree")) == (NOTHING, Amount(10), NOTHING)


# Waiting


def test_a_server_is_listened_to_only_while_somebody_waits(
    monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    monkeypatch.setattr(listening, "LINGER", 0.01)
    monkeypatch.setattr(listening, "LOOK", 60.0)
    one, other, prefix = pair
    mine, theirs = (Budget(nano(100), name="acme", store=store) for store in (one, other))
    channel = f"{prefix}:{{acme}}:freed"
    with redis_client() as client:

        def listeners() -> int:
            return int(client.pubsub_numsub(channel)[0][1])

        def until(count: int) -> None:
            by = time.monotonic() + 20
            while listeners() != count:
                assert time.monotonic() < by
                time.sleep(0.001)

        held = reserve(theirs, 80).admit()
        assert listeners() == 0
        waiting = threading.Thread(target=lambda: spend(mine, 50))
        waiting.start()
        until(1)
        held.settle(Usage(0, 50))
        waiting.join(20)
        assert not waiting.is_alive()
        until(0)
    assert charged(mine) == (100, 0, 0)


def test_those_who_wait_are_woken_though_the_connection_they_listen_on_breaks(pair: Pair) -> None:
    one, other, _ = pair
    mine, theirs = (Budget(nano(100), name="acme", store=store) for store in (one, other))
    held = reserve(theirs, 80).admit()
    waiting = threading.Thread(target=lambda: spend(mine, 50))
    waiting.start()
    with redis_client() as client:
        while not client.client_kill_filter(_type="pubsub"):
            time.sleep(0.001)
    held.settle(Usage(0, 50))
    waiting.join(20)
    assert not waiting.is_alive()
    assert charged(mine) == (100, 0, 0)


# One batch at a time


async def test_commands_that_meet_share_a_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(RedisStore(redis_url(), prefix=new_prefix()), usd=64)
    exchange, sizes = store._wire.exchange, []

    def counted(batch: Any) -> Any:
        sizes.append(len(batch.orders))
        return exchange(batch)

    monkeypatch.setattr(store._wire, "exchange", counted)
    with store._courier.sending:  # another batch is away
        tasks = [
            asyncio.create_task(store.aexecute(Reserve(ROOT, key, Amount(1)))) for key in range(65)
        ]
        await asyncio.sleep(0)
    replies = await asyncio.gather(*tasks)
    assert [reply.done for reply in replies] == [True] * 64 + [False]
    assert sizes == [65]
    await store.aclose()


async def test_tasks_of_several_loops_and_threads_share_one_store() -> None:
    store = opened(RedisStore(redis_url(), prefix=new_prefix()), usd=30)

    async def ask(keys: range) -> int:
        replies = await asyncio.gather(
            *[store.aexecute(Reserve(ROOT, key, Amount(1))) for key in keys]
        )
        return sum(reply.done for reply in replies)

    def by_thread(keys: range) -> int:
        return sum(store.execute(Reserve(ROOT, key, Amount(1))).done for key in keys)

    done = await asyncio.gather(
        ask(range(20)),
        asyncio.to_thread(lambda: asyncio.run(ask(range(20, 40)))),
        asyncio.to_thread(by_thread, range(40, 60)),
    )
    assert sum(done) == 30
    await store.aclose()


def test_a_server_that_stays_away_for_hours_is_still_the_same_error(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/nowhere", timeout=0.01)
    store._courier._back_off._tries = 5_000
    for _ in range(2):
        with pytest.raises(StoreError, match="nowhere"):
            store.execute(Read(("acme",)))


# Where the server is


def test_a_tree_lives_on_one_slot_of_a_cluster() -> None:
    ports = "--port", str(free_port()), "--cluster-port", str(free_port())
    server = RedisServer("valkey8", *ports, "--cluster-enabled", "yes", "--bind", "127.0.0.1")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while client.cluster("INFO")["cluster_state"] != "ok":
            time.sleep(0.005)
        port = client.config_get("port")["port"]
    cluster = redis.RedisCluster(host="127.0.0.1", port=int(port))
    store = RedisStore(cluster)
    for name in ("acme", "umbrella", "}{odd%7D", "}"):
        budget = small(100, name=name, store=store)
        spend(budget.child("team", per="month").child("a", calls=5), 20)
        reserve(budget, 30).admit().lose()
        assert charged(budget) == (20, 0, 30)
        [charge] = store.charges(name)
        assert store.execute(Resolve(charge.id, Amount(1, 1))).done
        assert charged(budget) == (21, 0, 0)
        reserve(budget, 5).admit().lose()
    assert len(store.charges()) == 4
    store.close()
    cluster.close()
    server.stop()


def test_a_client_lends_its_settings_and_keeps_its_connections() -> None:
    prefix = new_prefix()
    with redis_client() as client:  # which decodes; the store does not mind
        store = RedisStore(client, prefix=prefix)
        spend(small(100, name="acme", store=store), 20)
        store.close()
        assert client.ping()
        assert client.hget(f"{prefix}:{{acme}}:account:acme", "spent") == "20 1 0 20"


def test_every_key_has_the_prefix_and_the_tag_of_its_tree() -> None:
    server = RedisServer("valkey8")
    store = RedisStore(server.url, prefix="ours")
    budget = small(100, name="acme", store=store)
    spend(budget.child("team"), 20)
    reserve(budget, 20).admit().lose()
    budget.reset()
    store.execute(Anchor("acme", 1.5))
    reserve(budget, 20).admit()
    store.close()
    with server.client() as client:
        keys = client.keys()
        assert all(key.startswith("ours:{acme}:") for key in keys)
        forever = {key.removeprefix("ours:{acme}:") for key in keys if client.ttl(key) == -1}
    held = {key for key in forever if key.startswith("held:")}
    assert forever - held == {"owners", "anchors", "account:acme", "account:acme/team"}
    server.stop()


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "*"])
def test_a_prefix_is_a_plain_word(prefix: str) -> None:
    with pytest.raises(ValueError, match="a prefix may only have letters"):
        RedisStore("redis://localhost", prefix=prefix)


async def test_an_asyncio_client_is_refused_with_the_reason() -> None:
    client = redis.asyncio.Redis()
    with pytest.raises(TypeError, match="in a thread of its own"):
        RedisStore(client)  # type: ignore[arg-type]
    await client.aclose()


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://user:secret@example.org:7000/3", "redis://example.org:7000/3"),
        ("valkey://localhost", "redis://localhost:6379"),
        ("rediss://localhost:6380", "rediss://localhost:6380"),
        ("valkeys://localhost", "rediss://localhost:6379"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock/2"),
    ],
)
def test_a_url_makes_no_connection_and_no_password_is_shown(url: str, where: str) -> None:
    store = open_store(url)
    assert repr(store) == f"<RedisStore {where}>"
    assert open_store(url) is store


# Forks, and the end of a process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_connection_and_reservations_of_its_own() -> None:
    store = RedisStore(redis_url(), prefix=new_prefix())
    budget = small(200, name="acme", store=store)
    mine = reserve(budget, 50).admit()

    def child() -> None:
        mine.settle(Usage(0, 50))  # not this process's to end
        spend(budget, 20)
        reserve(budget, 30).admit().lose()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert charged(budget) == (20, 50, 30)
    mine.settle(Usage(0, 10))
    assert charged(budget) == (30, 0, 30)
    store.close()


def test_a_garbage_collection_finds_no_open_socket() -> None:
    """Python warns of one, and finalizes what is garbage in any order."""
    told = []

    class Socket:
        closed = False

        def __del__(self) -> None:
            told.append(self.closed)

    class Connection:
        def __init__(self) -> None:
            self.socket = Socket()

        def disconnect(self) -> None:
            self.socket.closed = True

    store = RedisStore(redis_url(), prefix=new_prefix())
    connection = Connection()
    store._wire._connections["pool"] = connection  # type: ignore[attr-defined]
    ring: list[Any] = [connection.socket, connection, store]
    ring.append(ring)
    del ring, connection, store
    gc.collect()
    assert told == [True]


def test_what_is_noted_is_sent_as_the_process_ends() -> None:
    prefix = new_prefix()
    store = opened(RedisStore(redis_url(), prefix=prefix))
    script = f"""
from tokenfence_integrations.stores.base import *
from tokenfence_integrations.stores.base import Amount, Book, End, Reserve
from tokenfence_integrations.stores.redis import RedisStore
store = RedisStore({redis_url()!r}, prefix={prefix!r})
store._courier.tend = lambda: None
store.execute(Reserve(("root",), 1, Amount(9)))
store.end(("root",), 1, Amount(4), Amount(1))
store.note(Book(("root",), Amount(2)))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert parts(read(store, "root")) == (Amount(6), NOTHING, Amount(1))
    store.close()


def test_a_store_that_nobody_uses_any_more_leaves_nothing_behind() -> None:
    store = opened(RedisStore(redis_url(), prefix=new_prefix()))
    store.note(Book(ROOT, Amount(3)))
    with contextlib.suppress(IndexError):
        [thread] = [t for t in threading.enumerate() if t.name == "tokenfence"][-1:]
    del store
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()

"""Budgets on clusters of several Redis servers: shared, told of, moved while in use, taken over."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.stores.clusters import Cluster, until
from tests.stores.factories import new_prefix
from tests.stores.processes import start
from tests.stores.servers import REDIS
from tests.stores.test_contract import parts, read
from tests.stores.test_processes import go, processes, ready
from tests.stores.twins import run_beside_memory
from tokenfence_integrations import Budget, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Command,
    Draw,
    End,
    Limits,
    Open,
    Reserve,
    Reset,
    Resolve,
)
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.redis.nodes import ClusterNodes
from tokenfence_integrations.stores.remote import listening

TREES = [f"tree-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits, and is not told, waits too long."""
    monkeypatch.setattr(listening, "LOOK", 60.0)


def keys_of(cluster: Cluster, prefix: str) -> list[int]:
    """How many keys each server has."""
    return [len(client.keys(f"{prefix}:*")) for client in cluster.clients]


def test_trees_are_on_all_servers_each_as_exact_as_in_memory(cluster: Cluster) -> None:
    prefix = new_prefix()
    with cluster.client() as client:
        store = RedisStore(client, prefix=prefix)
        budgets = [small(100, name=name, store=store) for name in TREES]
        for budget in budgets:
            spend(budget.child("team", per="month").child("one", calls=5), 20)
            reserve(budget, 30).admit().lose()
        assert [charged(budget) for budget in budgets] == [(20, 0, 30)] * len(TREES)
        assert len(store.charges()) == len(TREES)
        assert {name for name in store.accounts() if "/" not in name} == set(TREES)
        assert min(keys_of(cluster, prefix)) > 3
        store.close()
        for seed in range(3):
            exact = RedisStore(client, prefix=new_prefix())
            run_beside_memory(exact, seed, 50)
            exact.close()


async def test_calls_that_meet_leave_for_all_servers_together(cluster: Cluster) -> None:
    with cluster.client() as client:
        store = RedisStore(client, prefix=new_prefix())
        for name in TREES:
            store.note(Open(name, Limits(usd=1)))
        orders = [store.execute_all([Reserve((name,), 1, Amount(1)) for name in TREES])]
        orders += [store.execute_all([Reserve((name,), 2, Amount(1)) for name in TREES])]
        assert [[reply.done for reply in replies] for replies in orders] == [
            [True] * len(TREES),
            [False] * len(TREES),
        ]
        await store.aclose()


def test_two_processes_use_up_one_budget_and_never_pass_it(cluster: Cluster) -> None:
    limit, name = 4_000, f"shared-{new_prefix()}"
    workers = [start("spend", cluster.url, name, limit, 100, seed, "") for seed in range(2)]
    with processes(*workers):
        for worker in workers:
            ready(worker)
        for worker in workers:
            go(worker)
        said = [worker.communicate(timeout=60)[0].split() for worker in workers]
    paid = sum(int(spent) for spent, _ in said)
    with cluster.client() as client:
        store = RedisStore(client)
        assert charged(Budget(name=name, store=store)) == (paid, 0, 0)
        store.close()
    assert limit - 100 < paid <= limit


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("listened_to", range(3))
def test_who_waits_is_told_whichever_server_the_tree_is_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, listened_to: int
) -> None:
    asked = []

    def any_pool(nodes: ClusterNodes) -> Any:
        port = cluster.ports[listened_to]
        [pool] = [pool for pool in nodes.pools() if pool.connection_kwargs["port"] == port]
        asked.append(pool)
        return pool

    monkeypatch.setattr(ClusterNodes, "any_pool", any_pool)
    prefix = new_prefix()
    with cluster.client() as client:
        one, other = (RedisStore(client, prefix=prefix) for _ in range(2))
        for server in range(3):
            name = cluster.tree_on(server, "told")
            mine, theirs = (small(100, name=name, store=store) for store in (one, other))
            held = reserve(theirs, 80).admit()
            waiting = threading.Thread(target=lambda: spend(mine, 50))  # noqa: B023
            waiting.start()
            until(lambda: bool(mine._tree.line))  # noqa: B023
            held.settle(Usage(0, 50))
            waiting.join(20)
            assert not waiting.is_alive()
            assert charged(mine) == (100, 0, 0)
        for store in (one, other):
            store.close()
    assert asked


def test_one_server_of_a_cluster_is_an_error_at_once_for_keys_of_another(cluster: Cluster) -> None:
    port = cluster.ports[0]
    store = RedisStore(f"redis://127.0.0.1:{port}", timeout=900)  # for which it is not tried
    with pytest.raises(StoreError, match=r"part of a cluster: give a redis\.RedisCluster"):
        store.execute(Open(cluster.tree_on(1, "lone"), Limits()))
    store.close()


# Slots that move


def test_calls_go_on_while_their_slot_moves(cluster: Cluster) -> None:
    """Those in flight end where the tree is then, those that begin meanwhile wait."""
    name, prefix, rounds = cluster.tree_on(0, "moved"), new_prefix(), 40
    with cluster.client() as client:
        stores = [RedisStore(client, prefix=prefix) for _ in range(2)]
        budgets = [small(1_000, name=name, store=store) for store in stores]
        held = [reserve(budget, 10).admit() for budget in budgets]

        def work(budget: Budget) -> None:
            for _ in range(rounds):
                spend(budget, 10)

        working = [threading.Thread(target=work, args=[budget]) for budget in budgets]
        for thread in working:
            thread.start()
        until(lambda: budgets[0].spent > 0)
        with cluster.moving(name):
            pass
        for thread in working:
            thread.join(20)
        for call in held:
            call.settle(Usage(0, 10))
            charged(budgets[held.index(call)])  # its end is written by now
        assert charged(budgets[0]) == (2 * rounds * 10 + 20, 0, 0)
        assert keys_of(cluster, prefix)[0] == 0
        assert keys_of(cluster, prefix)[1] > 3
        for store in stores:
            store.close()


@pytest.mark.parametrize("kind", sorted(REDIS))
def test_no_script_stops_half_way_because_its_slot_moves(kind: str) -> None:
    """Where a slot moves, a script fails at the first key that is not there; here all wait."""
    cluster = Cluster(kind, primaries=2)
    name, prefix = cluster.tree_on(0, "half"), new_prefix()
    path, client = (name,), cluster.client()
    store, silent = (RedisStore(client, prefix=prefix, timeout=0.1) for _ in range(2))
    store.execute(Open(name, Limits(usd=1_000)))
    for each in (store, silent):
        each.execute(Reserve(path, 1, Amount(100)))
    store.execute(Reserve(path, 2, Amount(50)))
    store.execute(End(path, 2, NOTHING, Amount(50)))
    [charge] = store.charges(name)
    owners = f"{prefix}:{{{name}}}:owners"
    cluster.clients[0].zadd(owners, {str(silent._courier._owner): 0})  # its lease is over
    source = cluster.clients[0]

    def all_keys() -> dict[str, Any]:
        return {
            key: source.zrange(key, 0, -1) if key == owners else source.hgetall(key)
            for key in source.keys(f"{prefix}:*")
            if ":seen:" not in key
        }

    before = all_keys()
    commands: list[Command] = [
        Resolve(charge.id, Amount(20)),
        Draw(path, 1, Amount(10), NOTHING, Amount(90)),
        Reserve(path, 3, Amount(10_000)),  # which does not fit, so leases are looked at
        Reset(path),
    ]
    with cluster.moving(name):
        for command in commands:
            with pytest.raises(StoreError, match="its keys are moving to another server"):
                store.execute(command)
            assert all_keys() == before
    assert store.execute(Resolve(charge.id, Amount(20))).done
    assert store.execute(Draw(path, 1, Amount(10), NOTHING, Amount(90))).done
    assert parts(read(store, name)) == (Amount(30), Amount(90), Amount(100))
    assert store.execute(Reset(path)).done
    assert parts(read(store, name)) == (NOTHING, Amount(90), NOTHING)
    for each in (store, silent):
        each.close()
    client.close()
    cluster.stop()


# A server that is gone


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    cluster = Cluster(primaries=2, replicas=1)
    yield cluster
    cluster.stop()


@pytest.mark.usefixtures("patient")
def test_a_replica_that_takes_over_is_found_and_calls_in_flight_end_there(
    replicated: Cluster,
) -> None:
    name, prefix = replicated.tree_on(0, "taken"), new_prefix()
    with replicated.client() as client:
        one, other = (RedisStore(client, prefix=prefix) for _ in range(2))
        mine, theirs = (small(100, name=name, store=store) for store in (one, other))
        elsewhere = small(100, name=replicated.tree_on(1, "left"), store=one)
        held = reserve(theirs, 80).admit()
        waiting = threading.Thread(target=lambda: spend(mine, 50))
        waiting.start()
        until(lambda: bool(mine._tree.line))
        spend(elsewhere, 20)
        until(replicated.is_replicated)
        replicated.fail_over()
        held.settle(Usage(0, 30))
        waiting.join(20)
        assert not waiting.is_alive()
        assert charged(mine) == charged(theirs) == (80, 0, 0)
        assert charged(elsewhere) == (20, 0, 0)
        for store in (one, other):
            store.close()


def test_what_a_replica_had_not_heard_of_when_it_took_over_is_lost_and_nothing_is_doubled(
    replicated: Cluster,
) -> None:
    """As docs/stores.md says: replication is behind, and an answer does not wait for it."""
    name = replicated.tree_on(0, "lost")
    with replicated.client() as client:
        store = RedisStore(client, prefix=new_prefix())
        budget = small(100, name=name, store=store)
        spend(budget, 10)
        known = reserve(budget, 20).admit()
        until(replicated.is_replicated)
        replica = replicated.clients[-1]
        replica.config_set("masterauth", "wrong")
        replicated.clients[0].config_set("requirepass", "other")
        replicated.clients[0].client_kill_filter(_type="replica")
        spend(budget, 15)
        unknown = reserve(budget, 30).admit()
        assert charged(budget) == (25, 50, 0)
        replicated.fail_over()
        assert charged(budget) == (10, 20, 0)
        for call in (known, unknown):
            call.settle(Usage(0, 5))
        assert charged(budget) == (15, 0, 0)
        spend(budget, 85)
        store.close()

"""Budgets on Redis and Valkey: exact beyond doubles, exactly once, leased, closed when broken."""

import random

import pytest

from tests.stores.factories import VERSIONS, new_prefix
from tests.stores.proxy import Fault, bad_network
from tests.stores.servers import REDIS, redis_server
from tests.stores.twins import run_beside_memory
from tokenfence_integrations.stores import remote
from tokenfence_integrations.stores.redis import RedisStore

SERVERS = [name for name in VERSIONS if name == "redis" or name in REDIS]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_as_exact_as_in_memory(server: str, seed: int) -> None:
    run_beside_memory(VERSIONS[server](), seed, 150)


# A bad network


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(remote, "BACK_OFF", (0.0001, 0.001))


def socket_of(url: str) -> str:
    return url.removeprefix("unix://")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(2))
def test_every_command_is_applied_once_whatever_becomes_of_it_and_its_answer(seed: int) -> None:
    chance = random.Random(seed)
    faults: tuple[Fault, ...] = ("none", "none", "request lost", "reply lost", "late")
    with bad_network(socket_of(redis_server("valkey8").url)) as network:
        store = RedisStore(f"unix://{network.path}", prefix=new_prefix())

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

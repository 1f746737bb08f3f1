"""Budgets in PostgreSQL behind a pooler that gives each transaction another connection."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.stores.poolers import POOLERS, PgBouncer, Pooler
from tests.stores.postgres_servers import new_schema
from tests.stores.twins import run_beside_memory
from tokenfence_integrations import Usage
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.postgres.ledger import PostgresLedger
from tokenfence_integrations.stores.remote import listening


@pytest.fixture(scope="module", params=sorted(POOLERS))
def pooler(request: pytest.FixtureRequest) -> Iterator[Pooler | PgBouncer]:
    pooler = POOLERS[request.param]()
    yield pooler
    pooler.close()


def prepared(pooler: Pooler | PgBouncer) -> list[int]:
    """How many statements are prepared, on one connection to the server after the other."""
    with psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as client:
        query = "SELECT pg_backend_pid(), count(*) FROM pg_prepared_statements"
        return [count for _ in range(4) for _, count in client.execute(query)]


def test_a_pooler_is_found_out_and_nothing_of_a_session_is_used(
    pooler: Pooler | PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK", 0.01)
    schema = new_schema()
    one, other = (PostgresStore(pooler.url, schema=schema) for _ in range(2))
    mine = small(100, name="acme", store=one, sink=PostgresLedger(one))
    theirs = small(100, name="acme", store=other)
    held = reserve(theirs, 80).admit()
    waiting = threading.Thread(target=lambda: spend(mine, 50))
    waiting.start()
    held.settle(Usage(0, 10))
    waiting.join(20)
    assert not waiting.is_alive()
    working = [
        threading.Thread(target=lambda budget=budget: [spend(budget, 1) for _ in range(20)])
        for budget in (mine, theirs)
    ]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(20)
    charged(mine)  # its ends are written by now
    assert charged(theirs) == (100, 0, 0)
    assert one.link.pooled
    assert set(prepared(pooler)) == {0}
    for store in (one, other):
        store.close()


def test_behind_a_pooler_every_number_is_as_exact_as_in_memory(pooler: Pooler | PgBouncer) -> None:
    store = PostgresStore(pooler.url, schema=new_schema())
    run_beside_memory(store, 0, 100)
    store.close()

"""Budgets in PostgreSQL: leased, applied once, woken by the server, and told what is wrong."""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from tests.engine.helpers import charged, nano, reserve, small, spend
from tests.proxy import Fault, bad_network
from tests.stores.postgres_servers import VERSIONS, Server, address, new_schema, server
from tests.stores.test_contract import parts, read
from tests.stores.twins import run_beside_memory
from tokenfence_integrations import Budget, BudgetExceeded, LedgerRecord, StoreError, Usage
from tokenfence_integrations.stores.base import (
    NOTHING,
    Adjust,
    Amount,
    Anchor,
    Book,
    Command,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
)
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.postgres import ledger as postgres_ledger
from tokenfence_integrations.stores.postgres.ledger import PostgresLedger
from tokenfence_integrations.stores.remote import backing_off, listening
from tokenfence_integrations.stores.remote.wire import Batch, Unreachable

ROOT = ("root",)


class Database:
    """A schema of its own, as stores and as somebody with psql see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.schema = new_schema()
        self.connection = psycopg.connect(url, autocommit=True)

    def store(self, **options: Any) -> PostgresStore:
        return PostgresStore(self.url, schema=self.schema, **options)

    def opened(self, usd: int | None = 100, **options: Any) -> PostgresStore:
        store = self.store(**options)
        store.execute(Open("root", Limits(usd=usd)))
        return store

    def sql(self, query: str, *parameters: Any) -> list[Any]:
        """A query in which ``s.`` is the schema."""
        cursor = self.connection.execute(query.replace("s.", f"{self.schema}."), parameters)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def advance(self, seconds: float) -> None:
        """Have so much of every lease be over: as if the server's clock went on."""
        self.sql("UPDATE s.owners SET lease = lease - make_interval(secs => %s)", seconds)

    def break_connections(self) -> None:
        """End those of all stores of this schema."""
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tokenfence' AND query LIKE %s",
            f"%{self.schema}.%",
        )


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database(address())
    yield made
    made.connection.close()


# Kept and shared


def test_what_was_spent_is_there_again(database: Database) -> None:
    store = database.store()
    first = small(1_000, name="acme", store=store)
    spend(first.child("writer", nano(500)), 20)
    reserve(first, 30).admit().lose()
    store.close()
    again = small(1_000, name="acme", store=database.store())
    assert charged(again) == (20, 0, 30)
    assert charged(again.child("writer", nano(500))) == (20, 0, 0)


def test_two_stores_on_one_schema_are_as_two_processes(database: Database) -> None:
    one, other = database.opened(), database.opened()
    assert one.execute(Reserve(ROOT, 1, Amount(60))).done
    assert not other.execute(Reserve(ROOT, 1, Amount(60))).done
    assert other.execute(Reserve(ROOT, 1, Amount(40))).done  # its own number 1
    one.execute(End(ROOT, 1, Amount(5), NOTHING))
    assert parts(read(other, "root")) == (Amount(5), Amount(40), NOTHING)


def test_a_closed_store_goes_on_at_the_next_command(database: Database) -> None:
    store = database.opened()
    store.execute(Reserve(ROOT, 1, Amount(40)))
    store.close()
    store.execute(End(ROOT, 1, Amount(10), NOTHING))
    assert parts(read(store, "root")) == (Amount(10), NOTHING, NOTHING)


def test_numbers_are_exact_where_those_of_floats_are_not(database: Database) -> None:
    store = database.opened((1 << 62) - 1)
    odd = (1 << 53) + 1
    for key in (1, 2, 3):
        assert store.execute(Reserve(ROOT, key, Amount(odd, 1, odd, 1))).done
    store.execute(End(ROOT, 1, Amount(odd, 1, odd, 1), NOTHING))
    assert parts(read(store, "root")) == (
        Amount(odd, 1, odd, 1),
        Amount(2 * odd, 2, 2 * odd, 2),
        NOTHING,
    )
    assert not store.execute(Reserve(ROOT, 4, Amount((1 << 62) - 3 * odd))).done
    assert store.execute(Reserve(ROOT, 4, Amount((1 << 62) - 1 - 3 * odd))).done
    assert not store.execute(Reserve(ROOT, 5, Amount(1 << 60), times=1 << 40)).done


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a,{b}", "ä€𝄞", " a ", "a'b", "null", "$1 %s"])
def test_any_text_is_a_name(database: Database, name: str) -> None:
    budget = small(100, name=name, store=database.store())
    spend(budget.child(name), 30)
    assert charged(budget) == charged(budget.child(name)) == (30, 0, 0)


def test_what_postgresql_cannot_hold_is_an_error_of_its_own_alone(database: Database) -> None:
    store = database.opened()
    store.note(Open("a\0b", Limits()))
    store.note(Book(ROOT, Amount(3)))
    with pytest.raises(ValueError, match="PostgreSQL cannot hold"):
        store.execute(Open("a\ud800b", Limits()))
    with pytest.raises(ValueError, match="a store holds numbers below"):
        store.execute(Reserve(ROOT, 1, Amount(1 << 62)))
    assert read(store, "root").spent == Amount(3)


def test_a_schema_is_made_once_by_those_who_begin_together(database: Database) -> None:
    together = threading.Barrier(6)
    stores = [database.store() for _ in range(6)]

    def begin(store: PostgresStore) -> None:
        together.wait()
        store.execute(Open("root", Limits(usd=10)))
        store.execute(Book(ROOT, Amount(1)))

    threads = [threading.Thread(target=begin, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.sql("SELECT spent_usd FROM s.accounts") == [(6,)]


def test_those_who_use_several_trees_at_once_never_wait_in_a_circle(database: Database) -> None:
    """Each batch touches trees in another order; a deadlock would be an error after a second."""
    names = [f"tree{number}" for number in range(5)]
    stores = [database.store() for _ in range(4)]
    for name in names:
        stores[0].execute(Open(name, Limits(usd=10**6)))
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                for place in range(5):
                    name = names[(place * (number + 1) + turn) % 5]
                    stores[number].note(Book((name,), Amount(1)))
                stores[number].execute(Read((names[turn % 5],)))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for store in stores:
        store.close()
    assert database.sql("SELECT sum(spent_usd) FROM s.accounts") == [(4 * 30 * 5,)]


# Leases


def test_what_a_silent_process_holds_turns_uncertain_when_its_lease_is_over(
    database: Database,
) -> None:
    silent, other = database.opened(lease=60), database.opened(lease=60)
    silent.execute(Reserve(ROOT, 1, Amount(60, 1, 2, 3), what="gpt-4o"))
    database.advance(50)
    assert parts(read(other, "root")) == (NOTHING, Amount(60, 1, 2, 3), NOTHING)
    database.advance(10)
    assert parts(read(other, "root")) == (NOTHING, NOTHING, Amount(60, 1, 2, 3))
    [charge] = other.charges("root")
    assert (charge.path, charge.amount, charge.what) == (ROOT, Amount(60, 1, 2, 3), "gpt-4o")
    assert other.execute(Resolve(charge.id, Amount(20, 1, 1, 1))).done
    silent.execute(End(ROOT, 1, Amount(9, 1, 1, 1), NOTHING))  # too late: it was resolved by hand
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, NOTHING)


def test_a_refused_reservation_tells_of_what_has_expired(database: Database) -> None:
    silent, other = database.opened(), database.opened()
    silent.execute(Reserve(ROOT, 1, Amount(60)))
    database.advance(60)
    reply = other.execute(Reserve(ROOT, 1, Amount(60)))
    assert not reply.done
    assert parts(reply.states[0]) == (NOTHING, NOTHING, Amount(60))


def test_the_true_end_of_an_expired_reservation_corrects_it_once(database: Database) -> None:
    stopped, other = database.opened(), database.opened()
    stopped.execute(Reserve(ROOT, 1, Amount(60, 1, 5, 5)))
    stopped.execute(Reserve(ROOT, 2, Amount(10)))
    database.advance(60)
    assert read(other, "root").uncertain == Amount(70, 1, 5, 5)
    assert stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert not stopped.execute(End(ROOT, 1, Amount(20, 1, 1, 1), Amount(3))).done
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(13))
    stopped.execute(End(ROOT, 2, NOTHING, NOTHING))
    assert parts(read(other, "root")) == (Amount(20, 1, 1, 1), NOTHING, Amount(3))


def test_what_a_reset_forgot_is_not_subtracted_again(database: Database) -> None:
    stopped, other = database.opened(), database.opened()
    path = ("root/leaf", "root")
    stopped.execute(Open("root/leaf", Limits()))
    stopped.execute(Reserve(path, 1, Amount(60)))
    database.advance(60)
    other.execute(Read(ROOT))
    other.execute(Reset(("root/leaf",)))
    stopped.execute(End(path, 1, Amount(20), NOTHING))
    assert parts(read(other, "root/leaf")) == (Amount(20), NOTHING, NOTHING)
    assert parts(read(other, "root")) == (Amount(20), NOTHING, NOTHING)


def test_a_process_that_was_stopped_reserves_under_a_lease_of_its_own_again(
    database: Database,
) -> None:
    stopped, other = database.opened(), database.opened()
    stopped.execute(Reserve(ROOT, 1, Amount(10)))
    database.advance(100)
    other.execute(Read(ROOT))
    stopped.execute(Reserve(ROOT, 2, Amount(20)))
    assert parts(read(other, "root")) == (NOTHING, Amount(20), Amount(10))


def test_a_process_does_not_give_up_its_own_calls(database: Database) -> None:
    store = database.opened()
    store.execute(Reserve(ROOT, 1, Amount(10)))
    database.advance(1_000)
    assert read(store, "root").reserved == Amount(10)


def test_the_thread_of_a_process_renews_its_lease_while_calls_are_in_flight(
    database: Database,
) -> None:
    alive, other = database.opened(), database.opened()
    alive.execute(Reserve(ROOT, 1, Amount(10)))
    for _ in range(5):
        database.advance(30)
        alive._courier.renewals.at = 0.0  # a third of the lease is over
        alive._courier.tend()
    assert parts(read(other, "root")) == (NOTHING, Amount(10), NOTHING)


def test_owners_that_are_long_gone_are_forgotten(database: Database) -> None:
    silent, other = database.opened(), database.opened()
    silent.execute(Reserve(ROOT, 1, Amount(10)))
    database.advance(3_700)
    other.execute(Book(ROOT, Amount(1)))
    database.advance(100)  # that somebody else's lease is over has it looked at again
    third = database.opened()
    third.execute(Read(ROOT))
    assert database.sql("SELECT count(*) FROM s.owners WHERE gone") == [(1,)]
    assert parts(read(third, "root")) == (Amount(1), NOTHING, Amount(10))


# Once, however often it is sent


@contextmanager
def lost_replies(store: PostgresStore, count: int = 1) -> Iterator[list[Batch]]:
    """The server applies the next batches, and their answers never come."""
    exchange, sent = store._wire.exchange, list[Batch]()

    def lossy(batch: Batch) -> Any:
        outcomes = exchange(batch)
        sent.append(batch)
        if len(sent) <= count:
            raise Unreachable("the answer was lost")
        return outcomes

    store._wire.exchange = lossy  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        store._wire.exchange = exchange  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "command",
    [
        Open("new", Limits(usd=7)),
        Read(ROOT),
        Reserve(ROOT, 2, Amount(30, 1, 2, 3)),
        Reserve(ROOT, 2, Amount(300)),
        Draw(ROOT, 1, Amount(4, 1, 1, 1), Amount(2), Amount(9)),
        End(ROOT, 1, Amount(4, 1, 1, 1), Amount(2)),
        Book(ROOT, Amount(8)),
        Adjust(ROOT, Amount(11)),
        Reset(ROOT),
        Drop("idle"),
        Resolve("root:1", Amount(5)),
        Anchor("root", 4.5),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_command_whose_reply_is_lost_is_applied_once_and_answered(
    database: Database, command: Command
) -> None:
    def prepared() -> PostgresStore:
        store = database.opened()
        store.execute(Open("idle", Limits()))
        store.execute(Reserve(ROOT, 9, Amount(10)))
        store.execute(End(ROOT, 9, NOTHING, Amount(10)))
        store.execute(Reserve(ROOT, 1, Amount(20, 1, 2, 3)))
        return store

    plain = prepared()
    expected = plain.execute(command)
    books = read(plain, "root"), plain.charges()
    database.schema = new_schema()
    store = prepared()
    with lost_replies(store, 2) as sent:
        assert store.execute(command) == expected
    assert len(sent) == 3
    assert sent[0].epoch < sent[1].epoch < sent[2].epoch
    assert read(store, "root") == books[0]
    assert [c._replace(at=0.0) for c in store.charges()] == [c._replace(at=0.0) for c in books[1]]


def test_a_batch_that_comes_too_late_does_nothing(database: Database) -> None:
    """It lay in the buffer of a server that was stopped, while its call was given up."""
    store = database.opened()
    late: list[Batch] = []
    exchange = store._wire.exchange

    def swallowed(batch: Batch) -> Any:
        store._wire.exchange = exchange  # type: ignore[method-assign]
        late.append(batch)
        raise Unreachable("no answer")

    store._wire.exchange = swallowed  # type: ignore[method-assign]
    assert store.execute(Reserve(ROOT, 1, Amount(30))).done
    assert store.execute(End(ROOT, 1, Amount(10), NOTHING)).done
    with pytest.raises(Unreachable, match="later batch"):
        store._wire.exchange(late[0])
    assert parts(read(store, "root")) == (Amount(10), NOTHING, NOTHING)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_number_is_as_exact_as_in_memory(version: int) -> None:
    store = PostgresStore(address(version), schema=new_schema())
    run_beside_memory(store, seed=version, steps=150)


def test_every_command_is_applied_once_whatever_becomes_of_it_and_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backing_off, "BACK_OFF", (0.0001, 0.001))
    chance = random.Random(1)
    faults: tuple[Fault, ...] = ("none", "none", "request lost", "reply lost", "late")
    socket = server(18).folder / ".s.PGSQL.5432"

    def concerns(data: bytes) -> bool:
        return b".exchange(" in data or b".reserve_alone(" in data

    with bad_network(socket, concerns) as network:
        url = f"postgresql://postgres@127.0.0.1:{network.port}/postgres?sslmode=disable"
        # Nothing is prepared, so that what is sent can be told by its text.
        store = PostgresStore(url, schema=new_schema(), pooled=True)

        def fault() -> Fault:
            if chance.random() < 0.1:
                network.deliver()
            return chance.choice(faults)

        network.fault = fault
        run_beside_memory(store, seed=1, steps=100)
        network.fault = lambda: "none"
        network.deliver()
        store.close()
    assert network.faults > 50


def test_a_connection_that_breaks_is_made_anew(database: Database) -> None:
    budget = small(100, name="acme", store=database.store())
    with reserve(budget, 50) as call:
        database.break_connections()
        call.settle(Usage(0, 20))
    database.break_connections()
    spend(budget, 30)
    assert charged(budget) == (50, 0, 0)


# Waiting


def waits(budget: Budget, size: int) -> threading.Thread:
    """A call that has to wait for room, in a thread of its own."""
    thread = threading.Thread(target=lambda: spend(budget, size))
    thread.start()
    until = time.monotonic() + 20
    while not any(waiter.blocked for waiter in budget._tree.line.waiting.copy()):
        assert time.monotonic() < until
        time.sleep(0.001)
    return thread


def heard(database: Database) -> None:
    """Wait until somebody listens."""
    until = time.monotonic() + 20
    listening = f'LISTEN "{database.schema}_%'
    while not database.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE %s", listening):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_call_that_waits_is_told_by_the_server_that_there_is_room(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK", 1_000.0)
    one = small(100, name="acme", store=database.store())
    other = small(100, name="acme", store=database.store())
    held = reserve(other, 80).admit()
    waiting = waits(one, 50)
    heard(database)
    held.settle(Usage(0, 10))
    waiting.join(20)
    assert not waiting.is_alive()
    assert charged(one) == (60, 0, 0)


def test_a_call_that_waits_learns_that_a_process_has_died(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK", 0.01)
    one = small(100, name="acme", store=database.store())
    other = small(100, name="acme", store=database.store())
    held = reserve(other, 80).admit()
    refused: list[BudgetExceeded] = []

    def ask() -> None:
        try:
            reserve(one, 50).admit()
        except BudgetExceeded as refusal:
            refused.append(refusal)

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not one._tree.line.waiting:
        time.sleep(0.001)
    assert held.open
    database.advance(61)
    waiting.join(20)
    assert not waiting.is_alive()
    assert [refusal.uncertain for refusal in refused] == [80e-9]


def test_nobody_is_told_where_nobody_waits(database: Database) -> None:
    """Commits that notify wait for one another, in all of a database."""
    budget = small(100, name="acme", store=database.opened())
    with psycopg.connect(database.url, autocommit=True) as listener:
        [(channel,)] = database.sql("SELECT s.channel('acme')")
        listener.execute(f'LISTEN "{channel}"')
        spend(budget, 30)
        assert list(listener.notifies(timeout=0)) == []
        database.sql("SELECT s.wait(1, %s, 60)", ["acme"])
        spend(budget, 30)
        assert [notice.channel for notice in listener.notifies(timeout=5, stop_after=1)] == [
            channel
        ]


def test_behind_a_pooler_nothing_of_a_session_is_used(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction has a connection of its own here, as behind PgBouncer."""
    monkeypatch.setattr(listening, "LOOK", 0.01)
    stores = database.store(pooled=True), database.store(pooled=True)
    for store in stores:
        run = store.link.run

        def alone(query: Any, parameters: Any = (), run: Any = run, store: Any = store) -> Any:
            try:
                [prepared] = run("SELECT count(*) FROM pg_prepared_statements")
                assert prepared == (0,)
                return run(query, parameters)
            finally:
                store.link.close()

        monkeypatch.setattr(store.link, "run", alone)
    one, other = (small(100, name="acme", store=store) for store in stores)
    held = reserve(other, 80).admit()
    waiting = waits(one, 50)
    held.settle(Usage(0, 10))
    waiting.join(20)
    assert not waiting.is_alive()
    assert charged(one) == (60, 0, 0)


# What is wrong is said


def failing(store: PostgresStore, pattern: str) -> StoreError:
    with pytest.raises(StoreError, match=pattern) as caught:
        store.execute(Open("root", Limits(usd=100)))
    assert "secret" not in str(caught.value)
    return caught.value


def with_option(url: str, setting: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}options=-c%20{setting.replace('=', '%3D')}"


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    store = PostgresStore("postgresql://me:secret@127.0.0.1:1/app", timeout=0.1)
    error = failing(store, r"cannot be reached \(.*refused.*is it running, at this address\?")
    assert error.where == "postgresql://me@127.0.0.1:1/app"


def test_a_database_that_does_not_exist_is_said_at_once(database: Database) -> None:
    store = PostgresStore(f"{database.url} ".replace("/postgres?", "/nowhere?").strip())
    failing(store, 'no such database.*"nowhere" does not exist')


def test_an_address_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="no address of a PostgreSQL database") as caught:
        PostgresStore("postgresql://me:secret@[host/app")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("schema", ["", "Upper", "a b", "x" * 31, 'a"', "1a"])
def test_a_name_of_a_schema_that_would_need_quotes_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="up to 30 lower-case letters"):
        PostgresStore(address(), schema=schema)


def test_a_standby_is_said_to_be_one(database: Database) -> None:
    database.opened()
    url = with_option(database.url, "default_transaction_read_only=on")
    store = PostgresStore(url, schema=database.schema)
    with pytest.raises(StoreError, match="it is read-only; give the address of the primary"):
        store.execute(Reserve(ROOT, 1, Amount(5)))


def test_a_role_without_rights_is_told_which(database: Database) -> None:
    database.sql("DROP ROLE IF EXISTS nobody")
    database.sql("CREATE ROLE nobody LOGIN PASSWORD 'secret'")
    url = database.url.replace("postgres@", "nobody:secret@")
    failing(PostgresStore(url, schema=database.schema), "lacks rights.*needs CREATE")
    database.opened()
    failing(PostgresStore(url, schema=database.schema), "lacks rights.*USAGE on the schema")
    for right in (
        "USAGE ON SCHEMA {}",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {}",
    ):
        database.sql(f"GRANT {right.format(database.schema)} TO nobody")
    guest = PostgresStore(url, schema=database.schema)
    assert guest.execute(Reserve(ROOT, 1, Amount(5))).done


def test_another_isolation_level_is_refused(database: Database) -> None:
    url = with_option(database.url, "default_transaction_isolation=serializable")
    store = PostgresStore(url, schema=database.schema)
    failing(store, 'need the isolation level "read committed"; set default_transaction_isolation')


def test_a_schema_of_another_version_is_not_touched(database: Database) -> None:
    database.opened()
    database.sql("UPDATE s.about SET version = 7")
    failing(database.store(), "its format is 7, known here is 2")


def test_a_schema_that_disappears_is_not_made_again(database: Database) -> None:
    store = database.opened()
    database.sql(f"DROP SCHEMA {database.schema} CASCADE")
    for _ in range(3):
        with pytest.raises(
            StoreError, match=r"not there any more|missing or incomplete|have disappeared"
        ):
            store.execute(Reserve(ROOT, 1, Amount(5)))


def test_a_tree_that_stays_locked_is_an_error_and_its_ends_are_kept(database: Database) -> None:
    store = database.opened(timeout=0.3)
    store.execute(Reserve(ROOT, 1, Amount(50)))
    with psycopg.connect(database.url) as other:
        other.execute(f"SELECT {database.schema}.lock(ARRAY['root'])")
        with pytest.raises(StoreError, match="does not answer"):
            store.execute(Reserve(ROOT, 2, Amount(5)))
        store.end(ROOT, 1, Amount(20), NOTHING)
    store.close()
    assert parts(read(database.store(), "root")) == (Amount(20), NOTHING, NOTHING)


def test_a_statement_that_the_server_stops_is_tried_again(database: Database) -> None:
    database.opened()
    url = with_option(database.url, "statement_timeout=50")
    store = PostgresStore(url, schema=database.schema)
    with psycopg.connect(database.url) as other:
        other.execute(f"SELECT {database.schema}.lock(ARRAY['root'])")
        done: list[bool] = []
        thread = threading.Thread(
            target=lambda: done.append(store.execute(Reserve(ROOT, 1, Amount(5))).done)
        )
        thread.start()
        while not store._courier._back_off._tries:
            time.sleep(0.001)
        assert not done
    thread.join(20)
    assert done == [True]


def test_a_server_that_crashes_keeps_all_that_it_has_answered() -> None:
    own = Server(18)
    try:
        budget = small(100, name="acme", store=PostgresStore(own.url))
        spend(budget, 10)
        call = reserve(budget, 50).admit()
        own.stop()
        call.settle(Usage(0, 20))
        own.start()
        assert charged(budget) == (30, 0, 0)
        spend(budget, 40)
        assert charged(budget) == (70, 0, 0)
    finally:
        own.stop()


def test_a_forked_process_has_a_connection_and_reservations_of_its_own(database: Database) -> None:
    store = database.opened()
    assert store.execute(Reserve(ROOT, 1, Amount(10))).done
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            done = store.execute(Reserve(ROOT, 1, Amount(20))).done
            store.execute(End(ROOT, 1, Amount(7), NOTHING))
            os.write(writer, b"done" if done else b"not done")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"done"
    for end in (reader, writer):
        os.close(end)
    assert parts(read(store, "root")) == (Amount(7), Amount(10), NOTHING)
    store.execute(End(ROOT, 1, Amount(3), NOTHING))
    assert parts(read(store, "root")) == (Amount(10), NOTHING, NOTHING)


# The ledger, and what people look at


def test_the_ledger_in_sql_adds_up_to_the_books(database: Database) -> None:
    store = database.store()
    ledger = PostgresLedger(store)
    records: list[LedgerRecord] = []

    def sink(record: LedgerRecord) -> None:
        records.append(record)
        ledger(record)

    team = small(10**12, name="team", store=store, sink=sink)
    writer = team.child("writer")
    spend(writer, 1_234_567_891, tags={"user": "é\n", "odd": {1, 2}.__class__})
    reserve(team, 70).admit().lose()
    team.record("$0.10")
    with reserve(writer, 10) as call:
        call.release()
    ledger.close()
    totals = database.sql(
        "SELECT accounts[1], sum(cost)::bigint, sum(uncertain)::bigint FROM s.ledger GROUP BY 1 "
        "ORDER BY 1"
    )
    assert totals == [("team", 100_000_000, 70), ("team/writer", 1_234_567_891, 0)]
    assert charged(team) == (1_334_567_891, 0, 70)
    rows = database.sql("SELECT at, budget, outcome, cost_usd FROM s.calls ORDER BY at")
    assert [outcome for _, _, outcome, _ in rows] == [record.outcome for record in records]
    assert [at.timestamp() for at, *_ in rows] == pytest.approx([record.at for record in records])
    assert rows[0][3] == Decimal("1.234567891")
    assert database.sql(
        "SELECT spent_usd, uncertain_usd, calls FROM s.budgets WHERE name = 'team'"
    ) == [(Decimal("1.334567891"), Decimal("0.000000070"), 2)]
    assert database.sql(
        "SELECT tags->>'user' FROM s.calls WHERE budget = 'team/writer' LIMIT 1"
    ) == [("é\n",)]


def test_a_ledger_that_cannot_be_written_holds_up_no_call_and_loses_nothing(
    database: Database,
) -> None:
    store = database.opened()
    ledger = PostgresLedger(store)
    budget = small(1_000, name="acme", store=store, sink=ledger)
    with psycopg.connect(database.url) as other:
        other.execute(f"LOCK TABLE {database.schema}.ledger")
        for _ in range(5):
            spend(budget, 10)
        assert charged(budget) == (50, 0, 0)  # which is asked behind the last end
        assert database.sql("SELECT spent_usd FROM s.accounts WHERE name = 'acme'") == [(50,)]
    ledger.close()
    assert database.sql("SELECT count(*), sum(cost)::bigint FROM s.ledger") == [(5, 50)]


def test_a_ledger_row_whose_reply_is_lost_is_there_once(database: Database) -> None:
    store = database.store()
    ledger = PostgresLedger(store)
    run, lost = ledger._link.run, list[int]()

    def lossy(query: Any, parameters: Any = ()) -> Any:
        rows = run(query, parameters)
        if not lost:
            lost.append(1)
            raise Unreachable("the answer was lost")
        return rows

    ledger._link.run = lossy  # type: ignore[method-assign]
    budget = small(1_000, name="acme", store=store, sink=ledger)
    spend(budget, 10)
    while not lost:
        time.sleep(0.001)
    ledger.close()
    assert database.sql("SELECT count(*), sum(cost)::bigint FROM s.ledger") == [(1, 10)]


def test_a_ledger_keeps_so_many_records_and_says_what_it_lost(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store = database.store()
    ledger = PostgresLedger(store, most=3)
    tend = ledger.tend
    ledger.tend = lambda: None  # type: ignore[method-assign]
    budget = small(1_000, name="acme", store=store, sink=ledger)
    for size in range(1, 6):
        spend(budget, size)
    ledger.tend = tend  # type: ignore[method-assign]
    ledger.close()
    assert database.sql("SELECT cost FROM s.ledger ORDER BY number") == [(3,), (4,), (5,)]
    assert "2 ledger records are lost" in caplog.text


def test_records_that_cannot_be_written_as_the_process_ends_are_told(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = PostgresLedger(database.store())
    ledger.tend = lambda: None  # type: ignore[method-assign]
    budget = small(1_000, sink=ledger)
    spend(budget, 10)

    def unreachable(query: Any, parameters: Any = ()) -> Any:
        raise Unreachable("it is gone")

    run, ledger._link.run = ledger._link.run, unreachable  # type: ignore[method-assign]
    postgres_ledger._close_all()
    assert "it is gone" in caplog.text
    assert "has not written 1 ledger records" in caplog.text
    ledger._link.run = run  # type: ignore[method-assign]
    ledger.close()
    assert database.sql("SELECT cost FROM s.ledger") == [(10,)]

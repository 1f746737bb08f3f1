"""Draws on reservations whose owner falls silent, or which others change meanwhile: every store."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import redis

from tests.engine.helpers import FakeClock
from tests.stores.factories import new_prefix, redis_url
from tests.stores.postgres_servers import address, new_schema
from tests.stores.test_contract import LEAF, PATH, ROOT, parts, read
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Book,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
    Store,
)
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.remote.wire import Batch, Unreachable, tree_of
from tokenfence_integrations.stores.sqlite import SQLiteStore


class Shared(NamedTuple):
    """Two stores on the same accounts, as two processes have them.

    Attributes:
        owner: Who reserves.
        other: Who sees its lease end.
        lapse: Has the leases of both be over.
    """

    owner: Any
    other: Store
    lapse: Callable[[], None]


def _sqlite(folder: Path) -> Shared:
    clock = FakeClock()
    one, other = (SQLiteStore(folder / "budgets.db", clock=clock) for _ in range(2))
    return Shared(one, other, lambda: clock.advance(61))


def _redis(folder: Path) -> Shared:
    prefix = new_prefix()

    def lapse() -> None:
        with redis.Redis.from_url(redis_url(), decode_responses=True) as client:
            owners = f"{prefix}:{{{tree_of(ROOT)}}}:owners"
            client.zadd(owners, dict.fromkeys(client.zrange(owners, 0, -1), 0), xx=True)

    one, other = (RedisStore(redis_url(), prefix=prefix) for _ in range(2))
    return Shared(one, other, lapse)


def _postgres(folder: Path) -> Shared:
    schema = new_schema()

    def lapse() -> None:
        with psycopg.connect(address()) as connection:
            connection.execute(f"UPDATE {schema}.owners SET lease = now() - interval '1 second'")

    one, other = (PostgresStore(address(), schema=schema) for _ in range(2))
    return Shared(one, other, lapse)


KINDS = {"sqlite": _sqlite, "redis": _redis, "postgres": _postgres}


@pytest.fixture(params=sorted(KINDS))
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    made = KINDS[request.param](tmp_path)
    for account in (ROOT, LEAF):
        made.owner.execute(Open(account, Limits(usd=100)))
    yield made
    made.owner.close()
    made.other.close()  # type: ignore[attr-defined]


def books(store: Store) -> list[tuple[Amount, Amount, Amount]]:
    """The parts of the leaf and of the root."""
    return [parts(read(store, account)) for account in PATH]


def write(store: Store) -> None:
    """Have all written that is noted: others see no notes."""
    store.execute(Book(PATH, NOTHING))


def both(*amounts: Amount) -> list[tuple[Amount, ...]]:
    """The same parts in the leaf and in the root."""
    return [amounts, amounts]


# Leases


def test_what_is_idle_is_free_again_when_its_lease_is_over(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60, 1, 2, 3), idle=True))
    owner.execute(Reserve(PATH, 2, Amount(7), idle=True))
    owner.execute(Reserve(PATH, 3, Amount(5)))
    assert books(other) == both(NOTHING, Amount(72, 1, 2, 3), NOTHING)
    lapse()
    assert books(other) == both(NOTHING, NOTHING, Amount(5))
    assert [charge.amount for charge in other.charges()] == [Amount(5)]
    assert not owner.execute(Draw(PATH, 1, Amount(9), Amount(8), Amount(7))).done
    assert not owner.execute(End(PATH, 1, Amount(9), Amount(8))).done
    assert not owner.execute(End(PATH, 2, Amount(9), Amount(8))).done
    assert books(other) == both(NOTHING, NOTHING, Amount(5))
    assert [charge.amount for charge in other.charges()] == [Amount(5)]
    assert other.execute(Reserve(PATH, 1, Amount(95))).done


def test_whoever_asks_for_the_charges_ends_leases_that_are_over(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(5)))
    assert other.charges() == other.charges(LEAF) == ()
    lapse()
    assert [charge.amount for charge in other.charges(LEAF)] == [Amount(5)]
    owner.execute(Reserve(PATH, 2, Amount(6)))
    lapse()
    assert sorted([charge.amount for charge in other.charges()]) == [Amount(5), Amount(6)]


def test_what_was_drawn_from_is_charged_when_its_lease_is_over(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60), what="slice", idle=True))
    assert owner.execute(Draw(PATH, 1, Amount(10, 1, 0, 0), Amount(4), Amount(46), "call")).done
    lapse()
    assert books(other) == both(Amount(10, 1, 0, 0), NOTHING, Amount(50))
    charges = sorted([(charge.amount, charge.what) for charge in other.charges()])
    assert charges == [(Amount(4), "call"), (Amount(46), "slice")]


def test_a_late_draw_makes_a_reservation_of_a_charge_again(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60, 3, 2, 1), what="slice"))
    lapse()
    assert books(other) == both(NOTHING, NOTHING, Amount(60, 3, 2, 1))
    assert owner.execute(Draw(PATH, 1, Amount(10, 1, 1, 1), Amount(4), Amount(46, 2), "call")).done
    assert books(other) == both(Amount(10, 1, 1, 1), Amount(46, 2), Amount(4))
    assert [(charge.amount, charge.what) for charge in other.charges()] == [(Amount(4), "call")]
    lapse()  # it has a lease, as any other
    assert books(other) == both(Amount(10, 1, 1, 1), NOTHING, Amount(50, 2))
    assert owner.execute(Draw(PATH, 1, NOTHING, NOTHING, Amount(40))).done
    assert owner.execute(End(PATH, 1, Amount(30), Amount(3))).done
    assert books(other) == both(Amount(40, 1, 1, 1), NOTHING, Amount(7))
    charges = sorted([(charge.amount, charge.what) for charge in other.charges()])
    assert charges == [(Amount(3), "slice"), (Amount(4), "call")]


@pytest.mark.parametrize("end", ["resolved", "reset", "ended"])
def test_nothing_is_drawn_from_a_charge_that_is_gone(shared: Shared, end: str) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60)))
    if end == "ended":
        owner.execute(End(PATH, 1, Amount(20), Amount(5)))
    lapse()
    other.execute(Read(PATH))
    charges = other.charges()
    if end == "resolved":
        assert other.execute(Resolve(charges[0].id, Amount(20))).done
    elif end == "reset":
        other.execute(Reset(PATH))
    before = books(other)
    assert not owner.execute(Draw(PATH, 1, Amount(1), Amount(2), Amount(3))).done
    assert not owner.execute(End(PATH, 1, Amount(4), Amount(5))).done
    assert books(other) == before
    assert other.charges() == (charges if end == "ended" else ())


def test_a_late_draw_counts_in_all_accounts_although_some_were_reset(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60)))
    lapse()
    other.execute(Read(PATH))
    other.execute(Reset((LEAF,)))
    assert owner.execute(Draw(PATH, 1, Amount(10), NOTHING, Amount(20))).done
    assert books(other) == both(Amount(10), Amount(20), NOTHING)


def test_a_late_draw_of_a_reservation_of_nothing_is_one(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, NOTHING))
    lapse()
    other.execute(Read(PATH))
    assert owner.execute(Draw(PATH, 1, Amount(1), NOTHING, Amount(2))).done
    assert books(other) == both(Amount(1), Amount(2), NOTHING)


def test_the_charge_of_a_draw_is_resolved_while_its_reservation_goes_on(shared: Shared) -> None:
    owner, other, _ = shared
    owner.execute(Reserve(PATH, 1, Amount(60)))
    owner.execute(Draw(PATH, 1, NOTHING, Amount(20), Amount(40)))
    [charge] = other.charges(LEAF)
    assert other.execute(Resolve(charge.id, Amount(5))).done
    assert books(other) == both(Amount(5), Amount(40), NOTHING)
    assert owner.execute(End(PATH, 1, Amount(40), NOTHING)).done
    assert books(other) == both(Amount(45), NOTHING, NOTHING)


def test_an_account_that_is_drawn_from_is_not_dropped(shared: Shared) -> None:
    owner, other, _ = shared
    owner.execute(Reserve(PATH, 1, Amount(60), idle=True))
    owner.execute(Draw(PATH, 1, Amount(1), NOTHING, Amount(1)))
    assert not other.execute(Drop(LEAF)).done
    owner.execute(Draw(PATH, 1, Amount(1), NOTHING, NOTHING))
    assert other.execute(Drop(LEAF)).done


# Noted


def test_noted_draws_and_their_end_count_at_once_and_are_all_booked(shared: Shared) -> None:
    owner, other, _ = shared
    owner.execute(Reserve(PATH, 1, Amount(60, 6, 6, 6), what="slice"))
    owner.execute(Read(PATH))
    lock = owner._keeper.lock if isinstance(owner, SQLiteStore) else owner._courier.sending
    noted = threading.Event()

    def busy() -> None:
        with lock:  # others are at it
            begun.set()
            assert noted.wait(20)

    begun = threading.Event()
    thread = threading.Thread(target=busy)
    thread.start()
    assert begun.wait(20)
    owner.note(Draw(PATH, 1, Amount(10, 1, 1, 1), NOTHING, Amount(50, 5, 5, 5)))
    owner.note(Draw(PATH, 1, Amount(10, 1, 1, 1), Amount(5), Amount(30, 3, 3, 3), "call"))
    if not isinstance(owner, SQLiteStore):  # which cannot look meanwhile
        [state, _] = owner.peek(PATH)
        assert parts(state) == (Amount(20, 2, 2, 2), Amount(30, 3, 3, 3), Amount(5))
    owner.note(End(PATH, 1, Amount(25, 3, 3, 3), NOTHING))
    owner.note(Draw(PATH, 1, Amount(9), Amount(9), Amount(9)))  # nothing any more
    noted.set()
    thread.join(20)
    assert books(owner) == both(Amount(45, 5, 5, 5), NOTHING, Amount(5))
    write(owner)
    assert books(other) == both(Amount(45, 5, 5, 5), NOTHING, Amount(5))
    assert [charge.what for charge in other.charges()] == ["call"]
    assert [parts(state) for state in owner.peek(PATH)] == books(other)
    assert not (owner._keeper.held if isinstance(owner, SQLiteStore) else owner._courier.held)


def test_a_noted_draw_on_what_is_gone_changes_nothing_nor_does_its_end(shared: Shared) -> None:
    owner, other, lapse = shared
    owner.execute(Reserve(PATH, 1, Amount(60), idle=True))
    lapse()
    other.execute(Read(PATH))
    owner.note(Draw(PATH, 1, Amount(10), Amount(9), Amount(40)))
    owner.note(End(PATH, 1, Amount(10), Amount(9)))
    write(owner)
    assert books(owner) == books(other) == both(NOTHING, NOTHING, NOTHING)
    assert other.charges() == ()


@pytest.mark.parametrize("what", ["a\0b", "\ud800", "ä€𝄞 'x' \\ \"y\"\n"])
def test_no_name_of_a_model_stops_a_booking(shared: Shared, what: str) -> None:
    owner, other, _ = shared
    owner.execute(Reserve(PATH, 1, Amount(60)))
    owner.note(Draw(PATH, 1, Amount(10), Amount(9), Amount(40), what))
    assert books(owner) == both(Amount(10), Amount(40), Amount(9))
    write(owner)
    [charge] = other.charges()
    assert charge.what == what.replace("\0", "?").replace("\ud800", "?")


async def test_a_draw_is_answered_on_an_event_loop(shared: Shared) -> None:
    owner, _, _ = shared
    assert (await owner.aexecute(Reserve(PATH, 1, Amount(60), idle=True))).done
    assert (await owner.aexecute(Draw(PATH, 1, Amount(10), NOTHING, Amount(40)))).done
    assert not (await owner.aexecute(Draw(PATH, 2, Amount(10), NOTHING, Amount(40)))).done
    assert books(owner) == both(Amount(10), Amount(40), NOTHING)


def test_an_end_in_the_midst_of_a_draw_is_booked_after_it(tmp_path: Path) -> None:
    """A finalizer runs while this very thread is drawing: it knows what was reserved before."""
    store = SQLiteStore(tmp_path / "budgets.db")
    for account in (ROOT, LEAF):
        store.execute(Open(account, Limits()))
    store.execute(Reserve(PATH, 1, Amount(60)))
    books_of_store = store._keeper.books
    assert books_of_store is not None
    draw = books_of_store.draw

    def interrupted(command: Draw, now: float) -> bool:
        done = draw(command, now)
        store.end(PATH, 1, Amount(40), NOTHING)
        return done

    books_of_store.draw = interrupted  # type: ignore[method-assign]
    assert store.execute(Draw(PATH, 1, Amount(10), NOTHING, Amount(50))).done
    assert books(store) == both(Amount(50), NOTHING, NOTHING)
    store.close()
    with sqlite3.connect(tmp_path / "budgets.db") as connection:
        assert connection.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
        held = connection.execute("SELECT count(*) FROM accounts WHERE held != ''")
        assert held.fetchone() == (0,)
    connection.close()


# Sent again, and told to others


def test_a_script_that_is_missing_by_chance_keeps_a_draw_in_front_of_its_end() -> None:
    """A server knows the ends of an older version of this library, and not its draws."""
    store = RedisStore(redis_url(), prefix=new_prefix())
    for account in (ROOT, LEAF):
        store.execute(Open(account, Limits()))
    store.execute(Reserve(PATH, 1, Amount(60)))
    with redis.Redis.from_url(redis_url()) as client:
        with store._courier.sending:
            store.note(Draw(PATH, 1, Amount(10), NOTHING, Amount(50)))
            store.note(Draw(PATH, 1, Amount(10), NOTHING, Amount(40)))
            store.note(End(PATH, 1, Amount(30), NOTHING))
            client.script_flush()
            for name in ("end", "read"):
                client.script_load(store._wire._scripts[name].source)  # type: ignore[attr-defined]
        assert books(store) == both(Amount(50), NOTHING, NOTHING)
    store.close()


@pytest.mark.parametrize("kind", ["redis", "postgres"])
async def test_a_draw_on_nothing_whose_answer_is_lost_is_answered_so_again(
    kind: str, tmp_path: Path
) -> None:
    """Also where a later command of the same batch tells that it was applied up to there."""
    owner, other, lapse = KINDS[kind](tmp_path)
    for account in (ROOT, LEAF):
        owner.execute(Open(account, Limits()))
    owner.execute(Reserve(PATH, 1, Amount(60), idle=True))
    owner.execute(Reserve(PATH, 2, Amount(60)))
    owner.execute(Draw(PATH, 2, NOTHING, NOTHING, Amount(50)))
    lapse()
    other.execute(Read(PATH))
    exchange, sent = owner._wire.exchange, []

    def lossy(batch: Batch) -> Any:
        outcomes = exchange(batch)
        sent.append([order.command for order in batch.orders])
        if len(sent) == 1:
            raise Unreachable("the answer was lost")
        return outcomes

    owner._wire.exchange = lossy
    gone = Draw(PATH, 1, Amount(9), Amount(9), Amount(9))
    there = Draw(PATH, 2, Amount(10), Amount(5), Amount(20))
    with owner._courier.sending:  # another batch is away
        tasks = [asyncio.create_task(owner.aexecute(draw)) for draw in (gone, there)]
        await asyncio.sleep(0)
    assert [reply.done for reply in await asyncio.gather(*tasks)] == [False, True]
    assert sent == [[gone, there], [gone, there]]
    assert books(other) == both(Amount(10), Amount(20), Amount(5))
    await owner.aclose()


def test_waiters_are_told_of_a_draw_that_frees_room_and_of_no_other() -> None:
    prefix = new_prefix()
    store = RedisStore(redis_url(), prefix=prefix)
    for account in (ROOT, LEAF):
        store.execute(Open(account, Limits()))
    store.execute(Reserve(PATH, 1, Amount(60, 6)))
    with redis.Redis.from_url(redis_url()) as client, client.pubsub() as ears:
        ears.subscribe(f"{prefix}:{{{tree_of(ROOT)}}}:freed")
        assert ears.get_message(timeout=20)
        store.execute(Draw(PATH, 1, Amount(10, 1), NOTHING, Amount(50, 5)))
        store.execute(Draw(PATH, 1, Amount(30, 1), Amount(9), Amount(20, 4)))  # more than reserved
        store.execute(Draw(PATH, 1, NOTHING, Amount(5), Amount(15, 3)))
        message = ears.get_message(timeout=20)
        assert message is not None
        assert message["type"] == "message"
        assert ears.get_message(timeout=0) is None
    store.close()


def test_postgres_tells_waiters_of_a_draw_that_frees_room_and_of_no_other() -> None:
    schema = new_schema()
    store = PostgresStore(address(), schema=schema)
    for account in (ROOT, LEAF):
        store.execute(Open(account, Limits()))
    store.execute(Reserve(PATH, 1, Amount(60, 6)))
    with psycopg.connect(address(), autocommit=True) as listener:
        [(channel,)] = listener.execute(f"SELECT {schema}.wait(1, %s, 60)", ([tree_of(ROOT)],))
        listener.execute(f'LISTEN "{channel}"')
        store.execute(Draw(PATH, 1, Amount(10, 1), NOTHING, Amount(50, 5)))
        store.execute(Draw(PATH, 1, Amount(30, 1), Amount(9), Amount(20, 4)))
        assert list(listener.notifies(timeout=0)) == []
        store.execute(Draw(PATH, 1, NOTHING, Amount(5), Amount(15, 3)))
        assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1
    store.close()

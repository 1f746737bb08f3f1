"""Processes on one budget in a store: what they do, and how a test starts them."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from redis.connection import AbstractConnection as Connection

from tests.engine.helpers import nano, reserve
from tokenfence_integrations import Budget, BudgetExceeded, Usage, guard
from tokenfence_integrations.reconcile.ledgers import LedgerFile
from tokenfence_integrations.stores.base import Amount, End, Store
from tokenfence_integrations.stores.postgres.wire import PostgresWire
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.redis.scripts import scripts
from tokenfence_integrations.stores.remote.wire import Batch
from tokenfence_integrations.stores.sqlite.books import Books

ROOT = Path(__file__).parents[2]
MESSAGES: Any = [{"role": "user", "content": "Why?"}]


def start(work: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Run one of the functions below in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, work, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def spend(url: str, name: str, limit: str, calls: str, seed: str, slice: str) -> None:
    """So many calls, each of a bound of 100 and of random cost; prints what they cost."""
    chance = random.Random(int(seed))
    budget = Budget(nano(int(limit)), name=name, store=_store(url), slice=slice or None)
    _at_once()
    spent = landed = 0
    for _ in range(int(calls)):
        try:
            with reserve(budget, 100) as call:
                cost = chance.randint(1, 100)
                call.settle(Usage(0, cost))
            spent += cost
            landed += 1
        except BudgetExceeded as refusal:
            settled = round((refusal.spent + refusal.uncertain) * 1e9)
            if settled + 100 <= int(limit):
                raise AssertionError("refused while it could still fit") from refusal
    print(spent, landed)


def _store(url: str) -> str | Store:
    """A store by its URL; also one on a cluster, of which only a client can be given."""
    if not url.startswith("cluster://"):
        return url
    host, _, port = url.removeprefix("cluster://").rpartition(":")
    return RedisStore(redis.RedisCluster(host=host, port=int(port)))


def hold(url: str, name: str, limit: str, size: str) -> None:
    """One call that ends when it is told to."""
    budget = Budget(nano(int(limit)), name=name, store=url)
    with reserve(budget, int(size)) as call:
        _at_once()
        call.settle(Usage(0, 1))


def die(url: str, name: str, point: str, ledger: str = "") -> None:
    """Settle one call to the provider, and be killed at a point of the next one."""
    import openai  # which takes a second, and the others do not need it

    sink = LedgerFile(ledger) if ledger else None
    budget = Budget("$0.01", name=name, store=url, sink=sink)
    client = guard(openai.OpenAI(max_retries=0), budget=budget, on_limit="raise")

    def ask() -> None:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=100)

    ask()
    assert budget.spent  # its end is written by now, and not on its way to be
    store = type(budget._tree.store)
    if point == "before send":
        budget.on_event(lambda event: event.kind == "admitted" and _killed())
    elif point == "before settle":
        store.end = _killed  # type: ignore[method-assign]
    elif point == "during settle":
        Books.end = _killed_at_an_end  # type: ignore[method-assign]
        Connection.send_packed_command = _killed_half_way  # type: ignore[method-assign]
        PostgresWire.exchange = _killed_in_a_statement  # type: ignore[method-assign]
    elif point == "after settle":
        wire = type(budget._tree.store._wire)  # type: ignore[attr-defined]
        wire.exchange = _killed_once(wire.exchange)
    _at_once()
    ask()


def _killed(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


_end = Books.end


def _killed_at_an_end(books: Books, command: End, amount: Amount) -> bool:
    """Within the first statement that writes: SQLite calls this handler while one runs."""
    books.connection.set_progress_handler(_killed, 1)
    return _end(books, command, amount)


_send = Connection.send_packed_command


def _killed_half_way(connection: Connection, command: Any, *_: Any) -> None:
    """Of an end, half of the bytes are sent."""
    [sent] = command
    if scripts()["end"].sha.encode() in sent:
        _send(connection, [sent[: len(sent) // 2]])
        _killed()
    _send(connection, command)


_exchange = PostgresWire.exchange


def _killed_in_a_statement(wire: PostgresWire, batch: Batch) -> Any:
    """Of an end, the beginning of a message is sent."""
    if _ends(batch):
        [connection] = wire._link._open
        message = b"SELECT tokenfence.exchange("
        os.write(connection.pgconn.socket, b"Q" + (1_000).to_bytes(4) + message)
        _killed()
    return _exchange(wire, batch)


def _killed_once(exchange: Any) -> Any:
    """An end is applied, and nobody hears of it."""

    def applied(wire: Any, batch: Batch) -> Any:
        outcomes = exchange(wire, batch)
        if _ends(batch):
            _killed()
        return outcomes

    return applied


def _ends(batch: Batch) -> bool:
    return any(type(order.command) is End for order in batch.orders)


def _at_once() -> None:
    """Say that all is ready, and wait for the others."""
    print("ready", flush=True)
    sys.stdin.readline()


def main(arguments: Sequence[str]) -> None:
    {"spend": spend, "hold": hold, "die": die}[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

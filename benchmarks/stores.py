"""What a budget in a store costs beside bare commands to it: `python -m benchmarks.stores`.

Redis: see `redis_store`; PostgreSQL: `postgres_store`. SQLite:

A bare pair is two transactions, each of them one ``BEGIN IMMEDIATE``, one ``UPDATE`` and one
``COMMIT``: it reserves and settles dollars, calls, input and output tokens in one row, if the
dollars fit. Less than that no counter in a file can do. It runs on a table of the same file, with
the same settings. A store also keeps a note of each call in flight, so that it can tell what a
process that died has held: in the account's own row while they are few, else in a row of its own.

Both are measured in turns of twenty, because a connection reads anew what another one has changed:
in single turns each would pay for the other. Checkpoints are made by the store's thread for both.
"""

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.overhead import AMOUNT, PRICES, SPENT, USAGE
from benchmarks.postgres_store import postgres_figures
from benchmarks.redis_store import redis_figures
from benchmarks.table import Figure, failures, figures_table, machine
from benchmarks.turns import TURN, figures_of
from tokenfence_integrations import Budget
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.stores.base import NOTHING, Limits, Open
from tokenfence_integrations.stores.sqlite import SQLiteStore

__all__ = ["TURN", "bare_pair", "main", "sqlite_figures", "stored_step"]

BAR = 1.5  # reserve+settle / bare pair
PAIR = "reserve+settle"
CROWD = 20


def sqlite_figures(rounds: int) -> list[Figure]:
    """Reserve+settle over a bare pair: in the store, with a parent, as users call it, in a crowd.

    Args:
        rounds: Pairs of each.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "budgets.db"
        store = SQLiteStore(file)
        try:
            store.execute(Open("root", Limits(usd=10**18)))
            store.execute(Open("root/leaf", Limits(usd=10**18)))
            with bare_pair(file) as bare:
                figures = [
                    *figures_of(
                        "SQLite, one account",
                        bare,
                        stored_step(store, ("root",)),
                        rounds,
                        BAR,
                        PAIR,
                    ),
                    *figures_of(
                        "SQLite, child and parent",
                        bare,
                        stored_step(store, ("root/leaf", "root")),
                        rounds,
                        what=PAIR,
                    ),
                    *figures_of(
                        "SQLite, with budget.reserve() ...", bare, _public(store), rounds, what=PAIR
                    ),
                    *figures_of(
                        f"SQLite, one account, {CROWD} others in flight",
                        bare,
                        _crowded_step(store),
                        rounds,
                        what=PAIR,
                    ),
                ]
        finally:
            store.close()
        return figures


@contextmanager
def bare_pair(file: Path) -> Iterator[Callable[[], None]]:
    """Two transactions of one update each, on a table of the same file."""
    connection = sqlite3.connect(file, isolation_level=None)
    execute = connection.execute
    execute("PRAGMA synchronous = NORMAL")
    execute("PRAGMA wal_autocheckpoint = 0")
    columns = [f"{part}_{n}" for part in ("spent", "reserved") for n in AMOUNT._fields]
    execute(f"CREATE TABLE bare (id INTEGER PRIMARY KEY, {' INTEGER, '.join(columns)} INTEGER)")
    execute(f"INSERT INTO bare VALUES (1{', 0' * len(columns)})")
    spent, reserved = columns[:4], columns[4:]
    more = ", ".join(f"{column} = {column} + ?" for column in reserved)
    less = ", ".join(f"{column} = {column} - ?" for column in reserved)
    true = ", ".join(f"{column} = {column} + ?" for column in spent)
    reserve = f"UPDATE bare SET {more} WHERE id = ? AND spent_usd + reserved_usd + ? <= {1 << 60}"
    settle = f"UPDATE bare SET {true}, {less} WHERE id = ?"

    def pair() -> None:
        execute("BEGIN IMMEDIATE")
        execute(reserve, (*AMOUNT, 1, AMOUNT.usd))
        execute("COMMIT")
        execute("BEGIN IMMEDIATE")
        execute(settle, (*SPENT, *AMOUNT, 1))
        execute("COMMIT")

    try:
        yield pair
    finally:
        connection.close()


def stored_step(store: SQLiteStore, path: tuple[str, ...]) -> Callable[[], None]:
    """One reservation and its end."""
    numbers = count(1)

    def step() -> None:
        number = next(numbers)
        store.reserve(path, number, AMOUNT)
        store.end(path, number, SPENT, NOTHING)

    return step


def _crowded_step(store: SQLiteStore) -> Callable[[], None]:
    store.execute(Open("crowded", Limits(usd=10**18)))
    for number in range(1, CROWD + 1):
        store.reserve(("crowded",), -number, AMOUNT)
    return stored_step(store, ("crowded",))


def _public(store: SQLiteStore) -> Callable[[], None]:
    budget, book = Budget("$1000000000", name="public", store=store), PriceBook(PRICES)

    def step() -> None:
        with budget.reserve(
            model="own", input_tokens=1_000, max_output_tokens=500, prices=book
        ) as call:
            call.settle(USAGE)

    return step


def _bundled_server() -> str:
    from tests.stores.servers import redis_server

    return redis_server("valkey8").url


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, help="pairs of each")
    parser.add_argument("--redis", help="URL of a server; by default one of the test extra's")
    options = parser.parse_args(arguments)
    figures = sqlite_figures(options.rounds)
    figures += redis_figures(options.redis or _bundled_server(), options.rounds)
    figures += postgres_figures(options.rounds // 5)
    print(figures_table(f"What a budget in a store costs ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

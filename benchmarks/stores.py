"""What a budget in a store costs beside bare SQL: `python -m benchmarks.stores`.

A bare pair is two transactions, each of them one ``BEGIN IMMEDIATE``, one ``UPDATE`` and one
``COMMIT``: it reserves and settles dollars, calls, input and output tokens in one row, if the
dollars fit. Less than that no counter in a file can do. It runs on a table of the same file, with
the same settings. A store also keeps a row for each call in flight, so that it can tell what a
process that died has held.

PostgreSQL: one reservation beside one bare ``UPDATE`` of one row, on the same connection, to a
server that waits for no disk. Each is one round trip and one commit.

Both are measured in turns of twenty, because a connection reads anew what another one has changed:
in single turns each would pay for the other. Checkpoints are made by the store's thread for both.
"""

import argparse
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.overhead import AMOUNT, PRICES, SPENT, USAGE
from benchmarks.table import Figure, failures, figures_table, machine
from tokenfence_integrations import Budget
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.stores.base import NOTHING, Limits, Open
from tokenfence_integrations.stores.sqlite import SQLiteStore

__all__ = ["TURN", "bare_pair", "main", "postgres_figures", "sqlite_figures", "stored_step"]

BAR = 1.5  # reserve+settle / bare pair
TURN = 20  # pairs of one kind before those of the other


class Turn(NamedTuple):
    """Seconds that each of `TURN` bare pairs took, and each of as many in the store after them."""

    bare: list[float]
    stored: list[float]


def sqlite_figures(rounds: int) -> list[Figure]:
    """Reserve+settle over a bare pair: in the store, with a parent, and as users call it.

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
                    *_figures(
                        "SQLite, one account", bare, stored_step(store, ("root",)), rounds, BAR
                    ),
                    *_figures(
                        "SQLite, child and parent",
                        bare,
                        stored_step(store, ("root/leaf", "root")),
                        rounds,
                    ),
                    *_figures("SQLite, with budget.reserve() ...", bare, _public(store), rounds),
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


def postgres_figures(rounds: int) -> list[Figure]:
    """A reservation over a bare update of a row: two round trips of the same connection.

    Args:
        rounds: Pairs of each.
    """
    from tests.stores.postgres_servers import address, new_schema
    from tokenfence_integrations.stores.postgres import PostgresStore

    store = PostgresStore(address(), schema=new_schema())
    try:
        for account in ("root", "root/leaf"):
            store.execute(Open(account, Limits(usd=10**18)))
        run, sql, numbers = store.link.run, store.link.sql, count(1)
        run(sql("CREATE TABLE tokenfence.bare (id integer PRIMARY KEY, n bigint NOT NULL)"))
        run(sql("INSERT INTO tokenfence.bare VALUES (1, 0)"))
        update = sql(
            "UPDATE tokenfence.bare SET n = n + %s WHERE id = 1 AND n + %s < 1::bigint << 60"
        )

        def bare() -> None:
            run(update, (AMOUNT.usd, AMOUNT.usd))

        return [
            figure
            for name, path in (
                ("PostgreSQL, reserve, one account", ("root",)),
                ("PostgreSQL, reserve, child and parent", ("root/leaf", "root")),
            )
            for figure in _figures(
                name,
                bare,
                lambda path=path: store.reserve(path, next(numbers), AMOUNT),  # type: ignore[misc]
                rounds,
                told="reserve",
            )
        ]
    finally:
        store.close()


def _public(store: SQLiteStore) -> Callable[[], None]:
    budget, book = Budget("$1000000000", name="public", store=store), PriceBook(PRICES)

    def step() -> None:
        with budget.reserve(
            model="own", input_tokens=1_000, max_output_tokens=500, prices=book
        ) as call:
            call.settle(USAGE)

    return step


def _figures(
    name: str,
    bare: Callable[[], None],
    step: Callable[[], None],
    rounds: int,
    bar: float | None = None,
    told: str = "reserve+settle",
) -> list[Figure]:
    turns = [Turn(_seconds(bare), _seconds(step)) for _ in range(-1, max(1, rounds // TURN))][1:]
    all_bare = [seconds for turn in turns for seconds in turn.bare]
    all_stored = [seconds for turn in turns for seconds in turn.stored]
    ratios = [statistics.median(turn.stored) / statistics.median(turn.bare) for turn in turns]
    return [
        Figure(
            f"{name}, p50",
            statistics.median(ratios),
            "x",
            at_most=bar,
            detail=_micros(statistics.median, all_bare, all_stored, told),
        ),
        Figure(
            f"{name}, p99",
            _p99(all_stored) / _p99(all_bare),
            "x",
            at_most=bar,
            detail=_micros(_p99, all_bare, all_stored, told),
        ),
    ]


def _seconds(work: Callable[[], None]) -> list[float]:
    clock, seconds = time.perf_counter, []
    for _ in range(TURN):
        begun = clock()
        work()
        seconds.append(clock() - begun)
    return seconds


def _micros(
    of: Callable[[Sequence[float]], float],
    bare: Sequence[float],
    stored: Sequence[float],
    told: str,
) -> str:
    return f"bare {of(bare) * 1e6:.1f} µs, {told} {of(stored) * 1e6:.1f} µs"


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, len(seconds) * 99 // 100)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, help="pairs of each")
    rounds = parser.parse_args(arguments).rounds
    figures = [*sqlite_figures(rounds), *postgres_figures(rounds // 5)]
    print(figures_table(f"What a budget in a store costs ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())

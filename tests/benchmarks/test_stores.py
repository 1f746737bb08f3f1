"""The cost of a store, run small: that it measures what it says, not how fast this machine is."""

import sqlite3
from pathlib import Path

from benchmarks import stores
from benchmarks.overhead import AMOUNT, SPENT
from tokenfence_integrations.stores.base import Limits, Open, Read
from tokenfence_integrations.stores.sqlite import SQLiteStore


def test_both_percentiles_of_each_way_are_measured() -> None:
    figures = stores.sqlite_figures(stores.TURN)
    assert [figure.name[-3:] for figure in figures] == ["p50", "p99"] * 4
    assert [figure.at_most for figure in figures] == [1.5, 1.5] + [None] * 6
    assert all(figure.measured > 0 for figure in figures)


def test_the_bare_pair_books_what_the_store_books(tmp_path: Path) -> None:
    file = tmp_path / "budgets.db"
    store = SQLiteStore(file)
    store.execute(Open("root", Limits(usd=10**18)))
    with stores.bare_pair(file) as pair:
        pair()
        stores.stored_step(store, ("root",))()
    with sqlite3.connect(file) as connection:
        [row] = connection.execute("SELECT * FROM bare").fetchall()
    connection.close()
    [state] = store.execute(Read(("root",))).states
    assert row[1:] == (*state.spent, *state.reserved) == (*SPENT, 0, 0, 0, 0)
    assert AMOUNT != SPENT
    store.close()

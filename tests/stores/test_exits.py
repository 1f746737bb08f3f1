"""What a process still has to tell its store as it ends, however it was begun."""

import os
import subprocess
import sys
from multiprocessing import get_all_start_methods
from pathlib import Path
from textwrap import dedent

import pytest

from tests.engine.helpers import nano, spend
from tests.forks import forking, in_a_fork
from tests.stores.places import PLACES, Place
from tokenfence_integrations import Budget
from tokenfence_integrations.stores.base import NOTHING
from tokenfence_integrations.stores.tending import Tender

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import multiprocessing
    import sys

    from tests.engine.helpers import spend
    from tokenfence_integrations import Budget
    from tokenfence_integrations.stores.tending import Tender

    Tender.call = lambda tender: None  # so that nothing but the end of the process tells the store
    how, *places = sys.argv[1:]

    def each():
        for url, name in zip(places[::2], places[1::2]):
            budget = Budget(name=name, store=url, slice="2%")
            budget.spent  # so that the store is open
            yield budget

    budgets = each() if how == "here" else [*each()]

    def work():
        for budget in budgets:
            for _ in range(3):
                spend(budget, 10)
            budget.record("$0.00000001")

    if __name__ == "__main__":
        if how == "here":
            work()
        else:
            process = multiprocessing.get_context(how).Process(target=work)
            process.start()
            process.join()
            sys.exit(process.exitcode)
"""


def run(tmp_path: Path, how: str, *places: Place) -> None:
    """A program whose main module makes budgets, one in each place, and spends 40 of each."""
    for place in places:
        store = place.store()
        Budget(nano(1_000_000), name=place.name, store=store)
        store.close()  # type: ignore[attr-defined]
    program = tmp_path / "program.py"
    program.write_text(dedent(PROGRAM))
    command = [sys.executable, str(program), how]
    command += [word for place in places for word in (place.url, place.name)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)


def check(place: Place) -> None:
    now = Budget(name=place.name, store=place.store()).snapshot()
    assert (now.spent.usd, now.reserved, now.uncertain) == (40, NOTHING, NOTHING)


@pytest.mark.parametrize("how", ["here", *get_all_start_methods()])
@pytest.mark.parametrize("kind", sorted(PLACES))
def test_budgets_of_the_main_module_tell_all_wherever_they_are_used(
    tmp_path: Path, kind: str, how: str
) -> None:
    place = PLACES[kind](tmp_path)
    run(tmp_path, how, place)
    check(place)


def test_slices_are_given_back_before_any_store_is_closed(tmp_path: Path) -> None:
    file, server = PLACES["sqlite"](tmp_path), PLACES["redis"](tmp_path)
    run(tmp_path, "here", file, server)
    check(file)
    check(server)


LOCKED = """
    import sqlite3
    import sys

    from tests.engine.helpers import reserve
    from tokenfence_integrations import Budget, Usage

    path, = sys.argv[1:]
    budget = Budget("$1", name="acme", store=f"sqlite:///{path}")
    calls = [reserve(budget, 10).admit() for _ in range(3)]
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in calls:
        call.settle(Usage(0, 5))
    budget.record("$0.25")
"""


def test_what_cannot_be_written_as_the_process_ends_is_told(tmp_path: Path) -> None:
    program, file = tmp_path / "program.py", tmp_path / "budgets.db"
    program.write_text(dedent(LOCKED))
    done = subprocess.run(
        [sys.executable, str(program), str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    [told] = done.stderr.splitlines()
    assert "locked" in told
    assert "the cost of calls or slices (3 in all)" in told
    assert "$0.25 that record() was given" in told
    now = Budget(name="acme", store=f"sqlite:///{file}").snapshot()
    assert (now.spent.usd, now.reserved.usd) == (0, 30)


@pytest.mark.parametrize("sliced", [None, "2%"])
@pytest.mark.parametrize("kind", sorted(PLACES))
class TestForks:
    """A process that ends before its thread has begun."""

    pytestmark = forking

    def test_what_it_notes_first_is_told(
        self, tmp_path: Path, kind: str, sliced: str | None
    ) -> None:
        place = PLACES[kind](tmp_path)
        budget = Budget(nano(1_000_000), name=place.name, store=place.url, slice=sliced)
        spend(budget, 30)
        budget._tree.store.close()  # type: ignore[attr-defined]

        def child() -> None:
            Tender.call = lambda tender: None  # type: ignore[method-assign]
            budget.record(nano(10))

        assert in_a_fork(child) == 0
        check(place)

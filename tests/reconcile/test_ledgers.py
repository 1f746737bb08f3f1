"""A ledger's file says what the budgets' own ledger says."""

import threading
from pathlib import Path

import pytest

from tests.engine.helpers import BOOK, nano, reserve, small, spend
from tokenfence_integrations import Budget, Usage
from tokenfence_integrations.reconcile.exports import ExportError
from tokenfence_integrations.reconcile.ledgers import LedgerFile, read_ledger


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "calls.csv"


def test_all_that_is_spent_of_each_account_is_in_it(file: Path) -> None:
    team = small(1_000, name="team, of all", sink=LedgerFile(file))
    writer = team.child("wrïter")
    spend(team, 10)
    spend(writer, 20, model="mini")
    reserve(team, 5).admit().release()
    reserve(writer, 40).admit().lose()
    team.record(nano(3))
    [charge] = writer.charges()
    writer.resolve(charge, Usage(0, 7), prices=BOOK)
    spent = read_ledger(file).spent
    assert spent == {each.name: each.snapshot().spent.usd for each in (team, writer)}
    writer.reset()
    spent = read_ledger(file).spent
    assert spent == {team.name: team.snapshot().spent.usd, writer.name: 0}


def test_known_are_the_calls_whose_cost_is_known(file: Path) -> None:
    team = small(1_000, sink=LedgerFile(file))
    usage = Usage(8, 5, cached_tokens=3)
    with reserve(team, 10, input_tokens=9) as call:
        call.settle(usage)
    for truth in (nano(7), 0, Usage(0, 2)):
        reserve(team, 40).admit().lose()
        [charge] = team.charges()
        team.resolve(charge, truth, prices=BOOK)
    reserve(team, 40).admit().lose()
    reserve(team, 40).admit().release()
    first, second, third = read_ledger(file).known
    assert first == (team.ledger[0].at, "model", usage, 13)
    assert second[1:] == ("model", None, 7)
    assert third[1:] == ("model", Usage(0, 2), 2)
    assert third.at == charge.at, "a resolved charge was a call at its own time"


def test_threads_write_whole_lines(file: Path) -> None:
    sinks = [LedgerFile(file) for _ in range(4)]

    def work(sink: LedgerFile) -> None:
        budget = Budget("$1", name="team", sink=sink)
        for _ in range(50):
            spend(budget, 3)

    threads = [threading.Thread(target=work, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = read_ledger(file)
    assert ledger.spent == {"team": 600}
    assert len(ledger.known) == 200


@pytest.mark.parametrize("content", ["a,b\n", "1.0,[,m,settled,1,0,,,,,,,,,,,,,,,\n", "\n"])
def test_a_file_of_something_else_is_an_error_that_says_where(file: Path, content: str) -> None:
    spend(small(100, sink=LedgerFile(file)), 3)
    with file.open("a") as more:
        more.write(content)
    with pytest.raises(ExportError, match=r"calls.csv is no ledger, line 2"):
        read_ledger(file)


def test_a_file_that_is_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(ExportError, match=r"calls.csv cannot be read"):
        read_ledger(file)

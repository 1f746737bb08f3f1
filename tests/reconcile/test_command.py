"""`tokenfence reconcile` on real files: what is listed, settled, released, and left alone."""

import csv
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.engine.helpers import charged, nano, reserve, spend
from tests.stores.places import SQLitePlace, later
from tests.stores.processes import start
from tests.stores.test_processes import go, processes, ready
from tokenfence_integrations import Budget
from tokenfence_integrations.cli import main
from tokenfence_integrations.reconcile import command
from tokenfence_integrations.reconcile.ledgers import LedgerFile
from tokenfence_integrations.stores.base import Charge
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.billing import BillLine

HOUR = 3_600.0


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def hours_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "time", lambda: time.time() + 3 * HOUR)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'budgets.db'}"


def lose(budget: Budget, size: int, model: str = "model") -> Charge:
    """The charge of a call of unknown outcome."""
    before = budget.charges()
    reserve(budget, size, model=model).admit().lose()
    [charge] = [charge for charge in budget.charges() if charge not in before]
    return charge


def stored(url: str) -> tuple[int, int, int]:
    """What the file says of acme, as a process of its own would read it."""
    return charged(Budget(name="acme", store=SQLiteStore(url.removeprefix("sqlite:///"))))


class Terminal:
    """Runs the command, and reads what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: object) -> int:
        code = main(["reconcile", *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def row(self, number: str) -> list[str]:
        """The cells of a charge's row."""
        for line in self.out.splitlines():
            cells = [cell.strip() for cell in line.split("│")[1:-1]]
            if cells and cells[0] == number:
                return cells
        raise AssertionError(f"no charge {number} in:\n{self.out}")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def test_what_is_uncertain_is_listed(url: str, run: Terminal) -> None:
    budget = Budget("$1", name="acme", store=url)
    first = lose(budget.child("writer"), 4_200_000)
    second = lose(budget, 70, "mini")
    assert run(url) == 0
    when = datetime.fromtimestamp(first.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    assert run.row(first.id) == [first.id, "acme/writer", "model", when, "$0.0042", "?", ""]
    assert run.row(second.id)[1:3] == ["acme", "mini"]
    assert run.out.splitlines()[-1] == "2 uncertain, $0.004200007 charged"


def test_nothing_uncertain_is_said(url: str, run: Terminal) -> None:
    spend(Budget("$1", name="acme", store=url), 5)
    assert run(url) == 0
    assert run.out == "0 uncertain, $0.00 charged\n"


def test_charges_are_chosen_by_budget_and_age(
    url: str, run: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = Budget("$1", name="acme", store=url)
    mine = lose(acme.child("writer"), 10)
    other = lose(Budget("$1", name="acme2", store=url), 20)
    of_today = Budget("$1/day", name="acme", store=url)
    daily = lose(of_today.child("writer"), 30)
    monkeypatch.setattr(command, "time", lambda: time.time() + HOUR)

    def listed(*arguments: object) -> set[str]:
        assert run(url, *arguments) == 0
        return {c.id for c in (mine, other, daily) if f"│ {c.id} " in run.out}

    assert listed() == {mine.id, other.id, daily.id}
    assert listed("--budget", "acme") == {mine.id, daily.id}
    assert listed("--budget", "acme/writer") == {mine.id, daily.id}
    assert of_today.window is not None
    assert listed("--budget", f"acme~{of_today.window.name}") == {daily.id}
    assert listed("--budget", "writer") == set()
    assert listed("--older-than", "59m") == {mine.id, other.id, daily.id}
    assert listed("--older-than", "2h") == set()


def test_charges_are_settled_and_released_by_hand(url: str, run: Terminal) -> None:
    budget = Budget("$1", name="acme", store=url)
    one, two, three = (lose(budget, size) for size in (10, 20, 40))
    wanted = (url, "--settle", f"{one.id}=$0.000000007", "--release", two.id)
    assert run(*wanted) == 0
    assert run.row(one.id)[-3:] == ["$0.00000001", "$0.000000007", "by hand"]
    assert run.row(two.id)[-2:] == ["$0.00", "by hand"]
    assert run.row(three.id)[-2:] == ["?", ""]
    assert "nothing was changed; add --apply" in run.out
    assert stored(url) == (0, 0, 70)

    assert run(*wanted, "--apply") == 0
    assert "2 settled: $0.00000003 charged, $0.000000007 true" in run.out
    assert stored(url) == (7, 0, 40)

    assert run(*wanted, "--apply") == 2
    assert f"no uncertain charge {one.id}, {two.id} (any more)" in run.err
    assert stored(url) == (7, 0, 40)


def test_a_charge_that_is_resolved_meanwhile_is_left_alone(
    url: str, run: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget("$1", name="acme", store=url)
    charge = lose(budget, 10)
    carry_out = command.carry_out

    def too_late(*arguments: object) -> object:
        budget.resolve(charge, nano(3))
        return carry_out(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "carry_out", too_late)
    assert run(url, "--settle", f"{charge.id}=$0.000000009", "--apply") == 1
    assert f"{charge.id} left alone: not charged any more" in run.out
    assert stored(url) == (3, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("memory:",), "budget.charges()"),
        (("sqlite:///no-such-file.db",), "there is no file no-such-file.db"),
        (("mysql://x",), "no store is known"),
    ],
)
def test_a_store_that_is_not_there_is_an_error(
    arguments: Sequence[str], says: str, run: Terminal, tmp_path: Path
) -> None:
    assert run(*arguments) == 2
    assert says in run.err
    assert not Path("no-such-file.db").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--settle", "7"),
        ("--settle", "7=-1"),
        ("--older-than", "1 week"),
        ("--older-than", "-1h"),
    ],
)
def test_arguments_that_nobody_could_mean_are_refused(
    arguments: Sequence[str], url: str, run: Terminal
) -> None:
    with pytest.raises(SystemExit) as exit:
        run(url, *arguments)
    assert exit.value.code == 2


def test_a_charge_is_not_both_settled_and_released(url: str, run: Terminal) -> None:
    charge = lose(Budget("$1", name="acme", store=url), 10)
    assert run(url, "--settle", f"{charge.id}=$1", "--release", charge.id, "--apply") == 2
    assert "twice" in run.err
    assert stored(url) == (0, 0, 10)


# From an export


def write_export(path: Path, bill: Sequence[BillLine], at: float) -> None:
    """A gateway's export of single requests, a second apart."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request_id", "created_at", "model", "prompt_tokens", "completion_tokens"])
        for number, line in enumerate(bill):
            when = datetime.fromtimestamp(at + number, UTC).isoformat()
            writer.writerow([f"r{number}", when, line.model, line.input_tokens, line.output_tokens])


def write_sums(path: Path, bill: Sequence[BillLine], at: float) -> None:
    """OpenAI's usage export, by the hour: every hour has a row, and most say nothing."""
    hour = at // HOUR * HOUR
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *("start_time", "end_time", "model", "num_model_requests"),
                *("input_tokens", "output_tokens", "input_cached_tokens"),
            ]
        )
        # The calls may be of two hours; which one is theirs does not matter.
        for begin in (hour - HOUR, hour, hour + HOUR):
            mine = bill if begin == hour else []
            writer.writerow(
                [
                    int(begin),
                    int(begin + HOUR),
                    "gpt-4o-2024-08-06",
                    len(mine),
                    sum(line.input_tokens for line in mine),
                    sum(line.output_tokens for line in mine),
                    0,
                ]
            )


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("requests", "before send"),
        ("requests", "before settle"),
        ("sums", "before send"),
        ("sums", "in flight"),
    ],
)
def test_a_killed_process_s_books_become_the_provider_s_bill(
    tmp_path: Path,
    url: str,
    run: Terminal,
    point: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "time", lambda: time.time() + 4 * HOUR)
    file, ledger, export = (tmp_path / name for name in ("budgets.db", "calls.csv", "usage.csv"))
    with SimulatedProvider(output_tokens=10) as provider:
        worker = start(
            "die",
            f"sqlite:///{file}",
            "acme",
            point,
            ledger,
            OPENAI_BASE_URL=provider.base_url,
            OPENAI_API_KEY="unused",
        )
        with processes(worker):
            ready(worker)
            if point == "in flight":
                provider.hold()
            go(worker)
            if point == "in flight":
                provider.wait_for(1)
                worker.kill()
            assert worker.wait(30) == -9
            provider.release()
            provider.idle()
        bill, billed = provider.bill, provider.billed
    [charge] = later(SQLitePlace(tmp_path)).charges()
    assert charge.what == "gpt-4o"
    (write_export if kind == "requests" else write_sums)(export, bill, charge.at)
    from_export = (url, "--from", export, "--ledger", ledger)

    assert run(*from_export) == 0
    assert stored(url)[2] == charge.amount.usd
    assert run(*from_export, "--apply") == 0
    if point == "before send":
        assert len(bill) == 1
        assert run.row(charge.id)[5] == "?"
        assert stored(url) == (billed, 0, charge.amount.usd)
        assert run(url, "--release", charge.id, "--ledger", ledger, "--apply") == 0
    else:
        assert len(bill) == 2
    assert stored(url) == (billed, 0, 0)
    # Another time finds nothing to do, and the ledger knows what was done.
    assert run(*from_export, "--apply") == 0
    assert run.out == "0 uncertain, $0.00 charged\n"
    assert command.read_ledger(ledger).spent["acme"] == billed


def test_a_row_settles_one_charge_and_no_later_one(
    tmp_path: Path, url: str, run: Terminal, hours_later: None
) -> None:
    ledger, export = tmp_path / "calls.csv", tmp_path / "usage.csv"
    budget = Budget("$1", name="acme", store=url, sink=LedgerFile(ledger))
    charge = lose(budget, 30)
    when = datetime.fromtimestamp(charge.at, UTC).isoformat()
    export.write_text(f"id,created_at,model,cost\nr1,{when},model,0.000000012\n")
    from_export = (url, "--from", export, "--ledger", ledger, "--apply")
    assert run(*from_export) == 0
    assert stored(url) == (12, 0, 0)

    again = lose(budget, 30)  # about the same time, and never billed
    assert run(*from_export) == 0
    assert run.row(again.id)[5] == "?"
    assert stored(url) == (12, 0, 30)


def test_without_a_ledger_or_with_a_part_of_it_nothing_is_certain(
    tmp_path: Path, url: str, run: Terminal, hours_later: None
) -> None:
    ledger, export = tmp_path / "calls.csv", tmp_path / "usage.csv"
    charge = lose(Budget("$1", name="acme", store=url, sink=LedgerFile(ledger)), 30)
    spend(Budget("$1", name="acme", store=url), 12)  # nobody wrote that down
    when = datetime.fromtimestamp(charge.at, UTC).isoformat()
    export.write_text(f"id,created_at,model,cost\nr1,{when},model,0.000000012\n")
    assert run(url, "--from", export, "--apply") == 0
    assert "give --ledger" in run.row(charge.id)[-1]
    assert run(url, "--from", export, "--ledger", ledger, "--apply") == 0
    assert "the ledger has $0.00 of the $0.000000012 spent of acme" in run.row(charge.id)[-1]
    assert stored(url) == (12, 0, 30)


def test_an_export_that_is_none_is_an_error_and_changes_nothing(
    tmp_path: Path, url: str, run: Terminal
) -> None:
    charge = lose(Budget("$1", name="acme", store=url), 30)
    export = tmp_path / "usage.csv"
    release = ("--release", charge.id, "--apply")
    assert run(url, "--from", export, *release) == 2
    assert "usage.csv cannot be read" in run.err
    export.write_text("name,age\nJo,7\n")
    assert run(url, "--from", export, *release) == 2
    assert "usage.csv has no column of time: one of start_time" in run.err
    assert stored(url) == (0, 0, 30)


def test_lines_that_cannot_be_read_are_shown_and_nothing_is_certain(
    tmp_path: Path, url: str, run: Terminal, hours_later: None
) -> None:
    ledger, export = tmp_path / "calls.csv", tmp_path / "usage.csv"
    charge = lose(Budget("$1", name="acme", store=url, sink=LedgerFile(ledger)), 30)
    when = datetime.fromtimestamp(charge.at, UTC).isoformat()
    export.write_text(f"id,created_at,model,cost\nr1,{when},model,0.00000001\nr2,late,model,1\n")
    assert run(url, "--from", export, "--ledger", ledger, "--apply") == 0
    assert "cannot be read: line 3: 'late' is no time" in run.out
    assert stored(url) == (0, 0, 30)


def test_a_charge_of_another_store_s_number_is_not_touched(tmp_path: Path, run: Terminal) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
    for url in urls:
        lose(Budget("$1", name="acme", store=url), 30)
    assert run(urls[0], "--release", "1", "--apply") == 0
    assert [stored(url)[2] for url in urls] == [0, 30]

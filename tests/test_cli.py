from __future__ import annotations

import builtins
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from tests.engine.helpers import FakeClock
from tokenfence_integrations import Budget, Usage
from tokenfence_integrations.cli import main
from tokenfence_integrations.stores.urls import open_store

SUMMARY = re.compile(r"spent \$(\S+) of \$(\S+); bare would have spent \$(\S+)")


def row(output: str, label: str) -> list[str]:
    """The cells of the first table row that begins with a label."""
    for line in output.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if cells and cells[0] == label:
            return cells
    raise AssertionError(f"no row {label!r} in:\n{output}")


def statuses(output: str) -> list[str]:
    """The last cell of each call's row."""
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    return [cells[-1].strip() for cells in rows if cells[0].strip().isdecimal()]


def summary(output: str) -> tuple[float, float, float]:
    """Spent, budget, and what the bare run cost."""
    match = SUMMARY.fullmatch(output.splitlines()[-1])
    assert match, output
    return float(match[1]), float(match[2]), float(match[3])


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


class TestPrices:
    def test_gpt_4o(self, capsys: pytest.CaptureFixture[str]) -> None:
        # https://platform.openai.com/docs/pricing and /docs/models/gpt-4o
        assert main(["prices", "gpt-4o"]) == 0
        output = capsys.readouterr().out
        header, rates = row(output, "rates, $ per million"), row(output, "standard")
        shown = dict(zip(header, rates, strict=True))
        assert (shown["input"], shown["cached"], shown["output"]) == ("2.50", "1.25", "10.00")
        assert "context 128,000" in output
        assert "answer 16,384" in output
        assert "audio in" not in output, "a column that says nothing new"

    def test_each_model_has_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prices", "gpt-4o", "gpt-4o-mini"]) == 0
        output = capsys.readouterr().out
        assert "gpt-4o (openai)" in output
        assert "gpt-4o-mini (openai)" in output

    def test_batch_is_half_price(self, capsys: pytest.CaptureFixture[str]) -> None:
        # "Save 50% on inputs and outputs with the Batch API": https://openai.com/api/pricing
        assert main(["prices", "gpt-4o"]) == 0
        output = capsys.readouterr().out
        header, rates = row(output, "rates, $ per million"), row(output, "batch")
        shown = dict(zip(header, rates, strict=True))
        assert (shown["input"], shown["output"]) == ("1.25", "5.00")

    def test_rates_of_long_prompts(self, capsys: pytest.CaptureFixture[str]) -> None:
        # gpt-5.5 doubles its input rate above 272,000 input tokens.
        assert main(["prices", "gpt-5.5"]) == 0
        output = capsys.readouterr().out
        short, long = row(output, "standard"), row(output, "standard, input > 272,000")
        assert float(long[1]) == 2 * float(short[1])

    def test_of_another_provider(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prices", "claude-sonnet-4-5", "gpt-4o"]) == 2
        captured = capsys.readouterr()
        assert "--provider anthropic" in captured.err
        assert "gpt-4o (openai)" in captured.out, "one unknown model does not hide the others"
        assert main(["prices", "claude-sonnet-4-5", "--provider", "anthropic"]) == 0
        assert "claude-sonnet-4-5 (anthropic)" in capsys.readouterr().out

    def test_unknown_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prices", "gpt-4oo"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "gpt-4oo" in captured.err
        assert "gpt-4o" in captured.err.replace("gpt-4oo", ""), "names the nearest known models"


class TestDemo:
    def test_simulated(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--simulated", "--plain"]) == 0
        output = capsys.readouterr().out
        spent, budget, bare = summary(output)
        assert 0 < spent <= budget < bare
        first, second = output.split("guarded: ")
        assert statuses(first) == ["answered"] * 10
        assert "gpt-4o-mini" not in first
        assert len(statuses(second)) == 10
        assert any(status.startswith("fell back") for status in statuses(second))
        assert "the guard booked" not in output, "books and server differ"

    def test_budget_below_any_call_stops_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--calls", "5", "--max-tokens", "20", "--budget", "$0.000001"]
        assert main(["demo", "--simulated", "--plain", *arguments]) == 0
        output = capsys.readouterr().out
        spent, budget, _ = summary(output)
        assert (spent, budget) == (0, 0.000001)
        assert statuses(output.split("guarded: ")[1]) == ["stopped"] * 5

    def test_an_overspent_budget_is_exit_code_1(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from tokenfence_integrations.demo import runner

        def no_guard(client: openai.AsyncOpenAI, **_: Any) -> openai.AsyncOpenAI:
            client.tokenfence = SimpleNamespace(spent=0.0, reserved=0.0)  # type: ignore[attr-defined]
            return client

        monkeypatch.setattr(runner, "async_guard", no_guard)
        assert main(["demo", "--simulated", "--plain"]) == 1
        output = capsys.readouterr().out
        spent, budget, bare = summary(output)
        assert budget < spent
        assert spent == pytest.approx(bare)
        assert "the guard booked $0.000000000" in output

    def test_without_the_real_model_it_says_so_and_simulates(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *args: None if name == "xllamacpp" else find_spec(name, *args),
        )
        assert main(["demo", "--plain", "--calls", "4"]) == 0
        output = capsys.readouterr().out
        assert "xllamacpp not installed: pip install 'tokenfence-integrations[demo]'" in output
        assert "answered by the simulated provider" in output

    @pytest.mark.real_model
    def test_real_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--max-tokens", "16"]) == 0
        output = capsys.readouterr().out
        assert "SmolLM2" in output
        spent, budget, bare = summary(output)
        assert 0 < spent <= budget < bare
        assert "the guard booked" not in output, "books and server differ"

    def test_live_without_a_key(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "OPENAI_API_KEY" not in os.environ
        assert main(["demo", "--live"]) == 2
        error = capsys.readouterr().err
        assert "OPENAI_API_KEY is not set" in error
        assert "leave out --live" in error

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--calls", "0"], "at least 1"),
            (["--max-tokens", "many"], "at least 1"),
            (["--budget", "€5"], "as money"),
            (["--budget", "$0"], "more than 0"),
            (["--live", "--simulated"], "not allowed with"),
        ],
    )
    def test_bad_arguments(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit_info:
            main(["demo", *arguments])
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err


class TestBudgets:
    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        """A store with a tree; what each call does cost, and may cost, is worked out by hand."""
        url = f"sqlite:///{tmp_path}/budgets.db"
        acme = Budget("$50", name="acme", store=url)
        writer = acme.child("writer", "$5", calls=100)
        clock = FakeClock(1_795_500_000)  # 2026-11-24
        daily = Budget("2M tokens/day", name="daily", store=url, clock=clock.clock)
        for budget in (writer, daily):
            with budget.reserve(model="gpt-4o", input_tokens=1000, max_output_tokens=500) as call:
                call.settle(Usage(1000, 200))  # 1,000 at $2.50 and 200 at $10 a million
        clock.now += 86_400
        with writer.reserve(model="gpt-4o", input_tokens=1000, max_output_tokens=500):
            pass  # $0.0075, uncertain
        in_flight = daily.reserve(model="gpt-4o", input_tokens=1000, max_output_tokens=500)
        in_flight.admit()
        acme.child("spare", "10%", overflow=True)
        Budget(name="acme2", store=url)
        yield url
        in_flight.release()

    def test_the_tree_with_all_that_is_used(
        self, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["budgets", "--store", url]) == 0
        output = capsys.readouterr().out
        left = "$49.988"
        assert row(output, "acme") == ["acme", "", "$50.00", "$0.0045", "$0.00", "$0.0075", left]
        assert row(output, "spare") == ["spare", "", "–", "$0.00", "$0.00", "$0.00", "–"]
        writer = ["writer", "", "$5.00", "$0.0045", "$0.00", "$0.0075", "$4.988"]
        assert row(output, "writer") == writer
        assert row(output, "")[2:] == ["100 calls", "1", "0", "1", "98"]
        first = [cell for cell in re.split("[│┃\n]", output) if cell.strip()]
        names = [cell for cell in first if cell.strip() in ("acme", "spare", "writer", "acme2")]
        assert [name.rstrip() for name in names] == [" acme", "   spare", "   writer", " acme2"]

    def test_each_window_is_an_account(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["budgets", "daily", "--store", url]) == 0
        output = capsys.readouterr().out
        windows = [line for line in output.splitlines() if "2026" in line]
        tokens = [line for line in output.splitlines() if "2,000,000 tokens" in line]
        assert ["2026-11-24" in windows[0], "2026-11-25" in windows[1]] == [True, True]
        used = [row(line, "")[2:] for line in tokens]
        assert used[0] == ["2,000,000 tokens", "1,200", "0", "0", "1,998,800"]
        assert used[1] == ["2,000,000 tokens", "0", "1,500", "0", "1,998,500"]
        assert "acme" not in output

    def test_as_json(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["budgets", "acme/writer", "--store", url, "--json"]) == 0
        [told] = json.loads(capsys.readouterr().out)
        assert told == {
            "budget": "acme/writer",
            "window": None,
            "limits": {"usd": 5, "calls": 100},
            "spent": {"usd": 0.0045, "calls": 1, "input_tokens": 1000, "output_tokens": 200},
            "reserved": {"usd": 0, "calls": 0, "input_tokens": 0, "output_tokens": 0},
            "uncertain": {"usd": 0.0075, "calls": 1, "input_tokens": 1000, "output_tokens": 500},
            "remaining": {"usd": 4.988, "calls": 98},
        }
        assert main(["budgets", "--store", url, "--json"]) == 0
        names = [(each["budget"], each["window"]) for each in json.loads(capsys.readouterr().out)]
        assert names == [
            ("acme", None),
            ("acme/spare", None),
            ("acme/writer", None),
            ("acme2", None),
            ("daily", "2026-11-24"),
            ("daily", "2026-11-25"),
        ]

    def test_a_budget_that_is_not_there(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["budgets", "acme/writter", "--store", url]) == 2
        error = capsys.readouterr().err
        assert "there is no budget 'acme/writter' in this store; near are 'acme/writer'" in error

    @pytest.mark.parametrize(
        ("store", "said"),
        [
            ("memory:", "'memory:' lives in its process alone"),
            ("sqlite:///no/such/file.db", "there is no file no/such/file.db"),
            ("budgets.db", "no store is known for 'budgets.db'"),
        ],
    )
    def test_a_store_that_cannot_be_read(
        self, store: str, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["budgets", "--store", store]) == 2
        assert said in capsys.readouterr().err

    def test_an_empty_store(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        url = f"sqlite:///{tmp_path}/budgets.db"
        open_store(url)
        assert main(["budgets", "--store", url]) == 0
        assert "no budgets" in capsys.readouterr().out
        assert main(["budgets", "--store", url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith("tokenfence-integrations ")


def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def without_rich(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    for command, extra in ((["prices", "gpt-4o"], "cli"), (["demo", "--simulated"], "demo")):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"rich is not installed: pip install 'tokenfence-integrations[{extra}]'" in error


def test_a_missing_library_of_a_store_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_redis(url: str) -> None:
        raise ModuleNotFoundError("a store in Redis needs redis-py: pip install ...", name="redis")

    monkeypatch.setattr("tokenfence_integrations.stores.urls.open_store", without_redis)
    assert main(["reconcile", "redis://localhost:6379/0"]) == 2
    assert "needs redis-py: pip install" in capsys.readouterr().err


def test_a_store_may_be_named_in_the_same_way_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'budgets.db'}"
    Budget("$5", name="acme", store=url)
    for command in (["budgets", "--store", url], ["reconcile", "--store", url], ["reconcile", url]):
        assert main(command) == 0
    for command in (["reconcile"], ["reconcile", url, "--store", url]):
        assert main(command) == 2
        assert "give one store: --store sqlite:///budgets.db" in capsys.readouterr().err


def test_without_a_command_it_tells_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "reconcile" in capsys.readouterr().out

from __future__ import annotations

import builtins
import importlib.util
import os
import re
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from tokenfence_integrations.cli import main

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

"""The commands that the docs show are taken, and do what the page says of them."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.examples.test_docs import PAGES, ROOT
from tokenfence_integrations import Budget, Usage
from tokenfence_integrations.cli import main
from tokenfence_integrations.reconcile.ledgers import LedgerFile

COMMAND = re.compile(r"^    (tokenfence [^#\n]*)|`(tokenfence \w+ [^`]*)`", re.MULTILINE)
ALL = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]


def commands() -> list[tuple[str, ...]]:
    """Each command line of the docs, once; without those that only name commands."""
    shown = {
        tuple(shlex.split((match[1] or match[2]).strip()))
        for page in ALL
        if page.name != "CHANGELOG.md"  # which names what is new of a command, and not all of it
        for match in COMMAND.finditer(page.read_text(encoding="utf-8"))
    }
    return sorted(words for words in shown if not words[-1].endswith((".", "URL", "NAME")))


EXPORT = "request_id,created_at,model,input_tokens,output_tokens\n"


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Budget:
    """The budget that the pages speak of, with uncertain charges up to the numbers they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    acme = Budget("$50", name="acme", store="sqlite:///budgets.db", sink=LedgerFile("calls.csv"))
    Path("usage.csv").write_text(EXPORT)
    writer = acme.child("writer", "$5")
    with writer.reserve(model="gpt-4o", input_tokens=1_000, max_output_tokens=500) as call:
        call.settle(Usage(1_000, 200))
    for _ in range(8):
        with writer.reserve(model="gpt-4o", input_tokens=1_000, max_output_tokens=500):
            pass
    return acme


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_docs(
    words: tuple[str, ...], acme: Budget, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = words
    if arguments[0] == "demo":
        arguments += ["--simulated", "--plain"]
    charges = {charge.id for charge in acme.charges()}
    if {"7", "8"} <= {word.partition("=")[0] for word in arguments}:
        assert {"7", "8"} <= charges
    arguments = ["sqlite:///budgets.db" if "://host" in word else word for word in arguments]

    assert main(arguments) == 0

    said = capsys.readouterr()
    assert said.out
    assert not said.err


def test_there_are_commands_of_each_kind() -> None:
    assert {words[1] for words in commands()} == {"budgets", "prices", "reconcile"}


def test_every_file_that_the_docs_name_is_there() -> None:
    names = r"`((?:[\w-]+/)*[\w-]+\.(?:py|md|ipynb|sql|lua|svg))`"
    folders = ("tokenfence_integrations", "tests", "examples", "benchmarks", "docs", "notebooks")
    found = [*ROOT.glob("*.*"), *(path for each in folders for path in (ROOT / each).rglob("*.*"))]
    files = [str(path.relative_to(ROOT)) for path in found]
    missing = [
        f"{page.name}: {name}"
        for page in ALL
        for name in re.findall(names, page.read_text(encoding="utf-8"))
        if not any(file == name or file.endswith(f"/{name}") for file in files)
    ]
    assert missing == []


def test_every_module_that_the_docs_run_is_there() -> None:
    missing = [
        f"{page.name}: {name}"
        for page in ALL
        for name in re.findall(r"python -m (benchmarks[\w.]*)", page.read_text(encoding="utf-8"))
        if importlib.util.find_spec(name.rstrip(".")) is None
    ]
    assert missing == []

"""What type checkers see: the client's own class, and its budget."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("guarded_clients.py")


def test_mypy_sees_the_same_class_and_a_budget(pytestconfig: pytest.Config) -> None:
    lines = SAMPLE.read_text().splitlines()
    expected = {
        (number, match[1])
        for number, line in enumerate(lines, 1)
        if (match := re.search(r"# expect: ([\w-]+)", line))
    }
    assert len(expected) == 13
    # The project's own settings (strict), so that the cache of `make check` serves here as well.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-pretty", "--hide-error-context", str(SAMPLE)],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    pattern = rf"{SAMPLE.name}:(\d+): error: .*\[([\w-]+)\]$"
    errors = re.findall(pattern, run.stdout, re.MULTILINE)
    found = {(int(number), code) for number, code in errors}
    assert found == expected, run.stdout + run.stderr

"""The notebooks run, offline, and show what is stored in them."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shown(notebook: Any) -> list[list[tuple[str, str]]]:
    """The kinds of what each cell with code shows, and what it writes to its standard output."""
    return [
        [(o.output_type, o.get("text", "")) for o in cell.outputs if o.get("name") != "stderr"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_what_is_stored_in_it(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(ROOT)}}
    # Where a cell prints a lot, in how many pieces that arrives depends on the machine.
    NotebookClient(fresh, timeout=120, resources=where, coalesce_streams=True).execute()
    assert shown(fresh) == shown(stored)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook_is_small_and_tells_nothing_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < 100_000
    folders = [str(ROOT), "/home/", "/root/", "/tmp/", "/Users/"]
    assert [folder for folder in folders if folder in text] == []
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count == number for number, cell in enumerate(cells, 1))
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}

"""A ledger in a file: written by budgets as their sink, read to know what an export holds."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tokenfence_integrations.engine.ledger import LedgerRecord
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.reconcile.exports import ExportError
from tokenfence_integrations.reconcile.matching import Known
from tokenfence_integrations.usage import Usage

__all__ = ["LedgerFile", "LedgerOnFile", "read_ledger"]


class LedgerFile:
    """Appends every ledger record to a CSV file, one line each; for a budget's ``sink``.

    Any number of processes on one machine may write to the same file. Amounts are in nano-dollars,
    times are Unix times; prompts and answers are not in it.

    Args:
        path: The file; created if it does not exist.

    Example:
        >>> budget = Budget("$5", name="acme", sink=LedgerFile("acme.csv"))  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = OwnLock()

    def __call__(self, record: LedgerRecord) -> None:
        """Append a record."""
        usage = ("",) * len(Usage._fields) if record.usage is None else record.usage
        # A charge that is resolved later was a call at its own time.
        at = record.tags.get("at", record.at) if record.outcome == "resolved" else record.at
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            (
                repr(at),
                json.dumps(record.accounts, ensure_ascii=False),
                record.model,
                record.outcome,
                record.cost,
                record.uncertain,
                *usage,
            )
        )
        # In one write, so that lines of several processes do not mix.
        with self._lock, open(self.path, "ab", buffering=0) as file:
            file.write(line.getvalue().encode())


class LedgerOnFile(NamedTuple):
    """What a ledger's file tells.

    Args:
        known: The calls whose cost is known, resolved ones included.
        spent: Nano-dollars spent of each account, over all records.
    """

    known: tuple[Known, ...]
    spent: Mapping[str, int]


def read_ledger(path: Path) -> LedgerOnFile:
    """Read the file of a `LedgerFile`.

    Raises:
        ExportError: It cannot be read, or is no such file.
    """
    known: list[Known] = []
    spent: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                at, accounts, model, outcome, cost, _, *usage = cells
                for account in json.loads(accounts):
                    spent[account] += int(cost)
                if outcome == "settled" or (outcome == "resolved" and (int(cost) or any(usage))):
                    counts = Usage(*map(int, usage)) if any(usage) else None
                    known.append(Known(float(at), model, counts, int(cost)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{path} is no ledger, line {reader.line_num}: {error}; give a file that is written by "
            f"Budget(..., sink=LedgerFile(...))"
        ) from error
    return LedgerOnFile(tuple(known), spent)

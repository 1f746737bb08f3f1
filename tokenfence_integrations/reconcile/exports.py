"""A provider's usage export (CSV), read by the names of its columns.

Providers and gateways name the same things differently, and add columns as they like. What is read
is found by name (see `COLUMNS`); whatever cannot be read is reported by line, and left out.
"""

import csv
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

from tokenfence_integrations.money import MAX_USD, NANO
from tokenfence_integrations.usage import Usage

__all__ = ["COLUMNS", "Export", "ExportError", "Row", "read_export", "read_rows"]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    # Of two that are there, the first that is not empty counts.
    "begin": (
        *("start_time", "start_time_iso", "starttime", "created_at", "created", "timestamp"),
        *("time", "usage_date_utc", "date"),
    ),
    "end": ("end_time", "end_time_iso", "endtime"),
    "model": ("model", "model_version", "model_permaslug", "model_name", "model_id", "snapshot_id"),
    "id": ("request_id", "generation_id", "id"),
    "requests": ("num_model_requests", "n_requests", "requests", "request_count"),
    "cost": ("cost_usd", "cost_total", "total_cost", "cost", "spend", "amount_value"),
    "currency": ("amount_currency", "currency"),
    "input": ("input_tokens", "prompt_tokens", "tokens_prompt", "n_context_tokens_total"),
    "uncached": ("usage_input_tokens_no_cache", "uncached_input_tokens"),
    "cached": (
        *("input_cached_tokens", "cached_tokens", "tokens_cached"),
        *("usage_input_tokens_cache_read", "cache_read_input_tokens"),
    ),
    "written": ("usage_input_tokens_cache_write_5m",),
    "written_1h": ("usage_input_tokens_cache_write_1h",),
    "output": (
        *("output_tokens", "completion_tokens", "tokens_completion"),
        *("usage_output_tokens", "n_generated_tokens_total"),
    ),
    "tier": ("service_tier",),
    "batch": ("batch",),
}
"""What is read from an export, and the columns (in lower case) that may hold it."""

_TELLING = ("model", "id", "cost", "input", "uncached", "output")


class ExportError(ValueError):
    """A file is no usage export, or none that can be read."""


class Row(NamedTuple):
    """What an export says about one request, or about several that it adds up.

    Args:
        line: Its line in the file.
        model: The model, as the export names it.
        begin: Unix time of the request, or from which requests are added up.
        end: Unix time until which they are; the same as `begin` for a moment.
        requests: How many requests; None: it does not say.
        usage: The tokens; None: it does not say.
        cost: Nano-dollars; None: it does not say.
        tier: The service tier; "": the standard one.
        batch: Whether the batch price applies.
    """

    line: int
    model: str
    begin: float
    end: float
    requests: int | None
    usage: Usage | None
    cost: int | None
    tier: str = ""
    batch: bool = False


class Export(NamedTuple):
    """An export: what could be read, and why the rest could not, by line."""

    rows: tuple[Row, ...]
    unread: tuple[str, ...]


def read_export(path: Path) -> Export:
    """Read a file; see `read_rows`.

    Raises:
        ExportError: It cannot be opened, or is no usage export.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    except ExportError as error:
        raise ExportError(f"{path} {error}") from error


def read_rows(lines: Iterable[str]) -> Export:
    """Read the lines of a CSV file.

    Args:
        lines: Its lines; the first one names the columns.

    Returns:
        The rows of a known time and model, and the lines that are not among them.

    Raises:
        ExportError: There is no column of times, of models, or of tokens or costs.

    Example:
        >>> export = read_rows(["created_at,model,request_id,cost", "2026-11-24T09:30Z,gpt-4o,a,1"])
        >>> export.rows[0].cost
        1000000000
    """
    reader = csv.DictReader(lines)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    _check(names)
    rows: list[Row] = []
    unread: list[str] = []
    for cells in reader:
        line, found = reader.line_num, _Cells(cells)
        if not any(kind in found for kind in _TELLING):
            continue  # a time of which there is nothing to say
        try:
            rows.append(_row(line, found))
        except ValueError as error:
            unread.append(f"line {line}: {error}")
    return Export(tuple(rows), tuple(unread))


def _check(names: list[str]) -> None:
    for what, kinds in (
        ("time", ("begin",)),
        ("model", ("model",)),
        ("tokens or cost", ("cost", "input", "uncached", "output")),
    ):
        known = [name for kind in kinds for name in COLUMNS[kind]]
        if not set(known) & set(names):
            raise ExportError(
                f"has no column of {what}: one of {', '.join(known)} has to be there, found are "
                f"{', '.join(names) or 'none'}"
            )


class _Cells:
    """The cells of a row by what they are, whatever their column is called."""

    def __init__(self, cells: Mapping[str, object]) -> None:
        self._cells = cells

    def __contains__(self, kind: str) -> bool:
        return bool(self.text(kind))

    def text(self, kind: str) -> str:
        for name in COLUMNS[kind]:
            value = self._cells.get(name)
            if isinstance(value, str) and value.strip():
                return value.strip()
        return ""

    def count(self, kind: str) -> int | None:
        text = self.text(kind)
        if not text:
            return None
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number of {kind}")
        return int(text)


def _row(line: int, cells: _Cells) -> Row:
    model = cells.text("model")
    if not model:
        raise ValueError("it names no model")
    begin, end = _moment(cells.text("begin"))
    if "end" in cells:
        end, _ = _moment(cells.text("end"))
    requests = 1 if "id" in cells else cells.count("requests")
    usage, cost = _usage(cells), _cost(cells)
    if usage is None and cost is None:
        raise ValueError("it has neither tokens nor a cost")
    tier = cells.text("tier").lower()
    if tier in ("default", "standard", "auto"):
        tier = ""
    batch = cells.text("batch").lower() in ("true", "1", "yes")
    return Row(line, model, begin, end, requests, usage, cost, tier, batch)


def _moment(text: str) -> tuple[float, float]:
    """A moment as begin and end, in Unix time; a date alone is a whole day, in UTC."""
    if text.replace(".", "", 1).isdecimal():
        at = float(text)
        if at > 1e11:  # milliseconds
            at /= 1_000
        return at, at
    try:
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        raise ValueError(f"{text!r} is no time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    day = timedelta(days=1 if len(text) == len("2026-11-24") else 0)
    return moment.timestamp(), (moment + day).timestamp()


def _usage(cells: _Cells) -> Usage | None:
    total, uncached = cells.count("input"), cells.count("uncached")
    output = cells.count("output")
    if output is None or (total is None and uncached is None):
        return None
    cached, written, written_1h = (
        cells.count(kind) or 0 for kind in ("cached", "written", "written_1h")
    )
    if total is None:  # Anthropic's parts add up to it
        total = (uncached or 0) + cached + written + written_1h
    return Usage(
        total,
        output,
        cached,
        cache_write_tokens=written + written_1h,
        cache_write_1h_tokens=written_1h,
    )


def _cost(cells: _Cells) -> int | None:
    text = cells.text("cost").removeprefix("$")
    if not text:
        return None
    currency = cells.text("currency").lower()
    if currency not in ("", "usd"):
        raise ValueError(f"its cost is in {currency}, not in US dollars")
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no cost") from None
    if not dollars.is_finite() or not 0 <= dollars <= MAX_USD:
        raise ValueError(f"{text!r} is no cost of 0 or more")
    # Exports have more decimals than bills.
    return int((dollars * NANO).to_integral_value(ROUND_HALF_EVEN))

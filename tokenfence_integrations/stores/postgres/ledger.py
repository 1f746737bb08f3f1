"""The ledger as a table beside the accounts: one row for each attempt of a call."""

import json
import secrets
from collections import deque
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.log import logger
from tokenfence_integrations.stores.exits import at_exit
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.postgres.link import UNSAYABLE
from tokenfence_integrations.stores.remote.wire import Unreachable
from tokenfence_integrations.stores.tending import Tender

if TYPE_CHECKING:
    from tokenfence_integrations.engine.ledger import LedgerRecord

__all__ = ["PostgresLedger"]

AT_ONCE = 1_000
"""Rows in one statement, at most."""

AGAIN = 1.0
"""Seconds until the next try if the database could not be written."""


class PostgresLedger:
    """A sink that keeps every ledger record in the table ``ledger`` of a store's schema.

    A record is kept in memory until the ledger's own thread writes it, on its own connection: no
    call waits for it. While the database cannot be written, records are kept and tried again; what
    is left when the process ends is written then. A process that is killed loses the records of the
    last moments; its accounts are still right.

    Args:
        store: Whose schema it is.
        most: How many records are kept in memory, 1 or more; beyond that the oldest are lost, and
            that is logged. Default 100,000.

    Raises:
        ValueError: ``most`` is below 1.

    Example:
        >>> store = PostgresStore("postgresql://acme@db.example.com/app")  # doctest: +SKIP
        >>> budget = Budget("$50", store=store, sink=PostgresLedger(store))  # doctest: +SKIP
        >>> # SELECT budget, model, sum(cost_usd) FROM tokenfence.calls GROUP BY 1, 2;
    """

    def __init__(self, store: PostgresStore, *, most: int = 100_000) -> None:
        if most < 1:
            raise ValueError(f"most must be 1 record or more, got {most!r}")
        self._link = store.link.copy()
        self._insert = self._link.sql(INSERT)
        self._most = most
        self._begin()
        begin_anew_in_children(self)
        _ledgers.add(self)

    def begin_life(self) -> None:
        """As `Forked.begin_life`."""
        self._link.forget()
        self._begin()
        _unwritten.discard(self)

    def _begin(self) -> None:
        self._writing = Lock()
        self._records: deque[tuple[int, LedgerRecord]] = deque()
        self._writer = secrets.randbits(62)
        self._numbers = count(1)
        self._lost = 0
        self._failing = False
        self._tender = Tender(self)

    def __call__(self, record: "LedgerRecord") -> None:
        """Put a record aside to be written."""
        self._records.append((next(self._numbers), record))
        if self._tender.asleep:
            self._tender.asleep = False
            _unwritten.add(self)
            at_exit(_close_all)
            self._tender.call()

    def close(self) -> None:
        """Write what is still to be written, and close the connection.

        Raises:
            StoreError: The database cannot be written; the records are kept.
        """
        try:
            self._write()
        finally:
            with self._writing:
                self._link.close()

    def tend(self) -> float | None:
        """Write what is there; how long to wait before the next time."""
        self._tender.asleep = True  # a record that comes from now on calls again
        try:
            self._write()
        except StoreError as error:
            if not self._failing:
                self._failing = True
                logger().error("%s; ledger records are kept, and written once it works", error)
            self._tender.asleep = False
            return AGAIN
        self._failing = False
        if self._tender.asleep:
            _unwritten.discard(self)
            if self._records:  # since we looked
                _unwritten.add(self)
                return 0.0
        return None

    def _write(self) -> None:
        with self._writing:
            while self._records:
                self._drop_too_many()
                many = min(len(self._records), AT_ONCE)
                rows = [self._row(*self._records[index]) for index in range(many)]
                try:
                    self._insert_rows(rows)
                except Unreachable as error:
                    raise StoreError(self._link.where, error.reason) from error
                for _ in rows:
                    self._records.popleft()

    def _insert_rows(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._link.run(self._insert, (json.dumps(rows),))
        except UNSAYABLE as error:
            if len(rows) > 1:
                for row in rows:
                    self._insert_rows([row])
            else:  # it would fail again for ever
                logger().error("%s cannot be written to %s: %s", rows[0], self._link.where, error)

    def _drop_too_many(self) -> None:
        too_many = len(self._records) - self._most
        for _ in range(too_many):
            self._records.popleft()
        if too_many > 0:
            self._lost += too_many
            logger().error("%d ledger records are lost: too many to be kept", self._lost)

    def _row(self, number: int, record: "LedgerRecord") -> dict[str, Any]:
        usage = record.usage
        return {
            **record._asdict(),
            "writer": self._writer,
            "number": number,
            "usage": None if usage is None else usage._asdict(),
            "tags": json.loads(json.dumps(dict(record.tags), default=str)),
        }


COLUMNS = (
    "writer bigint, number bigint, at float8, call bigint, accounts text[], model_asked text, "
    "model text, outcome text, usage jsonb, cost bigint, uncertain bigint, bound bigint, "
    "cap bigint, truncated boolean, waited float8, tags jsonb"
)

INSERT = f"""
INSERT INTO tokenfence.ledger
SELECT writer, number, to_timestamp(at), call, accounts, model_asked, model, outcome, usage, cost,
    uncertain, bound, cap, truncated, waited, tags
FROM jsonb_to_recordset(%s) AS r({COLUMNS})
ON CONFLICT DO NOTHING
"""


_ledgers: "WeakSet[PostgresLedger]" = WeakSet()
_unwritten: set[PostgresLedger] = set()
"""Kept alive until what they have is written."""


def _close_all() -> None:
    for ledger in list(_ledgers):
        if ledger._records:
            try:
                ledger.close()
            except StoreError as error:
                logger().error(
                    "%s; this process ends, and has not written %d ledger records",
                    error,
                    len(ledger._records),
                )

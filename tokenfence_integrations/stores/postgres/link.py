"""A connection to PostgreSQL: made at need, with the schema; given up when no answer comes."""

import os
import re
import time
from collections.abc import Callable, Generator
from importlib.resources import files
from math import inf
from traceback import clear_frames
from typing import Any, TypeVar
from weakref import finalize

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.sql import Composed

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.stores.postgres.errors import Late, explained

__all__ = ["UNSAYABLE", "VERSION", "Link", "place"]

VERSION = 2
"""Of the tables and functions; kept in the table ``about``."""

PARTS = ("tables", "trees", "accounts", "calls", "leases", "exchange", "views")
"""The files of ``sql/`` in the order in which they are run."""

NAME = re.compile(r"[a-z_][a-z0-9_]{0,29}")
"""Names of schemas; the channels that begin with them may have 63 characters."""

UNSAYABLE = psycopg.DataError, UnicodeEncodeError
"""What a statement fails with that holds something which PostgreSQL cannot."""

T = TypeVar("T")


class _Connection(psycopg.Connection[TupleRow]):
    """A connection that waits for the server until `give_up_at` and no longer.

    A server that was stopped keeps its connections open: without this a call would wait for ever.
    """

    give_up_at = inf

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        return super().wait(self._until(gen), *arguments, **options)

    def _until(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= self.give_up_at:
                    raise Late
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class Link:
    """One connection to a schema of budgets, made when it is needed. For one thread at a time.

    Args:
        conninfo: As for libpq: a URL, or ``key=value`` pairs.
        schema: The schema.
        patience: Seconds to wait for an answer.
        pooled: Whether a pooler gives each transaction another connection; None: found out.

    Attributes:
        pooled: As given, or as found out; None before that.
    """

    def __init__(self, conninfo: str, schema: str, patience: float, *, pooled: bool | None) -> None:
        if not NAME.fullmatch(schema):
            raise ValueError(
                f"schema must be up to 30 lower-case letters, digits and underscores, "
                f"got {schema!r}"
            )
        self.where, known = place(conninfo, schema)
        options: dict[str, Any] = {
            # libpq counts whole seconds, from 2 on.
            "connect_timeout": max(2, round(patience)),
            "application_name": "tokenfence",
        }
        self._conninfo = make_conninfo(
            conninfo, **{k: v for k, v in options.items() if k not in known}
        )
        self.schema = schema
        self._patience = patience
        self.pooled = pooled
        self._was_open = False
        self._open: list[_Connection] = []  # one or none
        finalize(self, _close, self._open)

    def copy(self) -> "Link":
        """Another one to the same schema."""
        return Link(self._conninfo, self.schema, self._patience, pooled=self.pooled)

    def sql(self, text: str) -> str:
        """SQL that is written for the schema ``tokenfence``, for this one."""
        return re.sub(r"\btokenfence(?=[._'])", self.schema, text)

    def run(self, query: str | Composed, parameters: tuple[Any, ...] = ()) -> list[TupleRow]:
        """One statement, in a transaction of its own.

        Args:
            query: Written by `sql`.
            parameters: Of the statement.

        Returns:
            The rows.

        Raises:
            Unreachable: No answer came.
            StoreError: The database cannot be used before somebody has seen to it.
            psycopg.DataError: It holds something that PostgreSQL cannot (one of `UNSAYABLE`).
        """
        return self.use(lambda connection: _rows(connection.execute(query, parameters)))

    def use(self, work: Callable[[_Connection], T]) -> T:
        """Do something with the connection; raises as `run`. It is closed if that fails."""
        try:
            if not self._open:
                self._connect()
            [connection] = self._open
            connection.give_up_at = time.monotonic() + self._patience
            return work(connection)
        except UNSAYABLE:
            raise
        except (psycopg.Error, Late) as error:
            self.close()
            raise explained(self.where, error) from error
        except BaseException:  # interrupted in the midst of something
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next statement makes another one."""
        _close(self._open)

    def forget(self) -> None:
        """As `close`, in a forked process, whose parent goes on using the connection."""
        while self._open:
            connection = self._open.pop()
            os.close(connection.pgconn.socket)
            _of_parents.append(connection)

    def _connect(self) -> None:
        try:
            connection = _Connection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
        except psycopg.Error as error:
            # Else the socket stays open until a garbage collection, and its server serves it later.
            clear_frames(error.__traceback__)
            raise
        self._open.append(connection)
        connection.give_up_at = time.monotonic() + self._patience
        if self.pooled is None:
            self.pooled = _is_pooled(connection)
        if not self.pooled:
            connection.prepare_threshold = 0
        # Tables that have disappeared meanwhile are not made again: that would forget what was
        # spent.
        version = self._version(connection)
        if version is None and not self._was_open:
            self._make(connection)
            version = self._version(connection)
        if version != VERSION:
            raise StoreError(self.where, _other_version(version))
        self._was_open = True

    def _version(self, connection: _Connection) -> int | None:
        if not self._is_made(connection):
            return None
        [(version,)] = connection.execute(self.sql("SELECT version FROM tokenfence.about"))
        return int(version)

    def _is_made(self, connection: _Connection) -> bool:
        # Not by to_regclass: that may remember what was so before we waited for others.
        [(found,)] = connection.execute(
            "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = 'about')",
            (self.schema,),
        )
        return bool(found)

    def _make(self, connection: _Connection) -> None:
        """Make the schema, if nobody else is faster."""
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        with connection.transaction():
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
                (f"tokenfence {self.schema}",),
            )
            if self._is_made(connection):
                return
            # IF NOT EXISTS wants the right to make schemas even if there is nothing to make.
            [(there,)] = connection.execute(
                "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", (self.schema,)
            )
            if not there:
                connection.execute(f"CREATE SCHEMA {self.schema}")
            for part in PARTS:
                connection.execute(self.sql(_text(part)), prepare=False)
            connection.execute(self.sql(f"INSERT INTO tokenfence.about VALUES ({VERSION})"))


def place(conninfo: str, schema: str = "tokenfence") -> tuple[str, dict[str, Any]]:
    """How errors name a database, without its password; and all that its address says.

    Args:
        conninfo: As for libpq.
        schema: The schema; named if it is not the usual one.

    Raises:
        ValueError: It is no address of a PostgreSQL database.

    Example:
        >>> place("postgresql://acme:secret@db.example.com/app")[0]
        'postgresql://acme@db.example.com/app'
    """
    try:
        known: dict[str, Any] = conninfo_to_dict(conninfo)
    except psycopg.Error:
        # Not what libpq says of it: that may show the password.
        raise ValueError(
            "this is no address of a PostgreSQL database: give "
            "'postgresql://user@host:5432/database', or 'host=... dbname=...'"
        ) from None
    user = f"{known['user']}@" if "user" in known else ""
    host, port = str(known.get("host", "")), str(known.get("port", ""))
    hosts, database = host.split(","), str(known.get("dbname", ""))
    # A user ends at the first '@' or '/', so these would be parts of a password. (A socket may
    # begin with one.)
    if any("@" in one[1:] for one in [*hosts, database]) or not re.fullmatch(r"[0-9,]*", port):
        raise ValueError(
            "this address of a PostgreSQL database has an '@' or a port where none can be: write "
            "'@', '/', ':' and '%' in a user or a password as %40, %2F, %3A and %25"
        )
    host = ",".join([f"[{one}]" if ":" in one else one for one in hosts])
    where = f"postgresql://{user}{host}{f':{port}' if port else ''}/{database}"
    return where if schema == "tokenfence" else f"{where} (schema {schema})", known


def _close(connections: list[_Connection]) -> None:
    while connections:
        connections.pop().close()


_of_parents: list[Any] = []
"""Connections of the processes that this one was forked from: never to be closed from here."""

_texts: dict[str, str] = {}
_reading = OwnLock()


def _text(part: str) -> str:
    with _reading:
        if part not in _texts:
            _texts[part] = files(__package__).joinpath("sql", f"{part}.sql").read_text("utf-8")
        return _texts[part]


def _is_pooled(connection: _Connection) -> bool:
    """Whether there is a pooler, which gives a connection a number of its own.

    Behind one that gives each transaction another connection, what is prepared on one would be
    looked for on another, where another client may have prepared something else by the same name.
    """
    [(number,)] = connection.execute("SELECT pg_backend_pid()")
    return bool(number != connection.info.backend_pid)


def _rows(cursor: Any) -> list[TupleRow]:
    rows: list[TupleRow] = cursor.fetchall() if cursor.description else []
    return rows


def _other_version(version: int | None) -> str:
    if version is None:
        return "its tables have disappeared since they were made; restore a copy"
    return (
        f"its schema was made by another version of this library (its format is {version}, known "
        f"here is {VERSION}); use that version, or another schema"
    )

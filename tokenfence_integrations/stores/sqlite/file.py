"""A file of budgets: its tables, made or brought up to date as it is opened, and its WAL."""

import os
import sqlite3

from tokenfence_integrations.stores.sqlite.errors import Damaged

__all__ = ["VERSION", "checkpoint", "opened"]

VERSION = 4
"""Of the tables; kept as the file's ``user_version``."""

MIGRATED = 3
"""The oldest version whose tables are made into these."""

LONG_WAL = 20_000
"""Pages in the WAL from which a checkpoint makes writers wait, so that it ends some time."""

HELD = "held TEXT NOT NULL DEFAULT ''"

TABLES = f"""
-- held: calls in flight whose path begins here, if they are few: a line for each, with the columns
-- of a reservation but idle, which they are not. So a call changes this one page, by one statement.
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- the id of one that was dropped is given to no other
    name TEXT NOT NULL UNIQUE,
    given TEXT NOT NULL,
    limit_usd INTEGER, limit_calls INTEGER, limit_tokens INTEGER,
    limit_input INTEGER, limit_output INTEGER,
    spent_usd INTEGER NOT NULL DEFAULT 0, spent_calls INTEGER NOT NULL DEFAULT 0,
    spent_input INTEGER NOT NULL DEFAULT 0, spent_output INTEGER NOT NULL DEFAULT 0,
    reserved_usd INTEGER NOT NULL DEFAULT 0, reserved_calls INTEGER NOT NULL DEFAULT 0,
    reserved_input INTEGER NOT NULL DEFAULT 0, reserved_output INTEGER NOT NULL DEFAULT 0,
    uncertain_usd INTEGER NOT NULL DEFAULT 0, uncertain_calls INTEGER NOT NULL DEFAULT 0,
    uncertain_input INTEGER NOT NULL DEFAULT 0, uncertain_output INTEGER NOT NULL DEFAULT 0,
    {HELD}
);
-- id: an owner.
CREATE TABLE leases (id INTEGER PRIMARY KEY, lease REAL NOT NULL);
-- What is reserved by all other calls. accounts: the ids of the path, leaf first. idle: nothing is
-- spent of it yet.
CREATE TABLE reservations (
    owner INTEGER NOT NULL, key INTEGER NOT NULL, accounts TEXT NOT NULL,
    usd INTEGER NOT NULL, calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
    at REAL NOT NULL, what TEXT NOT NULL, idle INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;
-- What is uncertain. accounts: as above, but for those that were reset or dropped since. owner and
-- key: whose true end may still come, because it was its lease that ended; else NULL.
CREATE TABLE charges (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- nobody who settles one by hand must settle another
    owner INTEGER, key INTEGER, accounts TEXT NOT NULL,
    usd INTEGER NOT NULL, calls INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
    at REAL NOT NULL, what TEXT NOT NULL,
    UNIQUE (owner, key)
);
CREATE TABLE anchors (account TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""

# Renamed, so that a process that still runs the version before neither renews a lease nor ends one:
# it would overlook what is held in the accounts' rows.
MIGRATION = f"""
ALTER TABLE accounts ADD COLUMN {HELD};
ALTER TABLE owners RENAME TO leases;
PRAGMA user_version = {VERSION};
"""


def opened(path: str, *, make: bool) -> sqlite3.Connection:
    """A connection to a file of budgets; it waits for nobody who has locked the file.

    Args:
        path: The file.
        make: Whether to make the file, and its tables, if there are none.

    Raises:
        sqlite3.Error: The file cannot be opened.
        Damaged: It is no file of budgets.
    """
    if not make and not os.path.exists(path):
        raise Damaged("it has disappeared since it was opened; restore a copy")
    # No waiting in here: who waits for a locked file must not hold the store's own lock.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, make=make)
    except BaseException:
        connection.close()
        raise
    return connection


def checkpoint(path: str) -> None:
    """Move what is in the WAL to the file: this waits for the disk, and holds up nobody.

    Raises:
        sqlite3.Error: It cannot be done now.
    """
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        move = "PRAGMA wal_checkpoint"
        _, pages, moved = connection.execute(move).fetchone()
        if pages > LONG_WAL and moved < pages:
            _, pages, moved = connection.execute(f"{move}(RESTART)").fetchone()
        if pages == moved:
            # The first to write now begins the WAL anew, and waits for the disk: we do.
            # The number that is there, since another process may have just migrated it.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA user_version = {_version(connection)}")
            connection.execute("COMMIT")
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection, *, make: bool) -> None:
    if not make and _version(connection) == 0:
        # Before anything is written: somebody may be about to put a copy in its place.
        raise Damaged("its tables have disappeared since it was opened; restore a copy")
    # A commit writes whole pages, and ours hold a row or two that have changed.
    connection.execute("PRAGMA page_size = 1024")
    [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Damaged("its file system has no shared memory, which SQLite's WAL mode needs")
    # A commit then waits for no disk: it survives the process, not a power cut. Checkpoints,
    # which do wait, are made by the store's own thread.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA temp_store = MEMORY")
    if _version(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _bring_up_to_date(connection, make=make)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _bring_up_to_date(connection: sqlite3.Connection, *, make: bool) -> None:
    version = _version(connection)  # another process may have been quicker
    if make and version == 0:
        if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise Damaged("it is a database of another application")
        _run(connection, TABLES)
    elif version == MIGRATED:
        # A process that still runs the version before may have put its number back since.
        found = "SELECT 1 FROM sqlite_master WHERE name = 'leases'"
        done = connection.execute(found).fetchone()
        _run(connection, f"PRAGMA user_version = {VERSION}" if done else MIGRATION)
    elif version != VERSION:
        raise Damaged(
            f"it was written by another version of this library (its format is {version}, known "
            f"here is {VERSION})"
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _run(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        connection.execute(statement)

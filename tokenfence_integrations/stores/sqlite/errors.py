"""What SQLite's errors mean for a file of budgets, and what to do about them."""

import sqlite3

__all__ = ["Damaged", "is_busy", "is_unwritten", "reason"]


class Damaged(Exception):
    """The file is not one of ours, or not any more; the message says what it is."""


def is_busy(error: BaseException) -> bool:
    """Whether another connection has locked the file."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_unwritten(error: BaseException) -> bool:
    """Whether a statement that failed so has surely changed nothing, nor was about to commit."""
    return is_busy(error) or isinstance(error, (LookupError, OverflowError, ValueError))


_REASONS = {
    sqlite3.SQLITE_NOTADB: "it is damaged, or not a database; restore a copy",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a copy",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "this process may not write it; give it the permission",
    sqlite3.SQLITE_CANTOPEN: (
        "it cannot be opened; its folder must exist, and this process must be able to write there"
    ),
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
}


def reason(error: sqlite3.Error) -> str:
    """What is wrong with a file, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    known = _REASONS.get(code & 0xFF)
    return str(error) if known is None else f"{known} ({error})"

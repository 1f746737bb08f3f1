"""The books in a file of budgets, and each command as the SQL that it is."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    AccountState,
    Adjust,
    Amount,
    Anchor,
    Book,
    Charge,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Path,
    Reserve,
    Resolve,
    SetLimits,
)
from tokenfence_integrations.stores.noting import Change
from tokenfence_integrations.stores.numbers import MOST
from tokenfence_integrations.stores.sqlite.file import opened
from tokenfence_integrations.stores.sqlite.statements import (
    ADJUST,
    AMOUNT,
    DELETE,
    EXPIRED,
    INSERT,
    INSERT_ACCOUNT,
    INSERT_CHARGE,
    KEEP,
    KEPT,
    LIMIT,
    LIMIT_ANEW,
    RESERVE_IN_ROW,
    RESERVED,
    SETTLE_IN_ROW,
    STATE,
    adding,
    reserving,
    resetting,
    selecting,
    settling,
)

__all__ = ["Books"]

Known: TypeAlias = tuple[tuple[int, ...], str]
"""The ids of a path's accounts, and the same as text."""

Line: TypeAlias = tuple[str, Amount]
"""A call in flight as it stands in its account's row, and what is reserved for it."""

REMEMBERED = 10_000
"""How many paths are kept with their ids."""

CROWDED_FOR = 50
"""Reservations in such an account for which its row is not tried again: a try that fails costs as
much as a transaction."""

NO_CALL = None, None
"""The owner and key of a charge whose call has ended."""


class Books:
    """One connection to a file of budgets. It is used by one thread at a time.

    Attributes:
        closed: Whether it is closed: by its store, or by a garbage collection.

    Args:
        path: The file.
        owner: Who makes the reservations of this connection.
        make: Whether to make the tables if there are none.

    Raises:
        sqlite3.Error: The file cannot be opened.
        Damaged: It is no file of budgets.
    """

    def __init__(self, path: str, owner: int, *, make: bool) -> None:
        self.owner = owner
        self.path = path
        self.closed = False
        self._paths: dict[Path, Known] = {}
        self._lines: dict[int, Line] = {}
        self._crowded: dict[int, int] = {}
        self._made_some = False
        self.connection = opened(path, make=make)
        self.execute: Callable[..., sqlite3.Cursor] = self.connection.execute
        # For what yields no rows: a cursor made for each statement costs as much as some of them.
        self._run = self.connection.cursor().execute
        self._file = os.stat(path)

    def is_current(self) -> bool:
        """Whether the file is still the one that was opened, and has lost nothing of its length.

        SQLite notices neither: it goes on with what it has in its cache, and in a file that others
        do not see.
        """
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        was, self._file = self._file, now
        return now.st_ino == was.st_ino and now.st_size >= was.st_size and now.st_dev == was.st_dev

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self.connection.close()

    def __del__(self) -> None:
        if hasattr(self, "connection"):  # else the file could not be opened
            self.close()

    def begin(self) -> None:
        """Begin a transaction, or raise at once that the file is locked.

        It may be left out if all that is to be done is one `reserve` or `end` of one account: that
        is one statement, which is a transaction by itself, or it begins one.
        """
        self._run("BEGIN IMMEDIATE")

    def _begin_if_not(self) -> None:
        if not self.connection.in_transaction:
            self.begin()

    @property
    def in_transaction(self) -> bool:
        """Whether one was begun, and has not ended."""
        return self.connection.in_transaction

    def commit(self) -> None:
        """End the transaction, if one was begun."""
        if self.connection.in_transaction:
            self._run("COMMIT")
        self._made_some = False

    def roll_back(self) -> None:
        """Undo what was begun, if anything is left of it."""
        if self._made_some:  # their ids will be given to others
            self._made_some = False
            self._paths.clear()
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    # Looking

    def known(self, path: Path) -> Known:
        """The ids of a path's accounts; `KeyError` if one was never opened."""
        known = self._paths.get(path)
        if known is None:
            ids = tuple(map(self._id, path))
            if len(self._paths) >= REMEMBERED:
                self._paths.clear()
                self._crowded.clear()
            known = self._paths[path] = ids, ",".join(map(str, ids))
        return known

    def _left(self, path: Path) -> Known:
        """The same of those that are left: one may be dropped before a late end comes."""
        known = self._paths.get(path)
        if known is None:
            there = [name for name in path if self._account(name) is not None]
            known = self.known(tuple(there))
        return known

    def _id(self, name: str) -> int:
        row = self.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return int(row[0])

    def states(self, path: Path) -> tuple[AccountState, ...]:
        """The states of a path."""
        ids, _ = self.known(path)
        rows = self.execute(selecting(len(ids)), ids).fetchall()
        by_id = {row[0]: AccountState._make(row[1:]) for row in rows}
        if len(by_id) < len(ids):  # another process has dropped one, and perhaps made it again
            del self._paths[path]
            return self.states(path)
        return tuple([by_id[number] for number in ids])

    def version(self) -> int:
        """A number that is another one once another connection has changed the file."""
        return int(self.execute("PRAGMA data_version").fetchone()[0])

    def charges(self) -> tuple[Charge, ...]:
        """What is uncertain, oldest first."""
        rows = self.execute(
            f"SELECT id, accounts, {AMOUNT}, at, what FROM charges WHERE accounts != '' "
            f"ORDER BY at, id"
        ).fetchall()
        charges = [
            Charge(str(number), self._names(accounts), Amount(*amount), at, what)
            for number, accounts, *amount, at, what in rows
        ]
        return tuple([charge for charge in charges if charge.path])

    def accounts(self, budget: str | None) -> tuple[str, ...]:
        """The names of all accounts, or of those of a budget and below it."""
        if budget is None:
            rows = self.execute("SELECT name FROM accounts ORDER BY name")
        else:  # each by the index of the names, whose next character after "/" is "0"
            rows = self.execute(
                "SELECT name FROM accounts WHERE name = ? OR (name > ? AND name < ?) "
                "OR (name > ? AND name < ?) ORDER BY name",
                (budget, f"{budget}/", f"{budget}0", f"{budget}~", f"{budget}\x7f"),
            )
        return tuple([name for (name,) in rows.fetchall()])

    def _names(self, accounts: str) -> Path:
        name = "SELECT name FROM accounts WHERE id = ?"
        rows = [self.execute(name, (number,)).fetchone() for number in _ids(accounts)]
        return tuple([row[0] for row in rows if row is not None])

    def is_open(self, command: Open) -> bool:
        """Whether an account exists, and has the limits that it is to have."""
        row = self._account(command.account)
        return row is not None and not _changes(command.limits, row[1])

    def _account(self, name: str) -> Any:
        return self.execute("SELECT id, given FROM accounts WHERE name = ?", (name,)).fetchone()

    # Changing: all below runs in a transaction

    def open(self, command: Open) -> bool:
        """Make an account, or give it other limits; whether it was made."""
        name, limits = command
        row, given = self._account(name), _as_text(limits)
        if row is None:
            self.execute(INSERT_ACCOUNT, (name, given, *limits))
            self._made_some = True
            return True
        if _changes(limits, row[1]):
            self.execute(LIMIT_ANEW, (given, *limits, row[0]))
        return False

    def reserve(self, command: Reserve, now: float) -> bool:
        """Reserve in all accounts of a path or in none; whether it was done."""
        path, key, amount, force, times, what, idle = command
        ids, text = self.known(path)
        usd, calls, into, out = amount
        line = None
        if force:
            self._begin_if_not()
            self._change(ids, Change(reserved=amount))
        else:
            room = usd, calls, into, out, into + out
            if times != 1:
                room = tuple([min(part * times, MOST) for part in room])  # type: ignore[assignment]
            leaf, full = ids[0], False
            if not (idle or self._is_crowded(leaf) or "\n" in what or "\0" in what):
                line = f"\n{self.owner} {key} {text} {usd} {calls} {into} {out} {now.hex()} {what}"
                if self._run(RESERVE_IN_ROW, (line, *amount, leaf, *room)).rowcount:
                    ids = ids[1:]
                else:
                    line, full = None, True
            if ids:
                self._begin_if_not()
                done = self._run(reserving(len(ids)), amount + ids + room)
                if done.rowcount != len(ids):
                    return False
            if full:  # and not for lack of room in its limits
                self._crowded[leaf] = CROWDED_FOR
        if line is not None:
            self._lines[key] = line, amount
            return True
        self._run(INSERT, (self.owner, key, text, usd, calls, into, out, now, what, idle))
        return True

    def _is_crowded(self, account: int) -> bool:
        left = self._crowded.pop(account, 0)
        if left > 1:
            self._crowded[account] = left - 1
        return left > 0

    def end(self, command: End, amount: Amount) -> bool:
        """Replace a reservation of this owner; whether there was one.

        Args:
            command: How it ends.
            amount: What is reserved as far as known.
        """
        path, key, spent, uncertain = command
        ids, text = self._left(path)
        call = self.owner, key
        is_certain = uncertain is NOTHING or uncertain == NOTHING
        line = self._lines.pop(key, None)
        if line and ids and is_certain and self._end_in_row(line, ids, spent):
            return True
        self._begin_if_not()
        kept: Any = None
        if not is_certain:
            self._move_out(ids[:1])
            kept = self.execute(KEPT, call).fetchone()
        if self._run(DELETE, call + amount).rowcount:
            self._run(settling(len(ids)), spent + amount + ids)
        elif reserved := self._reserved(call, ids):  # somebody has drawn from it just now
            self._run(DELETE, call + reserved)
            self._run(settling(len(ids)), spent + reserved + ids)
        else:
            expired = self.execute(EXPIRED, call).fetchone()
            if expired is None:
                return False
            # Its lease was over, and somebody has charged it as uncertain: now the truth is known.
            number, accounts, *_, at, what = expired
            kept = at, what
            self._discharge(number, accounts, NOTHING)
            self._change(ids, Change(spent=spent))
        if not is_certain:
            self._charge(NO_CALL, text, uncertain, kept)
        return True

    def _end_in_row(self, line: Line, ids: tuple[int, ...], spent: Amount) -> bool:
        text, amount = line
        leaf, above = ids[:1], ids[1:]
        if not self._run(SETTLE_IN_ROW, (text, *spent, *amount, *leaf, text)).rowcount:
            return False
        if above:
            self._run(settling(len(above)), spent + amount + above)
        return True

    def _move_out(self, ids: Iterable[int]) -> None:
        """Give the calls in flight that are in these accounts' rows rows of their own.

        Whatever is rare is done with those alone.
        """
        for number in ids:
            row = self.execute("SELECT held FROM accounts WHERE id = ?", (number,)).fetchone()
            if row is None or not row[0]:
                continue
            for line in row[0].split("\n")[1:]:
                owner, key, text, *amount, at, what = line.split(" ", 8)
                call = int(owner), int(key)
                self.execute(
                    INSERT, (*call, text, *map(int, amount), float.fromhex(at), what, False)
                )
            self.execute("UPDATE accounts SET held = '' WHERE id = ?", (number,))

    def draw(self, command: Draw, now: float) -> bool:
        """Book a part of a reservation of this owner, and keep another; whether there was one."""
        path, key, spent, uncertain, kept, what = command
        ids, text = self.known(path)
        call = self.owner, key
        reserved = self._reserved(call, ids)
        if reserved is not None:
            self.execute(KEEP, kept + call)
            more = Amount(*[new - old for new, old in zip(kept, reserved, strict=True)])
        else:
            expired = self.execute(EXPIRED, call).fetchone()
            if expired is None:
                return False
            number, accounts, *charged, at, reserved_for = expired
            self._discharge(number, accounts, NOTHING)
            if any(charged) and not accounts:  # it was forgotten by a reset
                return False
            self._run(INSERT, (*call, text, *kept, at, reserved_for, False))
            more = kept
        self._change(ids, Change(spent, more))
        if uncertain != NOTHING:
            self._charge(NO_CALL, text, uncertain, (now, what))
        return True

    def _reserved(self, call: tuple[int, int], ids: tuple[int, ...]) -> Amount | None:
        row = self.execute(RESERVED, call).fetchone()
        if row is None:
            self._move_out(ids[:1])
            row = self.execute(RESERVED, call).fetchone()
        return None if row is None else Amount(*row)

    def _charge(
        self,
        call: tuple[int | None, int | None],
        accounts: str,
        amount: Amount,
        kept: Sequence[Any],
    ) -> None:
        self.execute(INSERT_CHARGE, (*call, accounts, *amount, *kept))
        self._change(_ids(accounts), Change(uncertain=amount))

    def _discharge(self, number: int, accounts: str, spent: Amount) -> None:
        found = f"SELECT {AMOUNT} FROM charges WHERE id = ?"
        minus = Amount(*[-part for part in self.execute(found, (number,)).fetchone()])
        self.execute("DELETE FROM charges WHERE id = ?", (number,))
        self._change(_ids(accounts), Change(spent=spent, uncertain=minus))

    def resolve(self, command: Resolve) -> bool:
        """Replace a charge by what the call cost; whether there was one."""
        # As text: "7.0" is the number 7 to SQLite, and names no charge.
        found = "SELECT id, accounts FROM charges WHERE CAST(id AS TEXT) = ? AND accounts != ''"
        row = self.execute(found, (command.id,)).fetchone()
        if row is None:
            return False
        number, accounts = row
        self._discharge(number, accounts, command.spent)
        return True

    def anchor(self, command: Anchor) -> tuple[bool, float]:
        """Keep the first moment given for an account; whether this was it, and the one kept."""
        first = self.execute("INSERT OR IGNORE INTO anchors VALUES (?, ?)", command).rowcount == 1
        [at] = self.execute(
            "SELECT at FROM anchors WHERE account = ?", (command.account,)
        ).fetchone()
        return first, at

    def book(self, command: Book) -> None:
        """Add to what is spent."""
        self._change(self.known(command.path)[0], Change(spent=command.spent))

    def adjust(self, command: Adjust) -> None:
        """Change the limits of the first account, where there are any."""
        path, by, tokens = command
        more = by.usd, by.calls, tokens, by.input_tokens, by.output_tokens
        self.execute(ADJUST, (*more, self.known(path)[0][0]))

    def set_limits(self, command: SetLimits) -> None:
        """Give the first account other limits, whatever it was opened with."""
        path, limits = command
        self.execute(LIMIT, (*limits, self.known(path)[0][0]))

    def reset(self, accounts: Path) -> tuple[AccountState, ...]:
        """Forget what is spent and uncertain; the states before."""
        before = self.states(accounts)
        ids, _ = self.known(accounts)
        self.execute(resetting(len(ids)), ids)
        self._forget_charges(ids)
        return before

    def _forget_charges(self, ids: Sequence[int]) -> None:
        for number, accounts in self.execute("SELECT id, accounts FROM charges").fetchall():
            left = ",".join([str(each) for each in _ids(accounts) if each not in ids])
            if left != accounts:
                self.execute("UPDATE charges SET accounts = ? WHERE id = ?", (left, number))
        # One whose true end may come is kept for it.
        self.execute("DELETE FROM charges WHERE accounts = '' AND owner IS NULL")

    def drop(self, command: Drop) -> bool:
        """Forget an account in which nothing is reserved; whether it was done."""
        found = f"SELECT id, {STATE} FROM accounts WHERE name = ?"
        row = self.execute(found, command).fetchone()
        state = None if row is None else AccountState._make(row[1:])
        if state is None or state.reserved != NOTHING:
            return False
        self._move_out(row[:1])
        self.execute("DELETE FROM accounts WHERE id = ?", row[:1])
        if state.uncertain != NOTHING:
            self._forget_charges(row[:1])
        self._paths.clear()
        return True

    # Leases

    def renew(self, until: float) -> None:
        """Say that this owner lives."""
        self.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (self.owner, until))

    def leave(self) -> None:
        """Say that this owner is gone, and holds nothing."""
        self.execute("DELETE FROM leases WHERE id = ?", (self.owner,))

    def any_expired(self, now: float) -> bool:
        """Whether another owner's lease is over."""
        found = self.execute(
            "SELECT 1 FROM leases WHERE lease <= ? AND id != ? LIMIT 1", (now, self.owner)
        )
        return found.fetchone() is not None

    def expire(self, now: float) -> None:
        """Charge as uncertain what is held by other owners whose lease is over, unless idle."""
        over = "SELECT id FROM leases WHERE lease <= ? AND id != ?"
        owners = self.execute(over, (now, self.owner)).fetchall()
        if owners:  # a look at all accounts: once, for whoever they are
            holding = self.execute("SELECT id FROM accounts WHERE held != ''").fetchall()
            self._move_out([number for (number,) in holding])
        for (owner,) in owners:
            held = "SELECT * FROM reservations WHERE owner = ?"
            for _, key, text, *parts, at, what, idle in self.execute(held, (owner,)).fetchall():
                amount, minus = Amount(*parts), Amount(*[-part for part in parts])
                self._change(_ids(text), Change(reserved=minus))
                if idle:
                    continue
                charged = "" if amount == NOTHING else text
                self._charge((owner, key), charged, amount, (at, what))
            self.execute("DELETE FROM reservations WHERE owner = ?", (owner,))
            self.execute("DELETE FROM leases WHERE id = ?", (owner,))

    def _change(self, ids: Sequence[int], change: Change) -> None:
        spent, reserved, uncertain = change
        if ids:
            self.execute(adding(len(ids)), (*spent, *reserved, *uncertain, *ids))


def _ids(accounts: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, accounts.split(","))))


def _as_text(limits: Limits) -> str:
    return ",".join("" if limit is None else str(limit) for limit in limits)


def _changes(limits: Limits, given: str) -> bool:
    return limits != UNLIMITED and _as_text(limits) != given

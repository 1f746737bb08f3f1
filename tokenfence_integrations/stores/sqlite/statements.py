"""The statements by which accounts in a file are read and changed."""

from functools import cache

from tokenfence_integrations.stores.base import AccountState

__all__ = [
    "ADJUST",
    "AMOUNT",
    "DELETE",
    "EXPIRED",
    "INSERT",
    "INSERT_ACCOUNT",
    "INSERT_CHARGE",
    "KEEP",
    "KEPT",
    "LIMIT",
    "LIMIT_ANEW",
    "RESERVED",
    "RESERVE_IN_ROW",
    "SETTLE_IN_ROW",
    "STATE",
    "adding",
    "reserving",
    "resetting",
    "selecting",
    "settling",
]

CROWDED = 500
"""Characters of calls in flight in an account's row from which on no other is put there: some
seven calls. The row still fits in one page with them."""

STATE = ", ".join(AccountState._fields)

AMOUNT = "usd, calls, input, output"

_LIMITS = AccountState._fields[:5]

INSERT_ACCOUNT = (
    f"INSERT INTO accounts (name, given, {', '.join(_LIMITS)}) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
LIMIT = f"UPDATE accounts SET {', '.join(f'{limit} = ?' for limit in _LIMITS)} WHERE id = ?"
LIMIT_ANEW = LIMIT.replace("SET ", "SET given = ?, ")
ADJUST = f"UPDATE accounts SET {', '.join(f'{each} = {each} + ?' for each in _LIMITS)} WHERE id = ?"

INSERT = "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
RESERVED = f"SELECT {AMOUNT} FROM reservations WHERE owner = ? AND key = ?"
KEEP = (
    "UPDATE reservations SET usd = ?, calls = ?, input = ?, output = ?, idle = 0 "
    "WHERE owner = ? AND key = ?"
)
KEPT = "SELECT at, what FROM reservations WHERE owner = ? AND key = ?"
DELETE = (
    "DELETE FROM reservations WHERE owner = ? AND key = ? "
    "AND usd = ? AND calls = ? AND input = ? AND output = ?"
)
INSERT_CHARGE = "INSERT INTO charges VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
EXPIRED = f"SELECT id, accounts, {AMOUNT}, at, what FROM charges WHERE owner = ? AND key = ?"


@cache
def selecting(accounts: int) -> str:
    return f"SELECT id, {STATE} FROM accounts WHERE {_among(accounts)}"


@cache
def adding(accounts: int) -> str:
    columns = AccountState._fields[5:]
    added = ", ".join(f"{column} = {column} + ?" for column in columns)
    return f"UPDATE accounts SET {added} WHERE {_among(accounts)}"


@cache
def settling(accounts: int, more: str = "") -> str:
    spent, reserved = AccountState._fields[5:9], AccountState._fields[9:13]
    added = ", ".join(f"{column} = {column} + ?" for column in spent)
    taken = ", ".join(f"{column} = {column} - ?" for column in reserved)
    return f"UPDATE accounts SET {more}{added}, {taken} WHERE {_among(accounts)}"


@cache
def resetting(accounts: int) -> str:
    columns = [c for c in AccountState._fields if c.startswith(("spent", "uncertain"))]
    none = ", ".join(f"{column} = 0" for column in columns)
    return f"UPDATE accounts SET {none} WHERE {_among(accounts)}"


@cache
def reserving(accounts: int, more: str = "") -> str:
    """Reserves in those accounts of a path that have room: if not in all, it has to be undone."""
    columns = [c for c in AccountState._fields if c.startswith("reserved")]
    added = ", ".join(f"{column} = {column} + ?" for column in columns)
    used = {
        quantity: f"spent_{quantity} + reserved_{quantity} + uncertain_{quantity}"
        for quantity in ("usd", "calls", "input", "output")
    }
    used["tokens"] = f"{used['input']} + {used['output']}"
    fits = " AND ".join(
        f"(limit_{quantity} IS NULL OR {used[quantity]} + ? <= limit_{quantity})"
        for quantity in ("usd", "calls", "input", "output", "tokens")
    )
    return f"UPDATE accounts SET {more}{added} WHERE {_among(accounts)} AND {fits}"


def _among(accounts: int) -> str:
    return "id = ?" if accounts == 1 else f"id IN ({', '.join('?' * accounts)})"


RESERVE_IN_ROW = reserving(1, "held = held || ?, ") + f" AND length(held) < {CROWDED}"
SETTLE_IN_ROW = settling(1, "held = replace(held, ?, ''), ") + " AND instr(held, ?)"

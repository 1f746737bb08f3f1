"""What the errors of a PostgreSQL server mean, and what to do about them."""

import psycopg

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.stores.remote.wire import Unreachable

__all__ = ["Late", "explained"]


class Late(Exception):
    """No answer came in time."""


def explained(where: str, error: Late | psycopg.Error) -> StoreError | Unreachable:
    """An error as somebody needs it who has to do something about it."""
    if isinstance(error, Late):
        return Unreachable("it does not answer; is it stopped, or overloaded?")
    said, code = _said(error), error.sqlstate
    if code is None:  # of the connection
        if "session is read-only" in said:  # a standby that may be promoted by and by
            return Unreachable(f"none of the given hosts is writable ({said})")
        for words, advice in _REFUSED.items():
            if words in said:
                return StoreError(where, f"{advice} ({said})")
        return Unreachable(f"it cannot be reached ({said}); is it running, at this address?")
    passing = _FOR_A_WHILE.get(code) or _FOR_A_WHILE.get(code[:2])
    if passing:
        return Unreachable(f"{passing} ({said})")
    advice = _FOR_SOMEBODY.get(code) or _FOR_SOMEBODY.get(code[:2], "it answers with an error")
    return StoreError(where, f"{advice} ({said})")


_REFUSED = {
    "authentication failed": "it rejects this user or password",
    "no password supplied": "it needs a password",
    "no pg_hba.conf entry": "it does not accept connections from this host; see its pg_hba.conf",
    "certificate": "its certificate, or the client's, is not accepted",
    "does not support SSL": "it has no TLS, which sslmode= asks for",
    "does not exist": "there is no such database, or no such role",
    "not permitted to log in": "this role may not log in",
}
"""What is said of a connection that was not made, and what to do; by words of it."""

_FOR_A_WHILE = {
    "08": "the connection broke",
    "40": "others changed the same rows at the same time",
    "53300": "it has no connections left; raise its max_connections, or use a pooler",
    "55P03": "others have locked its tables for longer than its lock_timeout",
    "57014": "it has taken longer than its statement_timeout",
    "57P01": "it is being stopped, or an administrator has ended the connection",
    "57P02": "it has crashed, and is restarting",
    "57P03": "it is starting",
}
"""By code, or by its class."""

_GONE = "its schema is missing or incomplete; restore a copy"

_FOR_SOMEBODY = {
    "25006": (
        "it is read-only; give the address of the primary: with several hosts in the URL, "
        "target_session_attrs=read-write finds it"
    ),
    "42501": (
        "this role lacks rights: the one that makes the schema needs CREATE on the database, "
        "others USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables"
    ),
    "3F": _GONE,
    "42703": _GONE,
    "42883": _GONE,
    "42P01": _GONE,
    "53100": "its disk is full",
    "53200": "it is out of memory",
}


def _said(error: psycopg.Error) -> str:
    lines = [error.diag.message_primary or str(error), error.diag.message_hint or ""]
    return "; ".join(" ".join(line.split()) for line in lines if line)

"""Accounts in PostgreSQL: exact among all processes of all machines, each batch one statement."""

from tokenfence_integrations.stores.postgres.link import Link
from tokenfence_integrations.stores.postgres.wire import PostgresWire
from tokenfence_integrations.stores.remote import RemoteStore

__all__ = ["PostgresStore"]

ATTEMPT = 10.0
"""Seconds that a server may take for an answer before the connection counts as broken."""


class PostgresStore(RemoteStore):
    """Accounts in a PostgreSQL database, for any number of processes on any machines.

    Tables and functions are in their own schema, which is made at first use. Each batch of commands
    is one call of one function, in one transaction: it locks the trees that it changes, checks
    their current state, and writes bigints. Leases follow the server's clock. A process that waits
    for room is notified with ``NOTIFY``.

    Args:
        conninfo: As for libpq: ``"postgresql://user@host:5432/database"``, or ``key=value`` pairs.
        schema: The schema: up to 30 lower-case letters, digits and underscores.
        lease: Seconds after which a process that gives no sign of life counts as dead; 1 or more.
            Default 60.
        timeout: Seconds to try to reach the server before a call fails; above 0. Default 30.
        pooled: Whether a pooler such as PgBouncer gives each transaction another connection. Then
            nothing is prepared, and waiting calls check once a second, since ``LISTEN`` cannot
            work. Default: True if a pooler is detected. Give False for one in session mode.

    Raises:
        ValueError: A number is out of range, or the address is not valid.

    Example:
        >>> store = PostgresStore("postgresql://acme@db.example.com/app")  # doctest: +SKIP
        >>> budget = Budget("$50", name="acme", store=store)  # doctest: +SKIP
    """

    def __init__(
        self,
        conninfo: str,
        *,
        schema: str = "tokenfence",
        lease: float = 60.0,
        timeout: float = 30.0,
        pooled: bool | None = None,
    ) -> None:
        self.link = Link(conninfo, schema, min(ATTEMPT, timeout), pooled=pooled)
        super().__init__(PostgresWire(self.link), lease=lease, timeout=timeout)

"""Budgets on a PostgreSQL server."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from socket import socket
from typing import NamedTuple

import psycopg

from tests.crashes.points import Held
from tests.crashes.servers import TIMEOUT, Servers, server_faults
from tests.crashes.worker import Stop, Worker
from tests.proxy import connected
from tests.stores.postgres_servers import Server, new_schema
from tokenfence_integrations.stores.base import Read
from tokenfence_integrations.stores.postgres import PostgresStore

__all__ = ["POSTGRES_FAULTS", "PostgresServers", "postgres_server"]


class Opening(NamedTuple):
    """How a worker opens its store."""

    port: int
    schema: str

    def __call__(self, stop: Stop) -> PostgresStore:
        # Without a word about encryption first, a worker's messages are those of its store.
        address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"
        return PostgresStore(f"{address}&gssencmode=disable", schema=self.schema, timeout=TIMEOUT)


class PostgresServers(Servers):
    """Budgets in a schema of their own."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.schema = new_schema()
        self._postgres = server

    def connect(self) -> socket:
        return connected(self._postgres.folder / ".s.PGSQL.5432")

    def opening_at(self, port: int) -> Opening:
        return Opening(port, self.schema)

    def held(self, worker: Worker) -> Held:
        query = (
            f"SELECT spent_usd, reserved_usd, uncertain_usd FROM {self.schema}.accounts "
            f"WHERE name = %s"
        )
        with psycopg.connect(self._postgres.url) as connection:
            [numbers] = connection.execute(query, (worker.account,))
        return Held(*numbers)

    def expire(self, workers: Sequence[Worker]) -> None:
        with psycopg.connect(self._postgres.url) as connection:
            connection.execute(f"UPDATE {self.schema}.owners SET lease = now() - interval '1 s'")
        store = PostgresStore(self._postgres.url, schema=self.schema)
        for worker in workers:
            store.execute(Read((worker.account,)))
        store.close()


@cache
def postgres_server() -> Server:
    return Server(18)


def _site(_: Path) -> PostgresServers:
    return PostgresServers(postgres_server())


POSTGRES_FAULTS = server_faults("PostgreSQL", _site)

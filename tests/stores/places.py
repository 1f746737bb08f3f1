"""Where accounts are that several processes share: one budget, by each kind of store."""

import time
from collections.abc import Callable
from itertools import count
from os import getpid
from pathlib import Path
from typing import Protocol

import psycopg
import redis

from tests.stores.factories import redis_url
from tests.stores.postgres_servers import address
from tokenfence_integrations import Budget
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.sqlite import SQLiteStore

LEASE = 60.0

_numbers = count(1)


class Place(Protocol):
    """A place for one budget, which is new.

    Attributes:
        url: Of the store.
        name: Of the budget.
    """

    url: str
    name: str

    def store(self) -> Store:
        """A store as a process of its own would open it."""

    def lapse(self) -> None:
        """From now on, the leases of all who have died are over."""


class SQLitePlace:
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/budgets.db"
        self.name = "acme"
        self._ahead = 0.0

    def store(self) -> Store:
        path = self.url.removeprefix("sqlite:///")
        return SQLiteStore(path, poll=0.01, clock=lambda: time.time() + self._ahead)

    def lapse(self) -> None:
        self._ahead = LEASE + 1


class RedisPlace:
    """A server."""

    def __init__(self, folder: Path) -> None:
        self.url = redis_url()
        self.name = f"acme-{getpid()}-{next(_numbers)}"

    def store(self) -> Store:
        return RedisStore(self.url)

    def lapse(self) -> None:
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            owners = f"tokenfence:{{{self.name}}}:owners"
            client.zadd(owners, dict.fromkeys(client.zrange(owners, 0, -1), 0), xx=True)


class PostgresPlace:
    """A database."""

    def __init__(self, folder: Path) -> None:
        self.url = address()
        self.name = f"acme-{getpid()}-{next(_numbers)}"

    def store(self) -> Store:
        return PostgresStore(self.url)

    def lapse(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute("UPDATE tokenfence.owners SET lease = now() - interval '1 second'")


PLACES: dict[str, Callable[[Path], Place]] = {
    "postgres": PostgresPlace,
    "redis": RedisPlace,
    "sqlite": SQLitePlace,
}


def later(place: Place) -> Budget:
    """The budget as it is once the lease of all who died is over."""
    place.lapse()
    return Budget(name=place.name, store=place.store())

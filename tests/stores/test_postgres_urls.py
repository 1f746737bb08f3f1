"""URLs of PostgreSQL servers: users, passwords, IPv6, sockets, and several hosts."""

import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

import psycopg
import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.stores.clusters import free_port, until
from tests.stores.factories import new_prefix
from tests.stores.postgres_servers import Server, has_ipv6, new_schema
from tokenfence_integrations import StoreError, Usage
from tokenfence_integrations.stores.base import Limits, Open
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.urls import open_store

USER, PASSWORD = "acme:1", "p@s/s:w?o#r%d&=é+[]"
"""With all that has a meaning of its own in a URL."""


class Place(NamedTuple):
    port: int
    server: Server


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server on both kinds of IP addresses and on a socket, where one user needs a password."""
    port = free_port()
    server = Server(18, port=port)
    rules = server.folder / "data" / "pg_hba.conf"
    wanted = [f'{kind} all "{USER}" {rest} scram-sha-256' for kind, rest in _KINDS]
    rules.write_text("\n".join([*wanted, rules.read_text("utf-8")]), "utf-8")
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("SELECT pg_reload_conf()")
        admin.execute(f"CREATE USER \"{USER}\" PASSWORD '{PASSWORD}'")
        admin.execute(f'CREATE DATABASE app OWNER "{USER}"')
    yield Place(port, server)
    server.stop()


_KINDS = [("local", ""), ("host", "127.0.0.1/32"), ("host", "::1/128")]


FORMS = [
    ("postgresql://{user}@127.0.0.1:{port}/app", "postgresql://{name}@127.0.0.1:{port}/app"),
    ("postgres://{user}@localhost:{port}/app", "postgresql://{name}@localhost:{port}/app"),
    ("postgresql://{user}@[::1]:{port}/app", "postgresql://{name}@[::1]:{port}/app"),
    (
        "postgresql://{user}@/app?host={folder}&port={port}",
        "postgresql://{name}@{folder}:{port}/app",
    ),
    (
        "postgresql://{user}@127.0.0.1:1,127.0.0.1:{port}/app",
        "postgresql://{name}@127.0.0.1,127.0.0.1:1,{port}/app",
    ),
]
"""How its address may be written, and how that is told."""


@pytest.mark.parametrize(
    ("form", "where"), [each for each in FORMS if "::1" not in each[0] or has_ipv6()]
)
def test_a_url_leads_to_its_server_user_and_database(place: Place, form: str, where: str) -> None:
    user = ":".join(quote(part, safe="") for part in (USER, PASSWORD))
    parts = {"port": place.port, "folder": place.server.folder, "user": user, "name": USER}
    store = open_store(form.format(**parts))
    budget = small(100, name=new_prefix(), store=store)
    spend(budget, 20)
    assert charged(budget) == (20, 0, 0)
    assert repr(store) == f"<PostgresStore {where.format(**parts)}>"
    assert not store.link.pooled  # type: ignore[attr-defined]
    store.close()  # type: ignore[attr-defined]


def test_another_password_is_an_error_at_once(place: Place) -> None:
    user = f"{quote(USER)}:{quote('sec/ret', safe='')}"
    store = PostgresStore(f"postgresql://{user}@127.0.0.1:{place.port}/app", timeout=900)
    with pytest.raises(StoreError, match="rejects this user or password") as caught:
        store.execute(Open("root", Limits()))
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://acme:sec@ret@example.org/app",
        "postgresql://acme:sec/ret@example.org/app",
        "postgresql://acme:sec@[::1/app",
        "postgresql://example.org:99999999/app?ssl_mode=sec",
    ],
)
def test_a_url_that_would_lead_elsewhere_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="address of a PostgreSQL") as caught:
        PostgresStore(url)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_a_standby_that_is_promoted_is_found_and_calls_in_flight_end_there() -> None:
    """With all hosts in the URL; what the primary has answered is there, for it waits for it."""
    ports = [free_port() for _ in range(2)]
    primary = Server(18, port=ports[0])
    with psycopg.connect(primary.url, autocommit=True) as admin:
        standby = Server(18, port=ports[1], copied=primary)
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        admin.execute("SELECT pg_reload_conf()")
        state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        until(lambda: admin.execute(state).fetchone() == (1,))
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    schema = new_schema()
    one, other = (PostgresStore(url, schema=schema) for _ in range(2))
    mine, theirs = (small(100, name="acme", store=store) for store in (one, other))
    held = reserve(theirs, 80).admit()
    waiting = threading.Thread(target=lambda: spend(mine, 50))
    waiting.start()
    until(lambda: bool(mine._tree.line))
    primary.stop()
    held.settle(Usage(0, 30))
    late = threading.Thread(target=lambda: spend(theirs, 10))  # while no server can be written
    late.start()
    late.join(0.2)
    assert late.is_alive()
    with psycopg.connect(standby.url, autocommit=True) as admin:
        admin.execute("SELECT pg_promote()")
    for thread in (waiting, late):
        thread.join(20)
        assert not thread.is_alive()
    charged(theirs)
    assert charged(mine) == (90, 0, 0)
    for store in (one, other):
        store.close()
    standby.stop()

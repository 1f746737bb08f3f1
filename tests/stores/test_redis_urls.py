"""URLs of Redis servers: users, passwords, databases, IPv6, sockets, and what is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import redis

from tests.engine.helpers import charged, small, spend
from tests.stores.clusters import free_port
from tests.stores.factories import new_prefix
from tests.stores.postgres_servers import has_ipv6
from tests.stores.servers import REDIS, RedisServer
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.urls import open_store

USER, PASSWORD = "acme:1", "p@s/s:w?o#r%d&=é+[]"
"""With all that has a meaning of its own in a URL."""


class Place(NamedTuple):
    port: int
    path: Path


@pytest.fixture(scope="module", params=sorted(REDIS))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A server on both kinds of IP addresses and on a socket, for one user alone."""
    port, hosts = free_port(), ["127.0.0.1", "::1"][: 1 + has_ipv6()]
    server = RedisServer(request.param, "--port", str(port), "--bind", *hosts)
    with server.client() as client:
        rights = "on", "~*", "&*", "+@all", f">{PASSWORD}"
        client.execute_command("ACL", "SETUSER", USER, *rights)
        client.execute_command("ACL", "SETUSER", "default", "off")
    yield Place(port, server.folder / "socket")
    server.stop()


def user(password: str = PASSWORD) -> str:
    return f"{quote(USER, safe='')}:{quote(password, safe='')}"


def count(place: Place, database: int) -> int:
    settings: Any = {"username": USER, "password": PASSWORD, "db": database}
    with redis.Redis(port=place.port, **settings) as client:
        return int(client.dbsize())


FORMS = [
    ("redis://{user}@127.0.0.1:{port}", "redis://127.0.0.1:{port}", 0),
    ("valkey://{user}@localhost:{port}/3", "redis://localhost:{port}/3", 3),
    ("redis://{user}@127.0.0.1:{port}?db=4", "redis://127.0.0.1:{port}/4", 4),
    (
        "redis://127.0.0.1:{port}/5?username={name}&password={word}",
        "redis://127.0.0.1:{port}/5",
        5,
    ),
    ("redis://{user}@[::1]:{port}/6", "redis://[::1]:{port}/6", 6),
    ("unix://{user}@{path}?db=7", "unix://{path}/7", 7),
    ("unix://{path}?db=8&username={name}&password={word}", "unix://{path}/8", 8),
]
"""How its address may be written, how that is told, and the database that it means."""


@pytest.mark.parametrize(
    ("form", "where", "database"), [each for each in FORMS if "::1" not in each[0] or has_ipv6()]
)
def test_a_url_leads_to_its_server_user_and_database(
    place: Place, form: str, where: str, database: int
) -> None:
    parts = {"port": place.port, "path": place.path, "user": user()}
    name, word = quote(USER, safe=""), quote(PASSWORD, safe="")
    before = count(place, database)
    store = open_store(form.format(**parts, name=name, word=word))
    budget = small(100, name=new_prefix(), store=store)
    spend(budget, 20)
    assert charged(budget) == (20, 0, 0)
    assert repr(store) == f"<RedisStore {where.format(**parts)}>"
    assert count(place, database) > before
    store.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url",
    [
        "redis://acme:sec/ret@example.org:6379/0",
        "redis://acme:12/secret@example.org/0",
        "redis://acme:12#secret@example.org/0",
        "redis://acme:12?secret@example.org/0",
        "redis://acme:sec?ret@example.org/0",
        "rediss://acme:secret@example.org/app",
        "redis://acme:secret@example.org/0/1",
        "redis://acme:secret@[::1/0",
        "redis://acme:secret@example.org:99999",
        "redis://acme:secret@example.org/0#1",
    ],
)
def test_a_url_that_would_lead_elsewhere_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"no URL of a Redis server.*%2F") as caught:
        RedisStore(url)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)
    assert "12" not in str(caught.value)


def test_a_setting_that_there_is_not_is_refused_before_it_is_connected() -> None:
    with pytest.raises(
        ValueError, match=r"redis://example\.org:6379 has an unknown setting.*'sslmode'"
    ):
        RedisStore("redis://acme:secret@example.org?sslmode=require")
    with pytest.raises(ValueError, match="ssl_cert_reqs"):  # of rediss:// alone
        RedisStore("redis://acme:secret@example.org?ssl_cert_reqs=none")

"""Budgets behind TLS: rediss://, and what sslmode= says to PostgreSQL."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.engine.helpers import charged, small, spend
from tests.proxy import bad_network, connected
from tests.stores.factories import new_prefix
from tests.stores.postgres_servers import new_schema, server
from tests.stores.servers import redis_server
from tests.stores.tls import Authority, Terminator, before_postgres
from tokenfence_integrations import StoreError
from tokenfence_integrations.stores.base import Limits, Open
from tokenfence_integrations.stores.postgres import PostgresStore
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.remote import RemoteStore


def redis_socket() -> Path:
    return redis_server("valkey8").folder / "socket"


def postgres_socket() -> Path:
    return server(18).folder / ".s.PGSQL.5432"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


def works(store: RemoteStore) -> None:
    budget = small(100, name=new_prefix(), store=store)
    spend(budget.child("team"), 20)
    assert charged(budget) == (20, 0, 0)
    store.close()
    spend(budget, 30)  # on another connection
    assert charged(budget) == (50, 0, 0)
    store.close()


def refuses(store: RemoteStore, pattern: str) -> None:
    """At once: most stores here would try again for fifteen minutes."""
    with pytest.raises(StoreError, match=pattern):
        store.execute(Open("root", Limits()))


# Redis


@pytest.fixture(scope="module")
def redis_tls(authority: Authority) -> Iterator[Terminator]:
    terminator = Terminator(partial(connected, redis_socket()), authority.context("localhost"))
    yield terminator
    terminator.close()


def test_a_rediss_url_is_tls(redis_tls: Terminator, authority: Authority) -> None:
    before = redis_tls.secured
    for scheme in ("rediss", "valkeys"):
        url = f"{scheme}://localhost:{redis_tls.port}?ssl_ca_certs={authority.certificate}"
        store = RedisStore(url)
        assert repr(store) == f"<RedisStore rediss://localhost:{redis_tls.port}>"
        works(store)
    assert redis_tls.secured == before + 4


def test_a_client_lends_its_certificates(authority: Authority) -> None:
    context = authority.context("localhost", wants_certificate=True)
    terminator = Terminator(partial(connected, redis_socket()), context)
    ours = authority.sign("client")
    settings: dict[str, Any] = {"port": terminator.port, "ssl": True}
    settings["ssl_ca_certs"] = str(authority.certificate)
    both = {"ssl_certfile": str(ours.certificate), "ssl_keyfile": str(ours.key)}
    with redis.Redis(**settings, **both) as client:
        works(RedisStore(client))
    with redis.Redis(**settings) as client:
        refuses(RedisStore(client, timeout=900), "certificate, or the client's, is not accepted")
    terminator.close()


def test_a_certificate_that_is_not_believed_is_an_error_at_once(
    redis_tls: Terminator, authority: Authority, stranger: Authority
) -> None:
    refused = "certificate, or the client's, is not accepted.*verify failed"
    url = f"rediss://localhost:{redis_tls.port}?ssl_ca_certs={stranger.certificate}"
    refuses(RedisStore(url, timeout=900), refused)
    url = f"rediss://127.0.0.1:{redis_tls.port}?ssl_ca_certs={authority.certificate}"
    refuses(RedisStore(url, timeout=900), f"{refused}.*IP address mismatch")
    works(RedisStore(f"{url}&ssl_check_hostname=false"))


def test_tls_on_one_side_alone_is_doubted(redis_tls: Terminator) -> None:
    """Neither side says what is wrong: the one waits for more, the other hangs up."""
    with bad_network(redis_socket(), lambda data: False) as plain:
        url = f"rediss://127.0.0.1:{plain.port}"
        refuses(RedisStore(url, timeout=0.2), "or without TLS on this port")
    url = f"redis://127.0.0.1:{redis_tls.port}"
    refuses(RedisStore(url, timeout=0.2), r"rediss:// uses TLS")


# PostgreSQL


@pytest.fixture(scope="module")
def postgres_tls(authority: Authority) -> Iterator[Terminator]:
    context = authority.context("localhost")
    terminator = Terminator(partial(connected, postgres_socket()), context, before_postgres)
    yield terminator
    terminator.close()


@pytest.fixture
def postgres_at() -> Callable[..., PostgresStore]:
    def store(host: str, port: int, settings: str) -> PostgresStore:
        url = f"postgresql://postgres@{host}:{port}/postgres?{settings}"
        return PostgresStore(url, schema=new_schema(), timeout=900)

    return store


def test_postgresql_takes_what_libpq_does(
    postgres_tls: Terminator, authority: Authority, postgres_at: Callable[..., PostgresStore]
) -> None:
    before = postgres_tls.secured
    for settings in ("sslmode=require", f"sslmode=verify-full&sslrootcert={authority.certificate}"):
        works(postgres_at("localhost", postgres_tls.port, settings))
    assert postgres_tls.secured == before + 4


def test_a_server_that_is_not_believed_is_an_error_at_once(
    postgres_tls: Terminator,
    authority: Authority,
    stranger: Authority,
    postgres_at: Callable[..., PostgresStore],
) -> None:
    port = postgres_tls.port
    full = "sslmode=verify-full&sslrootcert="
    not_accepted = "certificate, or the client's, is not accepted"
    refuses(postgres_at("localhost", port, f"{full}{stranger.certificate}"), not_accepted)
    refuses(postgres_at("127.0.0.1", port, f"{full}{authority.certificate}"), not_accepted)
    refuses(postgres_at("localhost", port, f"{full}/nowhere/root.crt"), not_accepted)


def test_a_server_without_tls_is_an_error_at_once(
    postgres_at: Callable[..., PostgresStore],
) -> None:
    with bad_network(postgres_socket(), lambda data: False) as plain:
        refuses(postgres_at("127.0.0.1", plain.port, "sslmode=require"), "has no TLS.*sslmode")
        works(postgres_at("127.0.0.1", plain.port, "sslmode=prefer"))

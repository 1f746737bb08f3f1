"""A server that has lost all that it kept is not taken for budgets of which nothing is spent."""

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from tests.crashes.conftest import Start
from tests.crashes.points import POINTS, Held
from tests.crashes.postgres_servers import PostgresServers, postgres_server
from tests.crashes.redis_servers import RedisServers
from tests.crashes.servers import Servers
from tests.crashes.test_matrix import COST, wait_until
from tests.crashes.worker import ANSWERED
from tests.stores.servers import RedisServer
from tokenfence_integrations.testing import SimulatedProvider

Loss = tuple[Servers, Callable[[], None]]
[IN_FLIGHT] = [point for point in POINTS if point.name == "in flight"]


@pytest.fixture(
    params=[
        "Valkey restarted without persistence",
        pytest.param(
            "PostgreSQL's schema dropped", marks=pytest.mark.xdist_group("crashes-PostgreSQL")
        ),
    ]
)
def loss(request: pytest.FixtureRequest) -> Iterator[Loss]:
    """A site, and what has it lose everything."""
    site: Servers
    if request.param.startswith("Valkey"):
        server = RedisServer("valkey8")
        site = RedisServers(server)

        def lose() -> None:
            server.stop()
            server.start()
    else:
        site = PostgresServers(postgres_server())

        def lose() -> None:
            with psycopg.connect(site.server.url) as connection:
                connection.execute(f"DROP SCHEMA {site.schema} CASCADE")

    with closing(site):
        yield site, lose


def test_a_server_that_lost_its_books_admits_nothing_until_somebody_begins_anew(
    loss: Loss, start: Start, provider: SimulatedProvider
) -> None:
    site, lose = loss
    worker = start(site)
    assert worker.call() == ANSWERED
    worker.look()
    go_on = site.bring(worker, IN_FLIGHT)
    lose()
    go_on()
    assert worker.said() == ANSWERED  # its answer is not lost with the books
    for _ in range(2):
        ended = worker.call()
        assert ended.startswith("StoreError: ")
        assert any(
            each in ended for each in ("not there any more", "missing or incomplete", "disappeared")
        )
    assert len(provider.bill) == 2
    other = start(site, worker.account)  # who makes the budget again begins with nothing spent
    assert [other.call(), worker.call()] == [ANSWERED, ANSWERED]
    wait_until(lambda: site.held(worker) == Held(2 * COST, 0, 0))

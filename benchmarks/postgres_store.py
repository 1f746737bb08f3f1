"""What a budget in PostgreSQL costs beside a bare update on the same connection."""

from collections.abc import Callable
from itertools import count

from benchmarks.overhead import AMOUNT
from benchmarks.table import Figure
from benchmarks.turns import figures_of
from tokenfence_integrations.stores.base import Limits, Open, Path

__all__ = ["postgres_figures"]


def postgres_figures(rounds: int) -> list[Figure]:
    """A reservation over a bare update of one row, each a round trip and a transaction.

    Args:
        rounds: Pairs of each.
    """
    from tests.stores.postgres_servers import address, new_schema
    from tokenfence_integrations.stores.postgres import PostgresStore

    store = PostgresStore(address(), schema=new_schema())
    try:
        for account in ("root", "root/leaf"):
            store.execute(Open(account, Limits(usd=10**18)))
        run, sql, numbers = store.link.run, store.link.sql, count(1)
        run(sql("CREATE TABLE tokenfence.bare (id integer PRIMARY KEY, n bigint NOT NULL)"))
        run(sql("INSERT INTO tokenfence.bare VALUES (1, 0)"))
        update = sql(
            "UPDATE tokenfence.bare SET n = n + %s WHERE id = 1 AND n + %s < 1::bigint << 60"
        )

        def bare() -> None:
            run(update, (AMOUNT.usd, AMOUNT.usd))

        def reserve(path: Path) -> Callable[[], None]:
            def step() -> None:
                store.reserve(path, next(numbers), AMOUNT)

            return step

        return [
            *figures_of("PostgreSQL, one account", bare, reserve(("root",)), rounds),
            *figures_of(
                "PostgreSQL, child and parent", bare, reserve(("root/leaf", "root")), rounds
            ),
        ]
    finally:
        store.close()

"""What a budget in Redis costs beside a bare script on the same server.

A bare round trip is an ``EVALSHA`` of ``return 1`` by redis-py, over the same socket. A reservation
is compared with that, in turns of twenty. Then 64 tasks make calls (a reservation, its end), and
64 tasks make as many bare round trips by redis-py's asyncio client, each on its own connection.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import redis
import redis.asyncio

from benchmarks.overhead import AMOUNT, SPENT
from benchmarks.table import Figure
from benchmarks.turns import figures_of
from tokenfence_integrations.stores.base import NOTHING, Limits, Open, Path, Reserve
from tokenfence_integrations.stores.redis import RedisStore

__all__ = ["redis_figures"]

BAR = 1.25  # reserve / bare EVALSHA
TASKS = 64
NOTHING_DONE = "return 1"

_numbers = count(1)


def redis_figures(url: str, rounds: int) -> list[Figure]:
    """A reservation over a bare round trip, and calls a second over bare round trips a second.

    Args:
        url: The server; what is kept there has the prefix ``tokenfence-benchmark``.
        rounds: Reservations of each kind, and calls of all tasks together.
    """
    store = RedisStore(url, prefix="tokenfence-benchmark")
    client: Any = redis.Redis.from_url(url)
    try:
        store.execute(Open("root", Limits(usd=10**18)))
        store.execute(Open("root/leaf", Limits(usd=10**18)))
        sha = client.script_load(NOTHING_DONE)

        def bare() -> None:
            client.evalsha(sha, 0)

        def reserve(path: Path) -> Callable[[], None]:
            return lambda: _reserve(store, path)

        return [
            *figures_of("Redis, one account", bare, reserve(("root",)), rounds, BAR),
            *figures_of("Redis, child and parent", bare, reserve(("root/leaf", "root")), rounds),
            asyncio.run(_crowd(store, url, sha, rounds)),
        ]
    finally:
        store.close()
        for key in client.scan_iter("tokenfence-benchmark:*"):
            client.delete(key)
        client.close()


def _reserve(store: RedisStore, path: Path) -> None:
    store.reserve(path, next(_numbers), AMOUNT)


async def _crowd(store: RedisStore, url: str, sha: str, calls: int) -> Figure:
    client = redis.asyncio.Redis.from_url(url, max_connections=TASKS)
    each = max(1, calls // TASKS)

    async def bare() -> None:
        for _ in range(each):
            await client.evalsha(sha, 0)

    async def call() -> None:
        path = ("root",)
        for _ in range(each):
            number = next(_numbers)
            reply = await store.aexecute(Reserve(path, number, AMOUNT))
            assert reply.done
            store.end(path, number, SPENT, NOTHING)

    async def per_second(work: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(TASKS)])
        return TASKS * each / (time.perf_counter() - begun)

    try:
        await per_second(bare)  # connects
        bare_rate, rate = await per_second(bare), await per_second(call)
    finally:
        await client.aclose()
    return Figure(
        f"Redis, {TASKS} tasks, calls over bare round trips a second",
        rate / bare_rate,
        "x",
        detail=f"{rate:,.0f} calls (reserve and end), {bare_rate:,.0f} bare round trips",
    )

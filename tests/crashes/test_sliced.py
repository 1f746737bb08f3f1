"""The same faults, where workers hold slices: what they hold is neither lost nor doubled.

What a worker has spent is in the books a second later, so they are looked at once it is there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from os import getpid
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.crashes.faults import Fault
from tests.crashes.points import POINTS
from tests.crashes.redis_servers import REDIS_FAULTS, RedisServers
from tests.crashes.test_matrix import (
    COST,
    calls,
    failed_closed,
    killed,
    until_all_are_answered,
    wait_until,
)
from tests.crashes.worker import ANSWERED, Stop, Worker
from tokenfence_integrations.stores.slices import SlicedStore
from tokenfence_integrations.testing import SimulatedProvider

LIMIT = 400_000_000
"""Nano-dollars: some 400 calls at their bounds, of which a slice may be a half."""

BEFORE = 3
"""Calls after which a worker holds a slice: the second one borrows it."""

AT = [point for point in POINTS if point.reserved and "told" not in point.name][:3]
"""Before it is sent, in flight, and answered: a call on a slice goes to the store at no other."""

_numbers = count(1)


class Opening(NamedTuple):
    """How a worker opens its store."""

    plain: Any
    on_store_error: Any

    def __call__(self, stop: Stop) -> SlicedStore:
        return SlicedStore(self.plain(stop), "50%", on_store_error=self.on_store_error)


class Sliced(RedisServers):
    """Budgets of which workers borrow slices."""

    on_store_error = "raise"

    def opening_at(self, port: int) -> Any:
        return Opening(super().opening_at(port), self.on_store_error)


@pytest.fixture
def site(fault: Fault, on_store_error: str, tmp_path: Path) -> Iterator[Sliced]:
    servers = fault.site(tmp_path)
    assert isinstance(servers, RedisServers)
    with closing(servers), closing(Sliced(servers.server)) as site:  # type: ignore[arg-type]
        site.on_store_error = on_store_error
        yield site


@pytest.fixture
def workers(site: Sliced, provider: SimulatedProvider) -> Iterator[list[Worker]]:
    started = []
    for on_loop in (False, True):
        for _ in AT:
            account = f"sliced-{getpid()}-{next(_numbers)}"
            opening = site.opening(account)
            url = provider.base_url
            started.append(Worker(opening, account, LIMIT, url, on_loop=on_loop))
    yield started
    for worker in started:
        worker.kill()


def brought(site: Sliced, workers: Sequence[Worker]) -> list[Callable[[], None]]:
    """Have each hold a slice, and a call of it be at its point."""
    for _ in range(BEFORE):
        assert calls(workers) == [ANSWERED] * len(workers)
    return [site.bring(worker, point) for worker, point in zip(workers, AT * 2, strict=True)]


def cases(strikes: bool) -> list[Any]:
    group = pytest.mark.xdist_group("crashes-Valkey")
    faults = [fault for fault in REDIS_FAULTS if (fault.strike is killed) == strikes]
    return [pytest.param(fault, id=fault.name, marks=group) for fault in faults]


@pytest.mark.parametrize("on_store_error", ["raise", "local"])
@pytest.mark.parametrize("fault", cases(strikes=False))
def test_a_store_may_fail_while_workers_hold_slices(
    fault: Fault,
    on_store_error: str,
    provider: SimulatedProvider,
    site: Sliced,
    workers: list[Worker],
) -> None:
    go_ons = brought(site, workers)
    answered = dict.fromkeys(workers, BEFORE)
    with fault.strike(site, workers):
        for go_on in go_ons:
            go_on()
        for worker in workers:
            assert worker.said() == ANSWERED  # what is reserved costs nobody an answer
            answered[worker] += 1
        for worker, ended in zip(workers, calls(workers), strict=True):
            assert ended == ANSWERED or (failed_closed(ended) and on_store_error == "raise")
            answered[worker] += ended == ANSWERED
    until_all_are_answered(workers, tries=fault.tries + 1)
    if on_store_error == "raise":
        wait_until(lambda: all(site.held(worker).reserved == 0 for worker in workers))
        # Now each call goes to the store again, and notices a connection that is silent.
        until_all_are_answered(workers, tries=fault.tries + 1)
    provider.idle()
    bill = len(provider.bill)
    wait_until(lambda: sum(site.held(worker).spent for worker in workers) == bill * COST)
    site.deliver()
    assert sum(site.held(worker).spent for worker in workers) == provider.billed
    for worker in workers:
        spent, reserved, uncertain = site.held(worker)
        assert spent >= (answered[worker] + 1) * COST
        assert uncertain == 0
        assert spent + reserved <= LIMIT
    if on_store_error == "raise":
        wait_until(lambda: all(site.held(worker).reserved == 0 for worker in workers))


@pytest.mark.parametrize("on_store_error", ["raise", "local"])
@pytest.mark.parametrize("fault", cases(strikes=True))
def test_what_a_worker_that_dies_has_spent_of_a_slice_is_charged(
    fault: Fault,
    on_store_error: str,
    provider: SimulatedProvider,
    site: Sliced,
    workers: list[Worker],
) -> None:
    brought(site, workers)
    with fault.strike(site, workers):
        pass
    site.expire(workers)
    provider.idle()
    for worker, point in zip(workers, AT * 2, strict=True):
        spent, reserved, uncertain = site.held(worker)
        assert reserved == 0
        assert (BEFORE + point.sent) * COST <= spent + uncertain <= LIMIT
        assert uncertain <= LIMIT // 2

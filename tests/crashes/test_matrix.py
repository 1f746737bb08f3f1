"""Every fault, at every point of a call, on every store: nothing is lost, doubled, or overspent.

A worker makes a call, then another one that the fault strikes at one point, and a third one once it
has ended. The books are read from the store itself, and compared with the provider's bill.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from tests.crashes.faults import Fault, Site, killed
from tests.crashes.files import FILE_FAULTS
from tests.crashes.points import Held, Point
from tests.crashes.worker import ANSWERED, Worker
from tokenfence_integrations.testing import SimulatedProvider

LIMIT = 2_400_000
"""Nano-dollars: room for two calls in flight after those that have ended, and not for three."""

COST = 122_500
"""Of one call: 9 tokens at $2.50 and 10 tokens at $10 a million."""

SOON = 20.0
"""Seconds within which what was kept meanwhile has to be in the books."""

_numbers = count(1)

CASES = [
    pytest.param(fault, points, id=f"{fault}-{points[0] if len(points) == 1 else 'all points'}")
    for fault in FILE_FAULTS
    for points in ([fault.points] if fault.together else [(point,) for point in fault.points])
]


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(output_tokens=10) as provider:
        yield provider


@pytest.fixture
def provider(running: SimulatedProvider) -> SimulatedProvider:
    running.clear()
    return running


class Start(Protocol):
    """Makes workers, which end with the test."""

    def __call__(self, site: Site, account: str | None = None) -> Worker:
        """A worker on a budget of this name, or of its own."""


@pytest.fixture
def start(provider: SimulatedProvider) -> Iterator[Start]:
    started: list[Worker] = []

    def start(site: Site, account: str | None = None) -> Worker:
        account = account or f"acme-{next(_numbers)}"
        started.append(Worker(site.opening(account), account, LIMIT, provider.base_url))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


LIVED = [case for case in CASES if case.values[0].strike is not killed]
DIED = [case for case in CASES if case.values[0].strike is killed]


@pytest.mark.parametrize(("fault", "points"), LIVED)
def test_a_store_may_fail_at_any_point_of_a_call(
    fault: Fault, points: Sequence[Point], provider: SimulatedProvider, start: Start, tmp_path: Path
) -> None:
    site = fault.site(tmp_path)
    workers = [start(site) for _ in points]
    answered = [1 for _ in workers]
    go_ons = brought(site, workers, points)
    with fault.strike(site, workers):
        for go_on in go_ons:
            go_on()
        for index, point in enumerate(points):
            ended = workers[index].said()
            # No trouble of a store's costs anybody an answer that is paid for.
            assert ended == ANSWERED or (failed_closed(ended) and not point.sent)
            answered[index] += ended == ANSWERED
        if fault.bites:
            for index, worker in enumerate(workers):
                answered[index] += calls_until_it_fails_closed(worker)
    for index, worker in enumerate(workers):
        assert worker.call() == ANSWERED, "it did not go on by itself"
        wait_until(lambda worker=worker: site.held(worker).reserved == 0)
        assert site.held(worker) == Held((answered[index] + 1) * COST, 0, 0)
    provider.idle()
    assert provider.billed == sum(site.held(worker).spent for worker in workers)
    assert all(site.held(worker).spent <= LIMIT for worker in workers)


@pytest.mark.parametrize(("fault", "points"), DIED)
def test_a_worker_may_die_at_any_point_of_a_call(
    fault: Fault, points: Sequence[Point], provider: SimulatedProvider, start: Start, tmp_path: Path
) -> None:
    site = fault.site(tmp_path)
    workers = [start(site) for _ in points]
    others = [start(site, worker.account) for worker in workers]
    brought(site, workers, points)
    bounds = [site.held(worker).reserved for worker in workers]
    with fault.strike(site, workers):
        assert [other.call() for other in others] == [ANSWERED] * len(others)
    site.expire(others)
    for point, other, bound in zip(points, others, bounds, strict=True):
        spent = (3 if point.settled else 2) * COST
        assert site.held(other) == Held(spent, 0, bound)
        assert spent + bound <= LIMIT
        assert other.call() == ANSWERED
        assert site.held(other) == Held(spent + COST, 0, bound)
    provider.idle(requests=sum(3 + point.sent for point in points))
    charged = [sum(site.held(other)) for other in others]
    assert len(provider.bill) == sum(3 + point.sent for point in points)
    assert provider.billed <= sum(charged)
    assert max(charged) <= LIMIT


def brought(
    site: Site, workers: Sequence[Worker], points: Sequence[Point]
) -> list[Callable[[], None]]:
    """Have each worker make one call, and another up to its point, where the books tell of it."""
    go_ons = []
    for worker, point in zip(workers, points, strict=True):
        assert worker.call() == ANSWERED
        go_ons.append(site.bring(worker, point))
        spent, reserved, uncertain = site.held(worker)
        assert spent == (2 if point.settled else 1) * COST
        assert (reserved > 0) == point.reserved
        assert uncertain == 0
    return go_ons


def failed_closed(ended: str) -> bool:
    return ended.startswith("StoreError: ")


def calls_until_it_fails_closed(worker: Worker) -> int:
    """How many calls are answered before one is not: a full disk may have room for two writes."""
    for answered in range(3):
        ended = worker.call()
        if ended != ANSWERED:
            assert failed_closed(ended)
            return answered
    raise AssertionError("calls go on as if nothing had happened")


def wait_until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.002)

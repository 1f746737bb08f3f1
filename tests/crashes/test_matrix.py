"""Every fault, at every point of a call, on every store: nothing is lost, doubled, or overspent.

A worker makes two calls, then another one that the fault strikes at one point, and a last one once
it has ended. The books are read from the store itself, and compared with the provider's bill.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crashes.conftest import LIMIT, Start
from tests.crashes.faults import Fault, Site, killed
from tests.crashes.files import FILE_FAULTS
from tests.crashes.points import Held, Point
from tests.crashes.postgres_servers import POSTGRES_FAULTS
from tests.crashes.redis_servers import REDIS_FAULTS
from tests.crashes.worker import ANSWERED, Worker
from tokenfence_integrations.testing import SimulatedProvider

COST = 122_500
"""Of one call: 9 tokens at $2.50 and 10 tokens at $10 a million."""

BEFORE = 2
"""Calls that a worker has made when the fault strikes: in its second one, a store does all that it
does in any later one."""

SOON = 20.0
"""Seconds within which what was kept meanwhile has to be in the books."""


def _cases(fault: Fault) -> Iterator[Any]:
    struck = [(point, on_loop) for on_loop in fault.on_loops for point in fault.points]
    if fault.together:  # on a server that is started once
        group = pytest.mark.xdist_group(f"crashes-{fault.place}")
        yield pytest.param(fault, struck, id=f"{fault}-at all points", marks=group)
        return
    for point, on_loop in struck:
        where = f"{point}, in a task" if on_loop else point
        yield pytest.param(fault, [(point, on_loop)], id=f"{fault}-{where}")


CASES = [
    case for fault in (*FILE_FAULTS, *REDIS_FAULTS, *POSTGRES_FAULTS) for case in _cases(fault)
]

Struck = Sequence[tuple[Point, bool]]
"""The points at which a fault strikes, and whether the call is made in a task of an event loop."""


@pytest.fixture
def site(fault: Fault, tmp_path: Path) -> Iterator[Site]:
    with closing(fault.site(tmp_path)) as site:
        yield site


LIVED = [case for case in CASES if case.values[0].strike is not killed]
DIED = [case for case in CASES if case.values[0].strike is killed]


@pytest.mark.parametrize(("fault", "struck"), LIVED)
def test_a_store_may_fail_at_any_point_of_a_call(
    fault: Fault, struck: Struck, provider: SimulatedProvider, site: Site, start: Start
) -> None:
    points = [point for point, _ in struck]
    workers = [start(site, on_loop=on_loop) for _, on_loop in struck]
    go_ons = brought(site, workers, points)
    with fault.strike(site, workers):
        for go_on in go_ons:
            go_on()
        ends = [worker.said() for worker in workers]
        meanwhile = calls_until_none_is_answered(workers) if fault.bites else Counter()
    for point, ended in zip(points, ends, strict=True):
        # No trouble of a store's costs anybody an answer that is paid for.
        assert ended == ANSWERED or (failed_closed(ended) and not point.sent)
    until_all_are_answered(workers, tries=fault.tries)
    site.deliver()
    for worker, point, ended in zip(workers, points, ends, strict=True):
        wait_until(lambda worker=worker: site.held(worker).reserved == 0)
        answered = BEFORE + (ended == ANSWERED) + meanwhile[worker] + 1
        assert site.held(worker) == Held(answered * COST, 0, 0), point
        assert answered * COST <= LIMIT
    provider.idle()
    assert provider.billed == sum(site.held(worker).spent for worker in workers)


@pytest.mark.parametrize(("fault", "struck"), DIED)
def test_a_worker_may_die_at_any_point_of_a_call(
    fault: Fault, struck: Struck, provider: SimulatedProvider, site: Site, start: Start
) -> None:
    points = [point for point, _ in struck]
    workers = [start(site, on_loop=on_loop) for _, on_loop in struck]
    others = [start(site, worker.account) for worker in workers]
    brought(site, workers, points)
    bounds = [site.held(worker).reserved for worker in workers]
    with fault.strike(site, workers):
        assert calls(others) == [ANSWERED] * len(others)
    site.expire(others)
    assert calls(others) == [ANSWERED] * len(others)
    for point, other, bound in zip(points, others, bounds, strict=True):
        other.look()
        spent = (BEFORE + 2 + point.settled) * COST
        assert site.held(other) == Held(spent, 0, bound), point
        assert spent + bound <= LIMIT
    provider.idle(requests=sum(BEFORE + 2 + point.sent for point in points))
    assert len(provider.bill) == sum(BEFORE + 2 + point.sent for point in points)
    assert provider.billed <= sum(sum(site.held(other)) for other in others)


def brought(
    site: Site, workers: Sequence[Worker], points: Sequence[Point]
) -> list[Callable[[], None]]:
    """Have each worker make some calls, and another up to its point, where the books tell of it."""
    for _ in range(BEFORE):
        assert calls(workers) == [ANSWERED] * len(workers)
    go_ons = []
    for worker, point in zip(workers, points, strict=True):
        worker.look()
        go_ons.append(site.bring(worker, point))
        spent, reserved, uncertain = site.held(worker)
        assert spent == (BEFORE + point.settled) * COST, point
        assert (reserved > 0) == point.reserved, point
        assert uncertain == 0
    return go_ons


def calls(workers: Sequence[Worker]) -> list[str]:
    """How a call of each ends; all are made at the same time."""
    for worker in workers:
        worker.ask()
    return [worker.said() for worker in workers]


def failed_closed(ended: str) -> bool:
    return ended.startswith("StoreError: ")


def calls_until_none_is_answered(workers: Sequence[Worker]) -> "Counter[Worker]":
    """How many of each are answered before one is not: a full disk may have room for two writes."""
    answered = Counter[Worker]()
    for _ in range(3):
        ends = dict(zip(workers, calls(workers), strict=True))
        workers = [worker for worker, ended in ends.items() if ended == ANSWERED]
        answered.update(workers)
        assert all(ended == ANSWERED or failed_closed(ended) for ended in ends.values())
    assert not workers, "calls go on as if nothing had happened"
    return answered


def until_all_are_answered(workers: Sequence[Worker], *, tries: int) -> None:
    """Calls go on by nobody's doing: at once, or after so many that still fail."""
    for _ in range(tries):
        ends = dict(zip(workers, calls(workers), strict=True))
        workers = [worker for worker, ended in ends.items() if ended != ANSWERED]
        assert all(ended == ANSWERED or failed_closed(ended) for ended in ends.values())
    assert not workers, f"they did not go on by themselves: {ends}"


def wait_until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.002)

"""One budget, many processes: together within the limit, whichever of them is killed."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.helpers import charged, nano, reserve, spend
from tests.stores.places import PLACES, Place, later
from tests.stores.processes import start
from tokenfence_integrations import Budget, BudgetExceeded
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.stores.remote import listening
from tokenfence_integrations.testing import SimulatedProvider


@contextmanager
def processes(*started: "subprocess.Popen[str]") -> Iterator[None]:
    """End them with the block, whatever happens."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


@pytest.mark.parametrize("slice", ["", "5%"])
def test_eight_processes_use_up_one_budget_and_never_pass_it(place: Place, slice: str) -> None:
    """1,600 calls of 50 each on average, for a budget of half of that."""
    limit = 40_000
    workers = [start("spend", place.url, place.name, limit, 200, seed, slice) for seed in range(8)]
    with processes(*workers):
        for worker in workers:
            ready(worker)
        for worker in workers:
            go(worker)
        said = [worker.communicate(timeout=120)[0].split() for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 8
    budget = later(place)
    paid = sum(int(spent) for spent, _ in said)
    assert charged(budget) == (paid, 0, 0), "a reservation has leaked, or the books are wrong"
    assert 0.97 * limit <= paid <= limit
    assert budget.calls == sum(int(landed) for _, landed in said)


def test_a_call_waits_for_one_of_another_process_and_is_woken_by_its_end(place: Place) -> None:
    other = start("hold", place.url, place.name, 100, 80)
    with processes(other):
        ready(other)
        budget = Budget(nano(100), name=place.name, store=place.store())
        with pytest.raises(BudgetExceeded):
            reserve(budget, 50, wait=0).admit()
        waiting = threading.Thread(target=lambda: spend(budget, 50))
        waiting.start()
        while not budget._tree.line:
            time.sleep(0.001)
        assert charged(budget) == (0, 80, 0)
        go(other)
        waiting.join(20)
        assert not waiting.is_alive()
    assert charged(budget) == (51, 0, 0)


def test_all_who_wait_hear_of_room_in_however_many_stores(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one end makes room for is taken by all of them, and none had to look by itself."""
    monkeypatch.setattr(listening, "LOOK", 60.0)
    whole = Budget(nano(120), name=place.name, store=place.store())
    held = reserve(whole, 120).admit()
    waiters = [Budget(nano(120), name=place.name, store=place.store()) for _ in range(12)]
    admitted: list[Call] = []

    def wait(budget: Budget) -> None:
        admitted.append(reserve(budget, 10, wait=60).admit())

    threads = [threading.Thread(target=wait, args=(b,), daemon=True) for b in waiters]
    for thread in threads:
        thread.start()
    while not all(budget._tree.line for budget in waiters):
        time.sleep(0.001)
    assert not admitted
    held.release()
    by = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, by - time.monotonic()))
    assert len(admitted) == 12
    assert charged(whole) == (0, 120, 0)
    for call in admitted:
        call.release()


def test_a_call_that_waits_is_woken_when_the_lease_of_a_dead_process_is_over(
    place: Place,
) -> None:
    """Nothing is free by that, but nothing is worth waiting for any more either."""
    other = start("hold", place.url, place.name, 100, 80)
    with processes(other):
        ready(other)
        budget = Budget(nano(100), name=place.name, store=place.store())
        refused: list[BudgetExceeded] = []

        def ask() -> None:
            try:
                reserve(budget, 50).admit()
            except BudgetExceeded as refusal:
                refused.append(refusal)

        waiting = threading.Thread(target=ask)
        waiting.start()
        while not budget._tree.line:
            time.sleep(0.001)
        other.kill()
        other.wait()
        place.lapse()
        waiting.join(20)
        assert not waiting.is_alive()
    assert [refusal.uncertain for refusal in refused] == [80e-9]
    assert charged(budget) == (0, 0, 80)


@pytest.mark.parametrize("point", ["before send", "in flight", "before settle", "during settle"])
def test_whatever_a_killed_process_was_at_its_money_stays_charged(place: Place, point: str) -> None:
    with SimulatedProvider(output_tokens=10) as provider:
        worker = start(
            "die",
            place.url,
            place.name,
            point,
            OPENAI_BASE_URL=provider.base_url,
            OPENAI_API_KEY="unused",
        )
        with processes(worker):
            ready(worker)
            first = provider.billed
            if point == "in flight":
                provider.hold()
            go(worker)
            if point == "in flight":
                provider.wait_for(1)
                worker.kill()
            assert worker.wait(30) == -9
            provider.release()
            provider.idle()
        # Until the lease is over it counts as in flight.
        now = Budget(name=place.name, store=place.store()).snapshot()
        assert now.spent.usd == first
        assert now.reserved.usd > 0
        assert now.uncertain.usd == 0
        budget = later(place)
        spent, reserved, uncertain = charged(budget)
        assert (spent, reserved, uncertain) == (first, 0, now.reserved.usd)
        assert provider.billed <= spent + uncertain <= 10_000_000
        assert budget.snapshot().uncertain.calls == 1
    # And the service goes on.
    with budget.reserve(model="gpt-4o", input_tokens=9, max_output_tokens=9) as call:
        call.release()
    assert charged(budget) == (first, 0, uncertain)


@pytest.mark.parametrize("server", ["postgres", "redis"])
def test_a_process_that_is_killed_once_its_end_is_applied_has_settled(
    server: str, tmp_path: Path
) -> None:
    """It never heard of it; a server did not wait for that."""
    place = PLACES[server](tmp_path)
    with SimulatedProvider(output_tokens=10) as provider:
        worker = start(
            "die",
            place.url,
            place.name,
            "after settle",
            OPENAI_BASE_URL=provider.base_url,
            OPENAI_API_KEY="unused",
        )
        with processes(worker):
            ready(worker)
            go(worker)
            assert worker.wait(30) == -9
        assert charged(later(place)) == (provider.billed, 0, 0)

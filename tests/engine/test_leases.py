"""A call whose end is never told turns uncertain when its lease is over."""

import asyncio
import gc
import threading
from typing import Any

from tests.engine.helpers import FakeClock, charged, outcomes, reserve, small
from tokenfence_integrations import BudgetExceeded, Usage
from tokenfence_integrations.engine.leases import Leases


def test_it_turns_uncertain_when_its_lease_is_over() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    call = reserve(budget, 40).admit()
    call.tree.leases.add(call, 60.0)

    clock.advance(59.9)
    assert charged(budget) == (0, 40, 0)
    clock.advance(0.1)
    assert charged(budget) == (0, 0, 40)
    call.settle(Usage(0, 5))  # too late
    assert outcomes(budget) == [("uncertain", 0, 40)]


def test_each_lease_has_its_own_length() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    long, short = reserve(budget, 10).admit(), reserve(budget, 20).admit()
    long.tree.leases.add(long, 100.0)
    short.tree.leases.add(short, 10.0)

    clock.advance(10.0)
    assert charged(budget) == (0, 10, 20)
    assert long.tree.leases.seconds_left() == 90.0
    long.release()
    assert long.tree.leases.seconds_left() is None


def test_a_call_that_ends_in_time_is_forgotten() -> None:
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    for _ in range(50):
        call = reserve(budget, 10).admit()
        call.tree.leases.add(call, 60.0)
        call.settle(Usage(0, 1))
    del call
    gc.collect()
    clock.advance(60.0)

    assert charged(budget) == (50, 0, 0)
    assert not budget._tree.leases.given


class SeenByAnother:
    """A call during whose look another thread ends it, and drops its lease."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.lost = 0

    @property
    def open(self) -> bool:
        was_open = not self.lost
        if was_open:
            self.lost += 1
            self.leases.expire()
        return was_open

    def lose(self) -> None:
        self.lost += 1


def test_two_that_drop_the_same_lease_leave_the_next_one() -> None:
    clock = FakeClock()
    leases = Leases(clock)
    first: Any = SeenByAnother(leases)
    budget = small(100)
    next_one = reserve(budget, 10).admit()
    leases.add(first, 0.0)
    leases.add(next_one, 60.0)

    leases.expire()
    assert leases.seconds_left() == 60.0
    clock.advance(60.0)
    leases.expire()
    assert charged(budget) == (0, 0, 10)


def test_an_expired_lease_makes_a_waiting_call_look_again() -> None:
    """What is uncertain stays charged; but nobody has to wait for it any longer."""
    clock = FakeClock()
    budget = small(100, clock=clock.clock)
    silent = reserve(budget, 80).admit()
    silent.tree.leases.add(silent, 0.0)
    seen: list[BaseException] = []

    def ask() -> None:
        try:
            reserve(budget, 50, wait=60.0).admit()
        except BudgetExceeded as refusal:
            seen.append(refusal)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)

    assert not thread.is_alive()
    assert [type(error) for error in seen] == [BudgetExceeded]


async def test_a_task_that_waits_is_woken_when_a_lease_is_over() -> None:
    budget = small(100)
    silent = reserve(budget, 80).admit()
    silent.tree.leases.add(silent, 0.01)

    async def ask() -> str:
        try:
            await reserve(budget, 50, wait=60.0).aadmit()
        except BudgetExceeded as refusal:
            return f"{refusal.waited < 30}"
        return "admitted"

    assert await asyncio.create_task(ask()) == "True"
    assert charged(budget) == (0, 0, 80)

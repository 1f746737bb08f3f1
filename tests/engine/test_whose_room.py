"""Whom room wakes: those alone that can use it, and all of them."""

import asyncio
import random
from contextlib import suppress

import pytest

from tests.engine.helpers import FakeClock, nano, reserve, small
from tests.engine.waiters import idle
from tokenfence_integrations import Budget, BudgetExceeded, Call, Usage
from tokenfence_integrations.engine.waiting import STALLED_AFTER, Waiter, WaitingLine
from tokenfence_integrations.stores.base import Path

ROOT = ("team",)
ADA, BOB = ("team/ada", "team"), ("team/bob", "team")


class Sleeper(Waiter):
    """A waiter of which is known how often it was woken."""

    def __init__(self, path: Path, short: Path) -> None:
        super().__init__((id(self), None), path, blocks_thread=False)
        self.now_short = short
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def has_looked(self, line: WaitingLine) -> None:
        """It has looked, found no room, and sleeps."""
        self.looks()
        line.is_short(self, self.now_short)
        line.pass_on(self)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def line(clock: FakeClock) -> WaitingLine:
    return WaitingLine(clock)


def waiting(line: WaitingLine, *places: tuple[Path, Path]) -> list[Sleeper]:
    """Sleepers with these paths, short in these accounts, of which all have looked."""
    sleepers = [Sleeper(path, short) for path, short in places]
    for sleeper in sleepers:
        line.join(sleeper)
        sleeper.has_looked(line)
    take_turns(line, *sleepers)
    for sleeper in sleepers:
        sleeper.woken = 0
    return sleepers


def take_turns(line: WaitingLine, *sleepers: Sleeper) -> None:
    """Have each look that has a turn, until none has."""
    while turns := [sleeper for sleeper in sleepers if sleeper.turn_since is not None]:
        turns[0].has_looked(line)


def test_room_in_an_account_wakes_those_who_are_short_there(line: WaitingLine) -> None:
    ada, bob = waiting(line, (ADA, ADA[:1]), (BOB, BOB[:1]))
    line.freed(BOB)
    assert (ada.woken, bob.woken) == (0, 1)
    bob.has_looked(line)
    line.freed(ADA)
    assert (ada.woken, bob.woken) == (1, 1)


def test_room_in_an_account_wakes_all_who_are_short_above_it(line: WaitingLine) -> None:
    [ada] = waiting(line, (ADA, ROOT))
    line.freed(BOB)
    assert ada.woken == 1


def test_room_anywhere_wakes_all_in_turn(line: WaitingLine) -> None:
    ada, bob = waiting(line, (ADA, ADA[:1]), (BOB, BOB[:1]))
    line.freed()
    assert (ada.woken, bob.woken) == (1, 0)
    ada.has_looked(line)
    assert (ada.woken, bob.woken) == (1, 1)


def test_who_looks_just_now_is_told_of_room_wherever_it_is(line: WaitingLine) -> None:
    [ada] = waiting(line, (ADA, ROOT))
    ada.looks()
    line.freed(ADA[:1])
    assert ada.woken == 1


def test_room_that_is_made_while_another_has_its_turn_is_not_forgotten(line: WaitingLine) -> None:
    ada, bob, cleo = waiting(line, (ADA, ADA[:1]), (BOB, BOB[:1]), (ADA, ADA[:1]))
    line.freed(ADA)
    line.freed(BOB)
    ada.has_looked(line)  # the turns begin again at the head: cleo's is still to come
    take_turns(line, ada, bob, cleo)
    assert (bob.woken, cleo.woken) == (1, 1)


def test_who_does_not_use_a_turn_takes_it_from_nobody(line: WaitingLine, clock: FakeClock) -> None:
    ada, cleo, bob = waiting(line, (ADA, ADA[:1]), (ADA, ADA[:1]), (BOB, BOB[:1]))
    line.freed(ADA)
    clock.advance(STALLED_AFTER * 2)
    line.freed(BOB)
    assert (ada.woken, cleo.woken) == (1, 1)
    cleo.has_looked(line)
    assert bob.woken == 1


def test_who_leaves_has_those_look_that_it_competed_with(line: WaitingLine) -> None:
    ada, cleo, bob = waiting(line, (ADA, ADA[:1]), (ADA, ADA[:1]), (BOB, BOB[:1]))
    line.leave(ada)
    assert (cleo.woken, bob.woken) == (1, 0)


def test_who_is_short_elsewhere_now_competes_with_others_no_more(line: WaitingLine) -> None:
    ada, bob = waiting(line, (ADA, ROOT), (BOB, BOB[:1]))
    line.freed(ADA)
    ada.now_short = ADA[:1]
    take_turns(line, ada, bob)
    assert bob.woken == 1


def test_who_leaves_room_to_those_ahead_looks_again_after_them(line: WaitingLine) -> None:
    ada, bob = waiting(line, (ADA, ROOT), (BOB, BOB[:1]))
    line.freed(ADA)
    line.freed(ADA)  # while it has the turn: they begin again after it
    bob.looks()
    assert not line.may_look(bob)
    line.pass_on(bob)
    take_turns(line, ada, bob)
    assert bob.woken == 1


def test_who_cannot_run_when_there_is_room_is_woken_once_it_can(line: WaitingLine) -> None:
    ada, bob = waiting(line, (ADA, ADA[:1]), (BOB, BOB[:1]))
    bob.blocks_thread, ada.owner = True, bob.owner
    line.freed(ADA)
    assert ada.woken == 0
    line.leave(bob)
    assert ada.woken == 1


def test_room_that_is_made_while_one_looks_too_long_is_not_forgotten(
    line: WaitingLine, clock: FakeClock
) -> None:
    [ada] = waiting(line, (ADA, ADA[:1]))
    line.freed(ADA)
    ada.looks()
    clock.advance(STALLED_AFTER * 2)
    line.freed(ADA)
    assert ada.woken == 1
    line.pass_on(ada)
    assert ada.woken == 2


class Crowd:
    """Calls of several tenants that come, wait, and end in an order drawn by lot."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.team = small(300, name="team", clock=FakeClock().clock)
        self.tenants = [self._tenant(number) for number in range(5)]
        self.held: list[Call] = []
        self.tasks: list[asyncio.Task[None]] = []

    def _tenant(self, number: int) -> Budget:
        chance = self.chance
        limits = {"calls": chance.randrange(1, 4)} if chance.random() < 0.3 else {}
        return self.team.child(f"tenant{number}", nano(chance.randrange(60, 200)), **limits)

    async def _ask(self) -> None:
        chance = self.chance
        size = chance.choice([None, *[chance.randrange(1, 120)] * 4])
        fallback = chance.choice([None, None, "mini"])
        call = reserve(chance.choice(self.tenants), size, min_output_tokens=5, fallback=fallback)
        with suppress(BudgetExceeded):
            self.held.append(await call.aadmit())

    def _end(self) -> None:
        call = self.held.pop(self.chance.randrange(len(self.held)))
        if self.chance.random() < 0.8:
            call.release()
        else:
            call.settle(Usage(0, min(2, call.bound.output_tokens)))

    async def step(self) -> None:
        """Have something happen."""
        if self.held and self.chance.random() < 0.5:
            self._end()
        elif self.chance.random() < 0.9:
            self.tasks.append(asyncio.create_task(self._ask()))
        elif self.tasks:
            self.chance.choice(self.tasks).cancel()
        await idle()

    async def finish(self) -> None:
        """End all that is in flight, until nobody waits."""
        while self.held:
            self._end()
            await idle()
        await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), 20)


@pytest.mark.parametrize("seed", range(12))
async def test_nobody_sleeps_who_would_be_admitted_if_he_were_woken(seed: int) -> None:
    crowd = Crowd(seed)
    for _ in range(60):
        await crowd.step()
        held, waiting = list(crowd.held), len(crowd.team._tree.line)
        crowd.team._tree.line.freed()
        await idle()
        assert (crowd.held, len(crowd.team._tree.line)) == (held, waiting)
    await crowd.finish()
    assert not crowd.team._tree.line


async def test_an_end_of_one_tenant_has_no_other_tenant_look() -> None:
    team = small(10_000, name="team")
    looked: list[str] = []
    peek = team._tree.store.peek

    def counted(path: Path) -> object:
        looked.append(path[0])
        return peek(path)

    vars(team._tree.store)["peek"] = counted
    tenants = [team.child(f"tenant{number}", nano(10)) for number in range(20)]
    held = [reserve(tenant, 10).admit() for tenant in tenants]
    waiting = [asyncio.create_task(reserve(tenant, 10).aadmit()) for tenant in tenants]
    await idle()
    looked.clear()
    held[7].settle(Usage(0, 10))
    await idle()
    assert set(looked) == {"team/tenant7"}
    for call in held:
        call.release()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 1
    for call in results:
        if isinstance(call, Call):
            call.release()

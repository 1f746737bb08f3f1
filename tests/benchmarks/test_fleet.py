"""The simulated fleet, run small: that it counts what it says, and would see what is wrong."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from benchmarks import fleet, simulation, traffic
from benchmarks.hindsight import Hindsight, Peaks
from benchmarks.traffic import Planned, Traffic
from tests.engine.helpers import FakeClock
from tokenfence_integrations.engine import waiting
from tokenfence_integrations.stores.base import NOTHING, Amount, Limits, Open, Path, Read, Reply
from tokenfence_integrations.stores.memory import MemoryStore

SMALL = Traffic(workers=5, tenants=20, calls=300)
RICH = replace(SMALL, tenants=3, calls=600, rate=60.0, root=30.0, scarce=(20.0, 20.0))
PATH = ("org/0", "org")


@pytest.mark.parametrize("slice", [None, "2%", "20%"])
@pytest.mark.parametrize("kind", [SMALL, replace(SMALL, sticky=True, root=0.4)])
def test_a_fleet_keeps_the_limits_and_gives_all_back(slice: str | None, kind: Traffic) -> None:
    outcome = simulation.simulate(kind, slice)
    assert outcome.calls == kind.calls == outcome.admitted + outcome.refused
    assert outcome.refused > 0
    assert outcome.run_out > 0
    assert outcome.overspent == outcome.idle_at_end == outcome.refused_with_room == 0
    assert outcome.refused_although <= outcome.refused_after <= outcome.refused


def test_without_slices_nothing_is_idle_and_two_round_trips_make_a_call() -> None:
    outcome = simulation.simulate(RICH, None)
    assert not any(outcome.idle)
    assert not any(outcome.at_stake)
    assert outcome.admitted == RICH.calls
    assert 1.7 * RICH.calls < outcome.round_trips <= 2 * RICH.calls


def test_slices_save_round_trips_and_hold_money() -> None:
    without, sliced = (simulation.simulate(RICH, slice) for slice in (None, "2%"))
    assert sliced.admitted == without.admitted
    assert sliced.round_trips < without.round_trips / 2
    assert max(sliced.idle) > max(sliced.at_stake) > 0


def test_a_store_that_lets_too_much_pass_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lax(MemoryStore):
        def reserve(self, path: Path, key: int, amount: Amount, *more: Any) -> Reply:
            return super().reserve(path, key, amount, True)

    monkeypatch.setattr(simulation, "MemoryStore", Lax)
    outcome = simulation.simulate(SMALL, None)
    assert outcome.overspent > 0
    assert any(figure.passed is False for figure in fleet.fleet_figures(outcome, outcome))


def test_a_store_that_declines_what_fits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(MemoryStore):
        def reserve(self, path: Path, key: int, amount: Amount, *more: Any) -> Reply:
            if key % 10 == 0:
                full = [state._replace(spent_usd=state.limit_usd) for state in self.peek(path)]
                return Reply(False, tuple(full))
            return super().reserve(path, key, amount, *more)

    monkeypatch.setattr(simulation, "MemoryStore", Strict)
    assert simulation.simulate(RICH, None).refused_with_room == RICH.calls // 10


def test_what_is_noted_leaves_with_the_next_command_or_after_a_millisecond() -> None:
    events, shared = simulation.Events(), MemoryStore()
    for account in PATH:
        shared.execute(Open(account, Limits(usd=100)))
    connection = simulation.Connection(shared, events, lambda path: None)

    def at(seconds: float, act: Any) -> None:
        events.after(seconds, lambda _: act())

    trips: list[int] = []
    at(1.0, lambda: connection.reserve(PATH, 1, Amount(10, 1)))
    at(2.0, lambda: connection.end(PATH, 1, Amount(5, 1), NOTHING))
    at(2.0005, lambda: connection.reserve(PATH, 2, Amount(10, 1)))  # takes it along
    at(2.0006, lambda: connection.reserve(PATH, 3, Amount(10, 1)))
    at(2.5, lambda: trips.append(connection.round_trips))
    at(3.0, lambda: connection.end(PATH, 2, Amount(5, 1), NOTHING))
    at(3.0005, lambda: connection.end(PATH, 3, Amount(5, 1), NOTHING))  # with the other one
    at(4.0, lambda: connection.execute_all([Read(PATH), Read(PATH)]))
    events.run()
    assert trips == [3]
    assert connection.round_trips == 5
    assert connection.charged == 15
    assert connection.peek(PATH) == shared.peek(PATH)


@dataclass(frozen=True)
class OneThatHoldsAll(Traffic):
    """The first worker's call takes a tenant's whole limit for three seconds; the others wait."""

    def limits(self) -> tuple[int, list[int]]:
        return 1_000, [100]

    def plan(self) -> Iterator[Planned]:
        yield Planned(0.0, 0, 0, Amount(100, 1), Amount(0, 1), 3.0, True)
        each = Amount(100 // (self.workers - 1), 1)
        for worker in range(1, self.workers):
            yield Planned(0.5, worker, 0, each, each, 9.0, True)


def test_every_worker_that_waits_hears_of_room_and_not_just_some() -> None:
    """The next look of those who do not hear of it would be half a second later."""
    outcome = simulation.simulate(OneThatHoldsAll(workers=21, tenants=1, calls=21), None)
    assert outcome.admitted == 21
    assert outcome.waited[1:] == pytest.approx([2.5 + simulation.HEARD] * 20)
    assert outcome.told == 20


def test_who_hears_first_is_not_who_came_first() -> None:
    """Nothing orders the processes that wait; half of these find no room."""

    class TooMany(OneThatHoldsAll):
        def plan(self) -> Iterator[Planned]:
            for planned in super().plan():
                yield planned if planned.at == 0.0 else planned._replace(bound=Amount(10, 1))

    fleet = simulation.Fleet(TooMany(workers=21, tenants=1, calls=21), None)
    admitted: list[int] = []
    end = fleet._end

    def ended(of: Any) -> None:
        admitted.append(of[0].planned.worker)
        end(of)

    fleet._end = ended  # type: ignore[method-assign]
    fleet.run()
    assert len(set(admitted[1:11])) == 10
    assert sorted(admitted[1:11]) != list(range(1, 11))


@pytest.mark.parametrize("later", [waiting.PATIENCE - 1, waiting.PATIENCE])
def test_a_call_that_many_later_ones_passed_is_counted_when_it_is_refused(later: int) -> None:
    @dataclass(frozen=True)
    class OneIsLarge(Traffic):
        def limits(self) -> tuple[int, list[int]]:
            return 1_000, [100]

        def plan(self) -> Iterator[Planned]:
            half, one = Amount(50, 1), Amount(1, 1)
            yield Planned(0.0, 0, 0, half, half, 9.0, True)
            yield Planned(0.1, 1, 0, Amount(60, 1), NOTHING, 1.0, True)  # fits never
            for number in range(later):
                yield Planned(0.2 + number / 10, 2, 0, one, one, 1.0, True)

    outcome = simulation.simulate(OneIsLarge(workers=3, tenants=1, calls=later + 2), None)
    assert (outcome.admitted, outcome.refused) == (later + 1, 1)
    assert outcome.refused_passed == (later >= waiting.PATIENCE)


def hindsight(
    limits: dict[str, int], used: dict[str, int], clock: FakeClock, *, each: bool = False
) -> tuple[Hindsight[str], Peaks]:
    peaks = Peaks(used, clock, 5.0)
    return Hindsight[str](limits, used, peaks, "org", clock, each=each), peaks


def test_the_same_room_is_promised_to_one_call_alone_or_counts_for_each() -> None:
    limits, used = {"org": 100, "org/0": 50, "org/1": 50}, {"org": 95, "org/0": 45, "org/1": 0}
    clock = FakeClock(0.0)
    own, each = (hindsight(limits, used, clock, each=several)[0] for several in (False, True))
    for judge in (own, each):
        for call, tenant in (("a", "org/0"), ("b", "org/1"), ("c", "org/1")):
            judge.wait(call, tenant, 10)
        assert not judge.fitted
    clock.advance(1.0)
    used["org"], used["org/0"] = 85, 35
    for judge in (own, each):
        judge.look("org/0")
    assert set(each.fitted) == {"a", "b", "c"}
    assert set(own.fitted) == {"a"}
    assert own.leave("a") == 1.0  # it is refused
    own.look("org/0")
    assert set(own.fitted) == {"b"}  # what was promised to it is there for the next


@pytest.mark.parametrize(("taken_at", "fits"), [(3.0, False), (5.9, False), (None, True)])
def test_room_counts_once_nobody_has_taken_it_for_some_moments(
    taken_at: float | None, fits: bool
) -> None:
    """However soon after it is made the room of another tenant is looked for."""
    limits, used = {"org": 100, "org/0": 50, "org/1": 50}, {"org": 60, "org/0": 10, "org/1": 50}
    clock = FakeClock(0.0)
    judge, peaks = hindsight(limits, used, clock)

    def use(usd: int) -> None:
        for account in ("org/1", "org"):
            peaks.will_change(account)
            used[account] += usd

    judge.wait("a", "org/1", 10)
    clock.now = 1.0
    use(-10)
    judge.look("org/0")
    clock.now = 2.9
    judge.look("org/0")
    judge.look("org/1")
    assert not judge.fitted
    if taken_at is not None:
        clock.now = taken_at
        use(10)
    clock.now = 6.0
    judge.look("org/1")
    assert judge.fitted == ({"a": 6.0} if fits else {})


def test_room_that_was_taken_and_made_again_was_not_there_all_the_time() -> None:
    limits, used = {"org": 100, "org/0": 50}, {"org": 50, "org/0": 50}
    clock = FakeClock(0.0)
    judge, peaks = hindsight(limits, used, clock)
    judge.wait("a", "org/0", 10)
    for now, usd in ((1.0, -30), (2.0, 25), (3.0, -25), (4.0, 5)):
        clock.now = now
        for account in used:
            peaks.will_change(account)
            used[account] += usd
    clock.now = 6.0
    judge.look("org/0")
    assert not judge.fitted  # up to 3.0 there were 5
    clock.now = 8.0
    judge.look("org/0")
    assert judge.fitted == {"a": 8.0}  # and 25 since 4.0


def test_traffic_is_drawn_as_it_says() -> None:
    kind = Traffic(workers=50, tenants=200, calls=20_000, sticky=True, seed=7)
    calls = list(kind.plan())
    assert calls == list(kind.plan())
    assert calls[-1].at == pytest.approx(kind.calls / kind.rate / kind.workers, rel=0.05)
    assert statistics.fmean(c.bound.usd for c in calls) == pytest.approx(
        traffic.MEAN_BOUND, rel=0.05
    )
    assert statistics.fmean(c.spent.usd for c in calls) == pytest.approx(
        traffic.MEAN_COST, rel=0.05
    )
    assert all(call.spent.usd <= call.bound.usd for call in calls)
    assert len({call.worker for call in calls if call.tenant == 150}) <= traffic.STICKY_TO
    assert sum(call.tenant == 0 for call in calls) > 50 * sum(call.tenant == 199 for call in calls)

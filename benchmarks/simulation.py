"""A fleet of workers that share budgets, played event by event on a clock that only events move.

The stores of the workers are real, and so is what they share, a `MemoryStore`; between them is a
`Connection` that counts what would be round trips. What is true (spent, in flight) is kept apart,
by plain sums of what was admitted, so that no store is its own witness.

A call that is declined waits, and tries again as the engine's line of waiting calls has it: when a
call of the same worker ends that took from what it lacks, when the shared store has room again in
it, and each second. It is refused after a minute, or once it would not fit even if all that is in
flight settled at nothing.

Whenever room is made, every worker with a call that is short there is told, as the stores on a
server do it, and who asks first is drawn. Those who could not take it are not played, but counted:
a worker that is told looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from benchmarks.hindsight import Hindsight, Peaks
from benchmarks.traffic import Planned, Traffic
from tokenfence_integrations.engine import waiting
from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Amount,
    Book,
    Charge,
    Command,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Store,
)
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.noting import change_by
from tokenfence_integrations.stores.slices import SlicedStore

__all__ = ["Outcome", "simulate"]

ROOT = "org"
PATIENCE = 60.0  # seconds that a call waits, at most
LOOK = 1.0  # seconds between two looks of a waiting line
AT_ONCE = 0.001  # seconds within which what is noted leaves, alone or with a command
HEARD = 0.001  # seconds after which others hear of room
TAKEN = 0.005  # seconds for which there has to be room that nobody takes, to count as room
SAMPLE = 0.25  # seconds between two looks at what is idle


class Events:
    """What will happen, and the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._numbers = count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, act: Callable[[Any], object], of: Any = None) -> None:
        """Have something done."""
        heappush(self._heap, (self.now + seconds, next(self._numbers), act, of))

    def run(self) -> None:
        """Until nothing is left to do."""
        heap = self._heap
        while heap:
            self.now, _, act, of = heappop(heap)
            act(of)


class Connection(Store):
    """A worker's way to the shared store: as `RemoteStore`, with a memory store for the server.

    What is noted is applied at once, and counts as a round trip of its own unless a command of the
    same worker follows within a millisecond and takes it along. Known are the accounts as of the
    last answer that told them, and with what this worker has changed since.
    """

    instant = True

    def __init__(self, shared: MemoryStore, clock: Events, freed: Callable[[Path], None]) -> None:
        self._shared = shared
        self._clock = clock
        self._freed = freed
        self._known: dict[str, list[Any]] = {}
        self._held: dict[int, tuple[Amount, bool]] = {}
        self._noted_until = -1.0
        self.tends = False
        """Whether the store's thread is at work, and not a call."""
        self.round_trips = 0
        self.of_calls = 0
        self.charged = 0
        """What stays charged should this worker die: all but what is idle."""

    def execute(self, command: Command) -> Reply:
        [reply] = self.execute_all([command])
        return reply

    def execute_all(self, commands: Sequence[Command]) -> list[Reply]:
        """Apply commands in one round trip, which takes along what was noted just before."""
        if self._noted_until < self._clock.now:
            self._round_trip()
        self._noted_until = -1.0
        return [self._apply(command) for command in commands]

    def note(self, command: Open | Draw | End | Book | Drop) -> None:
        self._note(command)

    def draw(self, command: Draw, told: Callable[[bool], object]) -> None:
        told(self._note(command).done)

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        return self._note(End(path, key, spent, uncertain))

    def peek(self, path: Path) -> tuple[AccountState, ...] | None:
        known = self._known
        if not all(account in known for account in path):
            return None
        return tuple([AccountState._make(known[account]) for account in path])

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        return self._shared.charges(account)

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        return self._shared.accounts(budget)

    def _note(self, command: Command) -> Reply:
        if self._noted_until < self._clock.now:
            self._round_trip()
            self._noted_until = self._clock.now + AT_ONCE
        return self._apply(command)

    def _round_trip(self) -> None:
        self.round_trips += 1
        self.of_calls += not self.tends

    def _apply(self, command: Command) -> Reply:
        kind = type(command)
        held = None
        if isinstance(command, Draw | End):
            held = self._held.get(command.id, (NOTHING, True))
        reply = self._shared.execute(command)
        path: Path = command.path  # type: ignore[union-attr]
        if reply.states:
            self._learn(path, reply.states)
        elif reply.done:
            self._change(command, held[0] if held else NOTHING)
        if reply.done and kind is not Read:
            self._account_for(command, held)
        return reply

    def _learn(self, path: Path, states: tuple[AccountState, ...]) -> None:
        self._known.update(zip(path, map(list, states), strict=True))

    def _change(self, command: Any, reserved: Amount) -> None:
        unknown = tuple([account for account in command.path if account not in self._known])
        if unknown:  # a process opens an account that it has not used before, and is told of it
            self._learn(unknown, self._shared.peek(unknown))
        change = [part for amount in change_by(command, reserved) for part in amount]
        for account in command.path:
            if account not in unknown:
                known = self._known[account]
                known[5:] = [part + more for part, more in zip(known[5:], change, strict=True)]

    def _account_for(self, command: Any, held: tuple[Amount, bool] | None) -> None:
        """Keep count of what stays charged, and tell others of room."""
        if type(command) is Reserve:
            self._held[command.id] = command.amount, command.idle
            self.charged += 0 if command.idle else command.amount.usd
            return
        if held is None:  # booked without a reservation
            self.charged += command.spent.usd
            return
        kept = command.kept if type(command) is Draw else NOTHING
        stays = command.spent.usd + command.uncertain.usd + kept.usd
        amount, idle = held
        self.charged += stays - (0 if idle else amount.usd)
        if type(command) is Draw:
            self._held[command.id] = kept, False
        else:
            self._held.pop(command.id, None)
        if stays < amount.usd:
            self._freed(command.path)


class Slices(SlicedStore):
    """Slices whose thread is an event."""

    def __init__(self, connection: Connection, slice: str, events: Events) -> None:
        self._connection = connection
        self._events = events
        self._due = float("inf")
        super().__init__(connection, slice, clock=events)

    def _wake(self) -> None:
        self._tend_after(0.0001)

    def _tend_after(self, seconds: float) -> None:
        at = self._events.now + seconds
        if at < self._due:
            self._due = at
            self._events.after(seconds, self._tend_at, at)

    def _tend_at(self, at: float) -> None:
        if at != self._due:  # it was woken before
            return
        self._due = float("inf")
        self._connection.tends = True
        pause = self.tend()
        self._connection.tends = False
        if pause is not None:
            self._tend_after(pause)


class Call:
    """One that has come, and what became of it."""

    __slots__ = ("ended", "hears", "path", "planned", "short", "since", "since_admitted", "worker")

    def __init__(
        self, planned: Planned, worker: "Worker", path: Path, now: float, since_admitted: int
    ) -> None:
        self.planned = planned
        self.worker = worker
        self.path = path
        self.since = now
        self.since_admitted = since_admitted  # how many of its tenant were admitted before
        self.short = path[0]  # the account that has no room for it
        self.hears: set[str] = set()  # accounts of whose room it is told
        self.ended = False


class Worker:
    """A process: its store, and the line of calls that wait there."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self.store = store
        self.connection = connection
        self.line: list[Call] = []
        self.looks = False  # whether it looks at its line each second
        self.used = 0
        """What its calls have used, in nano-dollars: spent, uncertain, in flight."""


@dataclass
class Outcome:
    """What came of a simulation; money in nano-dollars, times in seconds."""

    calls: int = 0
    admitted: int = 0
    refused: int = 0
    refused_with_room: int = 0
    """Refused while there was room, or might have been once those in flight had settled."""
    refused_although: int = 0
    """Refused, although there was room while they waited, for all of these calls together. Others,
    which came later, have taken it."""
    refused_after: int = 0
    """Refused, although at some moment while they waited there was room for each, by itself."""
    refused_passed: int = 0
    """Refused after so many calls of their tenant that came later had been admitted as may pass one
    in the line of a single process, or more."""
    overspent: int = 0
    """The most that any account was above its limit, at any moment."""
    round_trips: int = 0
    round_trips_of_calls: int = 0
    """Those that a call waited for, or that were its own end; the others are the threads'."""
    told: int = 0
    """How often a worker was told of room in an account that one of its calls is short in."""
    waited: list[float] = field(default_factory=list)
    """Of each call that was admitted."""
    waited_although: list[float] = field(default_factory=list)
    """Of each call that was admitted: for how long it waited since there was room."""
    run_out: int = 0
    """Tenants that a call was refused for."""
    spent: int = 0
    left: list[int] = field(default_factory=list)
    """What was left, in all accounts, at each look: the lesser of the root's and the tenants'."""
    idle: list[int] = field(default_factory=list)
    """What of it was held unused."""
    at_stake: list[float] = field(default_factory=list)
    """What of it would have stayed charged for nothing, had one worker died; the mean of all."""
    idle_at_end: int = 0


class Fleet:
    """The simulation.

    Args:
        traffic: What is to be done.
        slice: As `SlicedStore` takes it; None: without slices.
    """

    def __init__(self, traffic: Traffic, slice: str | None) -> None:
        self.events = Events()
        self.outcome = Outcome()
        self.shared = MemoryStore(clock=self.events)
        root, of_tenants = traffic.limits()
        self.names = [f"{ROOT}/{number}" for number in range(traffic.tenants)]
        self.limits = {ROOT: root, **dict(zip(self.names, of_tenants, strict=True))}
        for account, limit in self.limits.items():
            self.shared.execute(Open(account, Limits(usd=limit)))
        self.used = dict.fromkeys(self.limits, 0)  # the truth: spent, uncertain, in flight
        self.settled = dict.fromkeys(self.limits, 0)  # of that, what is not in flight
        self.left_to_tenants = sum(of_tenants)
        self.admitted: dict[str, list[float]] = {name: [] for name in self.names}  # when they came
        self.hearing: dict[str, list[tuple[int, int, Call]]] = {}  # heaps: who needs least first
        self.freed: set[str] = set()
        self.waiting: set[Worker] = set()
        self.first = Random(f"first {traffic.seed}")
        self.run_out: set[str] = set()
        self.peaks = Peaks(self.used, self.events, TAKEN)
        accounts = self.limits, self.used, self.peaks, ROOT, self.events
        self.own_room: Hindsight[Call] = Hindsight(*accounts, each=False)
        self.any_room: Hindsight[Call] = Hindsight(*accounts, each=True)
        self.busy = 0
        self.coming = traffic.plan()
        self.keys, self.order = count(1), count()
        self.workers = [self._worker(slice) for _ in range(traffic.workers)]

    def _worker(self, slice: str | None) -> Worker:
        connection = Connection(self.shared, self.events, self._tell)
        store = connection if slice is None else Slices(connection, slice, self.events)
        return Worker(store, connection)

    def run(self) -> Outcome:
        """To the end, when all that is idle has been given back."""
        self._next_call()
        self.events.after(SAMPLE, self._sample)
        self.events.run()
        outcome = self.outcome
        outcome.round_trips = sum(worker.connection.round_trips for worker in self.workers)
        outcome.round_trips_of_calls = sum(worker.connection.of_calls for worker in self.workers)
        outcome.run_out = len(self.run_out)
        outcome.spent = self.used[ROOT]
        outcome.idle_at_end = sum(
            abs(state.spent.usd + state.uncertain.usd + state.reserved.usd - used)
            for (account, used) in self.used.items()
            for state in self.shared.peek((account,))
        )
        return outcome

    # A call's life

    def _next_call(self, planned: Planned | None = None) -> None:
        if planned is not None:
            self._begin(planned)
        following = next(self.coming, None)
        if following is not None:
            self.events.after(following.at - self.events.now, self._next_call, following)

    def _begin(self, planned: Planned) -> None:
        worker = self.workers[planned.worker]
        name = self.names[planned.tenant]
        call = Call(planned, worker, (name, ROOT), self.events.now, len(self.admitted[name]))
        self.outcome.calls += 1
        self.busy += 1
        reply = self._try(call)
        if reply.done or self._is_hopeless(call, dict(zip(call.path, reply.states, strict=True))):
            return
        worker.line.append(call)
        self.waiting.add(worker)
        self.own_room.wait(call, call.path[0], planned.bound.usd)
        self.any_room.wait(call, call.path[0], planned.bound.usd)
        self._hear(call)
        if not worker.looks:
            worker.looks = True
            self.events.after(LOOK, self._look_again, worker)

    def _try(self, call: Call) -> Reply:
        bound = call.planned.bound
        key = next(self.keys)
        reply = call.worker.store.reserve(call.path, key, bound)
        if reply.done:
            self._use(call, bound.usd)
            for account in call.path:
                over = self.used[account] - self.limits[account]
                self.outcome.overspent = max(self.outcome.overspent, over)
            fitted, _ = self._leave(call)
            now = self.events.now
            self.outcome.admitted += 1
            self.admitted[call.path[0]].append(call.since)
            self.outcome.waited.append(now - call.since)
            self.outcome.waited_although.append(0.0 if fitted is None else now - fitted)
            self.busy += 1
            self.events.after(call.planned.lasts, self._end, (call, key))
        else:
            for account, state in zip(call.path, reply.states, strict=True):
                if _room(state) < bound.usd:
                    call.short = account
        return reply

    def _is_hopeless(self, call: Call, states: Mapping[str, AccountState]) -> bool:
        """Refuse a call that would not fit whatever becomes of those in flight."""
        needs = call.planned.bound.usd
        full = [account for account, state in states.items() if _most(state) < needs]
        if full:
            self.run_out.update(full)
            self._refuse(call)
        return bool(full)

    def _refuse(self, call: Call) -> None:
        own, at_all = self._leave(call)
        needs, was_patient = call.planned.bound.usd, self.events.now - call.since >= PATIENCE
        sums = self.used if was_patient else self.settled
        self.outcome.refused += 1
        self.outcome.refused_with_room += all(
            sums[account] + needs <= self.limits[account] for account in call.path
        )
        self.outcome.refused_although += own is not None
        self.outcome.refused_after += at_all is not None
        since_then = self.admitted[call.path[0]][call.since_admitted :]
        passed = sum(came > call.since for came in since_then)
        self.outcome.refused_passed += passed >= waiting.PATIENCE

    def _leave(self, call: Call) -> tuple[float | None, float | None]:
        """It waits no more; since when there was room for it, of its own and at all."""
        call.ended = True
        self.busy -= 1
        return self.own_room.leave(call), self.any_room.leave(call)

    def _end(self, of: tuple[Call, int]) -> None:
        call, key = of
        _, _, _, bound, spent, _, known = call.planned
        worker = call.worker
        self.busy -= 1
        self._use(call, spent.usd - bound.usd)
        for account in call.path:
            self.settled[account] += spent.usd
        parts = (spent, NOTHING) if known else (NOTHING, spent)
        assert worker.store.end(call.path, key, *parts).done
        if worker.line:
            self._look(worker, frozenset(call.path))
        self.events.after(TAKEN, self._look_back, call.path[0])

    def _use(self, call: Call, usd: int) -> None:
        for account in call.path:
            self.peaks.will_change(account)
            self.used[account] += usd
        call.worker.used += usd
        self.left_to_tenants -= usd

    # Waiting

    def _look(self, worker: Worker, accounts: frozenset[str] | None = None) -> None:
        """Have those try who lack room in some accounts, or all, in their order.

        Whoever is declined is told how much room there is; who needs more need not try.
        """
        told: dict[str, AccountState] = {}
        for call in worker.line:
            if call.ended or (accounts is not None and call.short not in accounts):
                continue
            if self.events.now - call.since >= PATIENCE:
                self._refuse(call)
                continue
            needs = call.planned.bound.usd
            if any(account in told and _room(told[account]) < needs for account in call.path):
                known = {account: told[account] for account in call.path if account in told}
                self._is_hopeless(call, known)
                continue
            reply = self._try(call)
            if reply.done:
                continue
            states = dict(zip(call.path, reply.states, strict=True))
            told.update(states)
            if not self._is_hopeless(call, states):
                self._hear(call)
        worker.line = [call for call in worker.line if not call.ended]
        if not worker.line:
            self.waiting.discard(worker)

    def _look_again(self, worker: Worker) -> None:
        self._look(worker)
        worker.looks = bool(worker.line)
        if worker.looks:
            self.events.after(LOOK, self._look_again, worker)

    def _hear(self, call: Call) -> None:
        account = call.short
        if account not in call.hears:
            call.hears.add(account)
            entry = call.planned.bound.usd, next(self.order), call
            heappush(self.hearing.setdefault(account, []), entry)

    def _tell(self, path: Path) -> None:
        """There is room in the shared store: those who wait will hear of that."""
        if not self.waiting:
            return
        news = [account for account in path if account not in self.freed]
        short = {call.worker for account in news for call in self._short_of(account)}
        self.outcome.told += len(short)
        for account in path:
            hears = account == ROOT or self.hearing.get(account)
            if hears and account not in self.freed:
                self.freed.add(account)
                self.events.after(HEARD, self._on_freed, account)

    def _short_of(self, account: str) -> list[Call]:
        """The calls that wait for room in an account."""
        hearing = self.hearing.get(account, [])
        return [call for _, _, call in hearing if call.short == account and not call.ended]

    def _on_freed(self, account: str) -> None:
        """Have those look who wait for room in an account, and could take it."""
        self.freed.discard(account)
        heap, calls = self.hearing.get(account, []), []
        while heap and heap[0][0] <= self._shared_room(account):
            call = heappop(heap)[2]
            call.hears.discard(account)
            if call.short == account and not call.ended:
                calls.append(call)
        least: dict[Worker, int] = {}
        for call in calls:  # the first one of each worker is its smallest
            least.setdefault(call.worker, call.planned.bound.usd)
        workers = list(least)
        self.first.shuffle(workers)
        for worker in workers:
            if least[worker] <= self._shared_room(account):
                self._look(worker, frozenset((account,)))
        for call in calls:
            if not call.ended:
                self._hear(call)

    def _shared_room(self, account: str) -> int:
        [state] = self.shared.peek((account,))
        return _room(state)

    def _look_back(self, tenant: str) -> None:
        """What was left all the time since a call of this tenant ended, nobody has taken."""
        self.own_room.look(tenant)
        self.any_room.look(tenant)

    # What is idle

    def _sample(self, _: None) -> None:
        used, limit = self.used[ROOT], self.limits[ROOT]
        [root] = self.shared.peek((ROOT,))
        self.outcome.left.append(min(limit - used, self.left_to_tenants))
        self.outcome.idle.append(limit - _room(root) - used)
        stakes = [worker.connection.charged - worker.used for worker in self.workers]
        self.outcome.at_stake.append(sum(stakes) / len(stakes))
        if self.busy:
            self.events.after(SAMPLE, self._sample)


def simulate(traffic: Traffic, slice: str | None) -> Outcome:
    """Play a fleet.

    Args:
        traffic: What is to be done.
        slice: The share that each worker may borrow, as ``"2%"``; None: without slices.
    """
    return Fleet(traffic, slice).run()


def _room(state: AccountState) -> int:
    """Dollars that are left."""
    limit = state.limit_usd
    assert limit is not None
    return limit - state.spent_usd - state.reserved_usd - state.uncertain_usd


def _most(state: AccountState) -> int:
    """Dollars that may be left at best, once those in flight have ended."""
    return _room(state) + state.reserved_usd

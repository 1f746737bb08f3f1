"""Getting a call admitted: it looks, takes its turn, waits, and reserves or is refused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from tokenfence_integrations.engine.calls.admission import (
    ENOUGH,
    WAIT,
    Admit,
    Decision,
    Option,
    Refuse,
    Wait,
    affordable,
    bound,
    decide,
    headroom,
    useful,
)
from tokenfence_integrations.engine.calls.request import Options
from tokenfence_integrations.engine.drivers import Flow, Pause, Sleep, WaiterFactory
from tokenfence_integrations.engine.limits.accounts import Renewal
from tokenfence_integrations.engine.tree import NONE_STUCK
from tokenfence_integrations.engine.waiting import (
    STALLED_AFTER,
    SyncWaiter,
    Waiter,
    current_owner,
)
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.log import logger
from tokenfence_integrations.money import to_float
from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Amount,
    Limits,
    Open,
    Path,
    Read,
    Reserve,
    SetLimits,
)

if TYPE_CHECKING:
    from tokenfence_integrations.engine.calls.meter import Call

__all__ = ["Admission"]

SHORTEST = 0.001
"""Seconds that are slept at least until a window opens, whatever the clocks disagree about."""

GATHER_SECONDS = 0.002
"""How long a thread lets others arrive, if its call has no maximum and the budget is not rich."""

States: TypeAlias = tuple[AccountState, ...]


class Admission:
    """One call on its way into a budget.

    Args:
        call: The call.
        make_waiter: How the driver's world waits: a thread, or a task.
    """

    def __init__(self, call: "Call", make_waiter: WaiterFactory) -> None:
        self._call = call
        self._tree = call.tree
        self._names = call.budget.path
        self._accounts = call.budget._quota.accounts
        self._path = self._names  # of the accounts; with windows, those of the last look
        self._make_waiter = make_waiter
        self._blocks_thread = make_waiter is SyncWaiter
        self._owner = current_owner()
        # On a loop that is not asyncio's (trio's) there is nothing to sleep by.
        can_sleep = self._blocks_thread or self._owner[1] is not None
        self._patient = can_sleep and call.policy.wait > 0
        self._exact = call.request.exact_tokens is None
        self._floor = call.policy.min_output_tokens if call.request.cappable else ENOUGH
        self._waiter: Waiter | None = None
        self._begun_at: float | None = None
        self._admitted = False
        self._followed: SetLimits | None = None
        for sublimit in call.request.sublimits:
            # What is reserved there is of the same maker, whichever of its tasks made it.
            self._tree.hand_to(self._owner, sublimit.open)

    def flow(self) -> Flow[None]:
        """The whole way, to be run by a driver."""
        try:
            yield from self._arrive()
            states: States | None = None
            while True:
                states, decision, options = yield from self._look(states)
                if type(decision) is not Admit and (yield from self._follow(states)):
                    states = None
                    continue
                if type(decision) is Admit:
                    amount = bound(decision.option, decision.output_tokens)
                    states = yield from self._reserve(decision, amount)
                    if states is None:
                        return
                elif type(decision) is Wait or self._would_fit_later(states):
                    yield from self._wait(states, options.first, decision)
                    states = None
                else:
                    yield from self._refuse(states, options.first)
                    return
        finally:
            line = self._tree.line
            if self._waiter is not None:
                line.leave(self._waiter, admitted=self._admitted)
            elif self._admitted and line.waiting:
                line.arrived(self._names)

    def _arrive(self) -> Flow[None]:
        """Queue behind others, or let those who come at the same moment arrive."""
        line, request = self._tree.line, self._call.request
        if not self._patient:
            return
        if self._accounts is not None:
            self._accounts.known()  # if a window opens by that, those who waited come first
        if line.must_queue(self._names):
            waiter = self._join()
            self._begun_at = self._now()
            line.freed()
            yield Sleep(waiter, self._call.policy.wait)
        elif request.max_output_tokens is None:
            self._join()
            yield Pause(GATHER_SECONDS)

    def _look(self, states: States | None) -> Flow[tuple[States, Decision, Options]]:
        """Decide by the state of the path; anything but an admission only by a fresh state."""
        fresh = states is not None
        while True:
            self._tree.settle_orphans()
            # Others, if its windows were changed.
            self._accounts = self._call.budget._quota.accounts
            if self._accounts is None:
                self._path = self._names
            else:
                waiter = self._waiter
                unasked = waiter is not None and waiter.turn_since is None
                path = self._accounts.known() or (yield from self._accounts.flow())
                if path != self._path:  # a window has ended meanwhile
                    had_looked = self._path is not self._names
                    self._path, states = path, None
                    if waiter is not None and unasked and had_looked and self._patient:
                        # All wake at once here. Whichever first sees the new window has the line
                        # told, in which turns begin anew: each waits for its own.
                        yield Sleep(waiter, STALLED_AFTER)
                        while self._is_ahead_of_its_turn(waiter):
                            yield Sleep(waiter, STALLED_AFTER)
                        continue
            if states is None:
                if self._waiter is not None:
                    self._waiter.looks()
                states, fresh = self._tree.store.peek(self._path), self._tree.store.instant
            if states is None:
                reply = yield Read(self._path)
                states, fresh = reply.states, True  # type: ignore[union-attr]
            decision, options = self._decide(states)
            if not self._exact and not _in_full(decision, options):
                self._exact = True
            elif type(decision) is Admit:
                return states, decision if self._may_take() else WAIT, options
            elif fresh:
                return states, decision, options
            else:
                states = None if self._tree.store.instant else (yield Read(self._path)).states  # type: ignore[union-attr]
                fresh = states is not None

    def _is_ahead_of_its_turn(self, waiter: Waiter) -> bool:
        return (
            waiter.turn_since is None
            and self._left() > 0
            and self._tree.line.has_turn_ahead_of(waiter)
        )

    def _follow(self, states: States) -> Flow[bool]:
        """Bring limits that are shares up to date, which another process did not know of."""
        command = self._call.budget._quota.outdated(self._path, states)
        if command is None or command == self._followed:
            return False
        self._followed = command
        self._tree.store.note(Open(command.path[0], command.limits))  # so that it is made anew so
        yield command
        return True

    def _decide(self, states: States) -> tuple[Decision, Options]:
        decision, options = self._decide_with(states, NONE_STUCK)
        if self._tree.live and not _in_full(decision, options):
            # Only now does it matter which of the calls in flight may be waited for.
            stuck = self._tree.stuck(
                self._path, states, self._owner, blocks_thread=self._blocks_thread
            )
            if stuck is not NONE_STUCK:
                return self._decide_with(states, stuck)
        return decision, options

    def _would_fit_later(self, states: States) -> bool:
        """Whether a call that is to be refused fits into windows that open before it gives up."""
        if self._accounts is None or not self._patient:
            return False
        until = self._tree.now() + self._left()
        renewals = self._accounts.renewals()
        due = [r is not None and r.window.end <= until for r in renewals]
        if not any(due):
            return False
        stuck = self._tree.stuck(self._path, states, self._owner, blocks_thread=self._blocks_thread)
        renewed = zip(states, stuck, renewals, due, strict=False)
        later = [
            (_empty(renewal), None) if renewal is not None and is_due else (state, held)
            for state, held, renewal, is_due in renewed
        ]
        decision, _ = self._decide_with(
            tuple([state for state, _ in later]), [held for _, held in later]
        )
        return type(decision) is not Refuse

    def _decide_with(
        self, states: States, stuck: Sequence[Amount | None]
    ) -> tuple[Decision, Options]:
        call, tree = self._call, self._tree
        sublimits = call.request.sublimits
        if sublimits:
            states = (*states, *[sublimit.state for sublimit in sublimits])
            own = [sublimit.reserved for sublimit in sublimits]
            stuck = (*stuck[: len(self._path)], *own)
        room = headroom(states, stuck)
        settled = max(room.settled, call.budget._quota.settled_of_own(states))
        options = call.options(settled, exact=self._exact)
        decision = decide(
            options,
            room,
            # A call with a maximum of its own shares with nobody.
            rivals=tree.line.rivals(self._names, self._waiter)
            if call.request.max_output_tokens is None
            else 0,
            patient=self._patient,
            min_output_tokens=self._floor,
        )
        return decision, options

    def _may_take(self) -> bool:
        """Whether the line is not closed ahead of this call."""
        waiter = self._waiter
        return waiter is None or not self._patient or self._tree.line.may_look(waiter)

    def _reserve(
        self, decision: Admit, amount: Amount, *, force: bool = False
    ) -> Flow[States | None]:
        """Reserve in the store; None if that was done, else the states that forbade it."""
        key = next(self._tree.numbers)
        if self._tree.listeners:  # they are told of a threshold by what is known when it ends
            self._tree.store.refresh(self._path)
        option, output_tokens = decision
        command = Reserve(self._path, key, amount, force, what=option.model)
        reply = yield command
        if not reply.done:  # type: ignore[union-attr]
            return reply.states  # type: ignore[union-attr]
        self._admitted = True
        if self._begun_at is not None:
            self._call.waited = self._now() - self._begun_at
        card = self._call.book.card(option.model)
        self._call.admitted(self._owner, command, card, output_tokens)
        return None

    def _wait(self, states: States, option: Option, decision: Decision) -> Flow[None]:
        """Sleep until it is this call's turn again, for as long as it may wait in all."""
        line, now = self._tree.line, self._now()
        waiter = self._waiter or self._join()
        line.is_short(waiter, self._short(states, option))
        waiter.awaits_window = type(decision) is Refuse
        if self._begun_at is None:
            self._begun_at = now
        if not waiter.blocked:
            waiter.blocked = True
            # Others may wait for nothing but what this call's task holds: they have to look again.
            # So does this call, once, now that it is in line: nothing that is freed can be missed.
            # Room that another process makes from now on is told of, too.
            line.freed()
            self._tree.store.watch(line)
            return
        left = self._left()
        if left <= 0:
            self._patient = False
            return
        line.pass_on(waiter)
        expiry = self._tree.leases.seconds_left()
        seconds = left if expiry is None else min(left, expiry)
        if self._accounts is None:
            yield Sleep(waiter, seconds)
            return
        opens = self._accounts.until - self._tree.now()
        yield Sleep(waiter, min(seconds, max(SHORTEST, opens)))

    def _left(self) -> float:
        """Seconds that it may still wait."""
        waited = 0.0 if self._begun_at is None else self._now() - self._begun_at
        return self._call.policy.wait - waited

    def _short(self, states: States, option: Option) -> Path:
        """The accounts that have no room for what it asks for; all, if none is short by itself."""
        wish = min(option.tail, option.ceiling) if option.wish is None else option.wish
        rooms = [headroom((state,), NONE_STUCK).now for state in states]
        short = [
            name
            for name, room in zip(self._names, rooms, strict=True)
            if affordable(option, room) < wish
        ]
        return tuple(short) or self._names

    def _join(self) -> Waiter:
        waiter = self._waiter = self._make_waiter(self._owner, self._names)
        self._tree.line.join(waiter)
        return waiter

    def _refuse(self, states: States, option: Option) -> Flow[None]:
        """Raise; or, with ``on_limit="warn"``, say so and let it through."""
        call = self._call
        if self._begun_at is not None:
            call.waited = self._now() - self._begun_at
        wish = option.ceiling if option.wish is None else option.wish
        full = bound(option, wish)
        call.refused(full)
        error = self._exceeded(states, option)
        if call.policy.on_limit != "warn":
            raise error
        logger().warning('a call was let through by on_limit="warn": %s', error)
        yield from self._reserve(Admit(option, wish), full, force=True)

    def _exceeded(self, states: States, option: Option) -> BudgetExceeded:
        call = self._call
        least = useful(option, self._floor)
        renewal = self._renewal(states, bound(option, least))
        names, sublimits = self._names, call.request.sublimits
        if sublimits:
            names = (*names, *[sublimit.name for sublimit in sublimits])
            states = (*states, *[sublimit.state for sublimit in sublimits])
        name, quantity, numbers = _binding(names, states, bound(option, least))
        limit, spent, reserved, uncertain, requested = (
            to_float(number) if quantity == "usd" else float(number) for number in numbers
        )
        return call.error(
            limit,
            spent,
            name=name,
            quantity=quantity,
            reserved=reserved,
            uncertain=uncertain,
            requested=requested,
            model=call.request.model,
            waited=call.waited,
            retry_after=renewal and max(0.0, renewal.window.end - self._tree.now()),
            window_ends=renewal and renewal.schedule.local(renewal.window.end),
            replaceable=call.policy.replaceable,
        )

    def _renewal(self, states: States, amount: Amount) -> Renewal | None:
        """The window after which there is room for an amount; None if time brings none."""
        if self._accounts is None or not all(
            _has_room(sublimit.state, amount) for sublimit in self._call.request.sublimits
        ):
            return None
        last: Renewal | None = None
        for state, renewal in zip(states, self._accounts.renewals(), strict=True):
            if _has_room(state, amount):
                continue
            if renewal is None or not _has_room(_empty(renewal), amount):
                return None
            if last is None or renewal.window.end > last.window.end:
                last = renewal
        return last

    def _now(self) -> float:
        return self._tree.clock.monotonic()


def _in_full(decision: Decision, options: Options) -> bool:
    """Whether the first model was admitted with all the output that it could use."""
    if type(decision) is not Admit:
        return False
    option, output_tokens = decision
    if option.model != options.first.model:
        return False
    wish = option.wish
    return output_tokens >= (min(option.tail, option.ceiling) if wish is None else wish)


def _empty(renewal: Renewal) -> AccountState:
    """The account of the next window, as it will be opened."""
    return AccountState(*renewal.limits, *NOTHING, *NOTHING, *NOTHING)


def _has_room(state: AccountState, amount: Amount) -> bool:
    return all(
        limit is None
        or sum(getattr(part, quantity) for part in (state.spent, state.reserved, state.uncertain))
        + getattr(amount, quantity)
        <= limit
        for quantity, limit in zip(Limits._fields, state.limits, strict=True)
    )


def _binding(
    path: Path, states: States, amount: Amount
) -> tuple[str, str, tuple[int, int, int, int, int]]:
    """The first account and quantity without room for an amount, and its limit and contents."""
    quantities = ("usd", "calls", "tokens", "input_tokens", "output_tokens")
    found = None
    for name, state in zip(path, states, strict=True):
        for quantity, limit in zip(quantities, state.limits, strict=True):
            if limit is None:
                continue
            spent, reserved, uncertain, wanted = (
                getattr(part, quantity)
                for part in (state.spent, state.reserved, state.uncertain, amount)
            )
            numbers = (limit, spent, reserved, uncertain, wanted)
            if spent + reserved + uncertain + wanted > limit:
                return name, quantity, numbers
            found = found or (name, quantity, numbers)
    if found is None:
        raise AssertionError("a call was refused by a path without limits")
    return found

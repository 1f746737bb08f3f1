"""Borrowing slices of a store: what is asked of it, written once for sync and async code."""

from collections.abc import Callable, Generator, Sequence
from fractions import Fraction
from itertools import count
from math import inf
from typing import TypeAlias
from weakref import WeakMethod

from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Amount,
    Command,
    Draw,
    Path,
    Read,
    Reply,
    Reserve,
    Store,
)
from tokenfence_integrations.stores.slices.holdings import Holdings
from tokenfence_integrations.stores.slices.purse import Purse
from tokenfence_integrations.stores.slices.slicing import is_large, room_for, slice_of

__all__ = ["SLICE", "Borrower", "Steps"]

SLICE = "(slice)"
"""What a slice is reserved for, in the place of a model."""

CLAIM, CLAIM_EVERY = 3.0, 20.0
"""Seconds for which what is left is held for a call that needs more; and how often, at most."""

REMEMBERED = 10_000
"""Paths of which is known when they were last used."""

DONE = Reply(True)
NOT_DONE = Reply(False)

_numbers = count(1 << 50)
"""Numbers of slices, which no call has."""

Steps: TypeAlias = Generator[Command, Reply, Reply]
"""What is to be asked of the store below, written once for sync and async code."""


class Borrower:
    """The one who decides when a slice is borrowed, and of what size, and asks for it.

    Args:
        store: Of which slices are borrowed; it is asked by whoever runs the steps.
        held: What this process holds of it.
        share: The part of each limit that a slice may be.
        linger: Seconds within which a path has to be used again to be worth a slice.
        lasting: Whether slices are borrowed with the first call, and in one piece: of a half in
            reserve nothing could be used while the store is away.
        clock: Monotonic time.
        lent: A method that is called when there is one more slice, for as long as its object lives.
    """

    def __init__(
        self,
        store: Store,
        held: Holdings,
        share: Fraction,
        *,
        linger: float,
        lasting: bool,
        clock: Callable[[], float],
        lent: Callable[[], object],
    ) -> None:
        self._store = store
        self._held = held
        self._share = share
        self._linger = linger
        self._lasting = lasting
        self._clock = clock
        self._lent = WeakMethod(lent)
        self._seen: dict[Path, float] = {}
        self._borrowing: set[Path] = set()
        self._claim_until = self._claim_again = -inf

    def borrow(self, path: Path, asked: Amount, take: Callable[[], bool]) -> Steps:
        """Have a call take what it needs of a slice, old or new, if it is worth one.

        Args:
            path: The accounts of the call.
            asked: What it needs.
            take: Has it take that, if it is there now.
        """
        purse = self._held.purses.get(path)
        if not self._is_busy(path) and purse is None:
            return NOT_DONE
        with self._held.lock:
            if path in self._borrowing:  # others need not: they go along in the same round trip
                return NOT_DONE
            self._borrowing.add(path)
        try:
            before = self._held.changes
            states = self._store.peek(path)
            if states is None:
                if purse is None and not self._lasting:
                    return NOT_DONE  # it will be known next time
                states = (yield Read(path)).states
            self._held.learn(path, states, before)
            if purse is not None and purse.spare is not None:
                yield from self._unseal(purse)
            if take():
                return DONE
            wanted = slice_of(states, asked, self._share)
            if wanted is None:
                return NOT_DONE
            if not (yield from self._add(path, wanted, asked)).done:
                return NOT_DONE
            if purse is not None:  # what was left was too little, of one quantity at least
                with self._held.lock:
                    self._held.report(purse, wanted)
        finally:
            self._borrowing.discard(path)
        return DONE if take() else NOT_DONE

    def claim(self, path: Path, asked: Amount, states: Sequence[AccountState]) -> Steps:
        """Hold what is left for a large call that needs more, so that others see that nothing is.

        Then they give back what they hold unused. It is held for a moment only, so that a call that
        waits for long does not hold up smaller ones.

        Args:
            path: The accounts of the call.
            asked: What it needs.
            states: The states of the path, in the store.
        """
        now = self._clock()
        if self._claim_until <= now < self._claim_again or not is_large(states, asked):
            return NOT_DONE
        if self._claim_until <= now:
            self._claim_until, self._claim_again = now + CLAIM, now + CLAIM_EVERY
        piece = room_for(states, asked)
        if piece == NOTHING:
            return NOT_DONE
        reply = yield from self._add(path, piece, asked)
        if (purse := self._held.purses.get(path)) is not None:
            purse.until = self._claim_until
        return reply

    def refill(self, purse: Purse) -> Steps:
        """Take the half in reserve, and borrow another."""
        with self._held.lock:
            if purse.path in self._borrowing:
                return NOT_DONE
            self._borrowing.add(purse.path)
            # Should this process die, no more than what is left is uncertain.
            self._held.report(purse)
        try:
            if purse.spare is not None:
                yield from self._unseal(purse)
            before = self._held.changes
            states = self._store.peek(purse.path)
            if states is None:
                return NOT_DONE
            self._held.learn(purse.path, states, before)
            wanted = slice_of(states, purse.asked, self._share)
            if wanted is not None and purse.spare is None:
                yield from self._add(purse.path, wanted, purse.asked, spare=not self._lasting)
        finally:
            self._borrowing.discard(purse.path)
        return DONE

    def _add(self, path: Path, amount: Amount, asked: Amount, spare: bool = False) -> Steps:
        """Borrow one more slice, for calls like the one that is asked for."""
        number = next(_numbers)
        held, reply = self._held, NOT_DONE
        held.asks(number, path, amount)
        try:
            reply = yield Reserve(path, number, amount, what=SLICE, idle=spare)
        finally:
            with held.lock:
                held.is_answered(number)
                if reply.done:
                    purse = held.purse(path)
                    purse.asked = asked
                    if spare:
                        purse.spare = number, amount
                    else:
                        purse.add(number, amount)
                else:
                    # It may have been applied although no reply came; else this changes nothing.
                    self._store.end(path, number, NOTHING, NOTHING)
        if not reply.done:
            return NOT_DONE
        if (lent := self._lent()) is not None:
            lent()
        before = self._held.changes
        states = self._store.peek(path)
        if states is not None:
            self._held.learn(path, states, before)
        return DONE

    def _unseal(self, purse: Purse) -> Steps:
        """Have the slice in reserve be one that is used; the store has to know before it is."""
        path, held, reply = purse.path, self._held, NOT_DONE
        with held.lock:
            spare, purse.spare = purse.spare, None
            if spare is None:
                return NOT_DONE
            number, amount = spare
            held.asks(number, path, amount)
        try:
            reply = yield Draw(path, number, NOTHING, NOTHING, amount)
        finally:
            with held.lock:
                held.is_answered(number)
                if reply.done and held.purses.get(path) is purse:
                    purse.add(number, amount)
                else:  # its lease was over, or the purse was emptied meanwhile
                    self._store.end(path, number, NOTHING, NOTHING)
        return reply

    def _is_busy(self, path: Path) -> bool:
        """Whether this path was used a moment ago."""
        now = self._clock()
        if len(self._seen) > REMEMBERED:
            self._seen.clear()
        before = self._seen.get(path)
        self._seen[path] = now
        return self._lasting or (before is not None and now - before < self._linger)

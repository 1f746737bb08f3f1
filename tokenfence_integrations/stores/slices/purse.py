"""What a process holds of the accounts of one path, and what its calls have used of that."""

from collections.abc import Sequence
from math import inf

from tokenfence_integrations.stores.base import NOTHING, Amount, Book, Draw, End, Path

__all__ = ["Purse"]


class Purse:
    """Reservations in a store, called slices, from which the calls of this process take theirs.

    Nothing here waits or locks; whoever uses it holds a lock, a reentrant one. ``held = free +
    calls in flight + spent + uncertain`` at all times, where the last two are what is not reported
    yet.

    Args:
        path: The accounts.

    Example:
        >>> purse = Purse(("team",))
        >>> purse.add(1, Amount(usd=100, calls=10))
        >>> purse.take(Amount(usd=30, calls=1)), purse.take(Amount(usd=80, calls=1))
        (True, False)
        >>> purse.put_back(Amount(usd=30, calls=1), Amount(usd=20, calls=1))  # is it overdrawn?
        False
        >>> purse.report(keep=Amount(usd=50, calls=5))
        [Draw(path=('team',), id=1, spent=Amount(usd=20, calls=1, ...), ..., kept=Amount(usd=50, ...
    """

    __slots__ = (
        "_calls",
        "_free",
        "_gauge",
        "_lost",
        "_low",
        "_slices",
        "_spent",
        "asked",
        "asks",
        "closed",
        "path",
        "reporting",
        "spare",
        "until",
        "used",
        "used_at",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spare: tuple[int, Amount] | None = None
        """One more slice, `Reserve.idle`: nothing is taken of it before the store has agreed."""
        self.asked = NOTHING
        """What a call asked for when the last slice was borrowed."""
        self.reporting = False
        """Whether a report is being made, by this very thread."""
        self.closed = False
        """Whether what calls leave is given back at once; until there is another slice."""
        self.asks = False
        """Whether another slice has been asked for."""
        self.used = False
        """Whether a call has taken anything since this was last set to False."""
        self.used_at = 0.0
        self.until = -inf
        """Up to when it is held although nothing uses it."""
        self._slices: dict[int, Amount] = {}
        self._free = [0, 0, 0, 0]
        self._gauge = 0
        self._low = 0
        self._calls = 0
        self._spent = [0, 0, 0, 0]
        self._lost: list[tuple[Amount, str]] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it, and nothing that is to be reported."""
        used = self._calls or self._lost or any(self._spent)
        return not (self._slices or self.spare or used)

    @property
    def held(self) -> Amount:
        """What is reserved in the store, but for `spare`."""
        return NOTHING.plus(*self._slices.values())

    @property
    def free(self) -> Amount:
        """What calls may take; below zero if one has cost more than it had taken."""
        return Amount(*self._free)

    @property
    def spent(self) -> Amount:
        """What was spent and is not reported yet."""
        return Amount(*self._spent)

    @property
    def uncertain(self) -> Amount:
        """What is uncertain and not reported yet."""
        return NOTHING.plus(*[amount for amount, _ in self._lost])

    @property
    def idle(self) -> Amount:
        """What the store counts as reserved, and calls neither hold nor have used."""
        return self.free if self.spare is None else self.free.plus(self.spare[1])

    @property
    def unused(self) -> Amount:
        """What could be given back."""
        free = _above_zero(self.free)
        return free if self.spare is None else free.plus(self.spare[1])

    @property
    def is_low(self) -> bool:
        """Whether what is free is about to run out."""
        return self._free[self._gauge] < self._low

    def add(self, key: int, amount: Amount) -> None:
        """Put a slice in."""
        self._slices[key] = amount
        self.closed = False
        _add(self._free, amount)
        self._gauge = 0 if amount.usd else 1
        self._low = self._free[self._gauge] // 2

    def take(self, amount: Amount) -> bool:
        """Have a call take an amount, if so much is free."""
        free = self._free
        usd, calls, into, out = amount
        if free[0] < usd or free[1] < calls or free[2] < into or free[3] < out:
            return False
        free[0] -= usd
        free[1] -= calls
        free[2] -= into
        free[3] -= out
        self._calls += 1
        return True

    def put_back(self, amount: Amount, spent: Amount) -> bool:
        """Have a call that has ended put back what it took, but for what it spent.

        Returns:
            Whether calls have cost so much more than they had taken that it is held nowhere.
        """
        free, total = self._free, self._spent
        usd, calls, into, out = amount
        spent_usd, spent_calls, spent_into, spent_out = spent
        free[0] += usd - spent_usd
        free[1] += calls - spent_calls
        free[2] += into - spent_into
        free[3] += out - spent_out
        total[0] += spent_usd
        total[1] += spent_calls
        total[2] += spent_into
        total[3] += spent_out
        self._calls -= 1
        return free[0] < 0 or free[1] < 0 or free[2] < 0 or free[3] < 0

    def lose(self, uncertain: Amount, what: str) -> bool:
        """Charge for a call of unknown outcome, which has put back what it took.

        Returns:
            As `put_back`.
        """
        _add(self._free, [-part for part in uncertain])
        self._lost.append((uncertain, what))
        return min(self._free) < 0

    def keep(self, amount: Amount) -> None:
        """Have a call that has put back what it took take so much of it again."""
        _add(self._free, [-part for part in amount])
        self._calls += 1

    def report(self, *, keep: Amount | None = None) -> list[Draw | End | Book]:
        """What the store has to be told, so that it knows of all that was spent.

        From then on that counts as reported.

        Args:
            keep: How much of what is free is kept, at most; None: all of it.
        """
        # A finalizer may end a call in the midst of this: what that adds counts as of afterwards.
        total, self._spent = self._spent, [0, 0, 0, 0]
        lost, self._lost = self._lost, []
        spent = Amount(*total)
        gone = spent.plus(*[amount for amount, _ in lost])
        if not self._slices:
            _add(self._free, gone)
            return [] if gone == NOTHING else [Book(self.path, gone)]
        now = self.free
        free = _above_zero(now if keep is None else Amount(*map(min, keep, now)))
        in_calls = self.held.minus(gone).minus(now)
        _add(self._free, free.minus(now))
        # What is given back is not missed.
        self._low = min(self._low, self._free[self._gauge] // 2)
        commands: list[Draw | End | Book] = []
        for amount, what in lost:
            key = max(self._slices, key=lambda each: self._slices[each].usd)
            rest = _above_zero(self._slices[key].minus(amount))
            self._slices[key] = rest
            commands.append(Draw(self.path, key, NOTHING, amount, rest, what))
        return commands + self._spend(spent, in_calls.plus(free))

    def _spend(self, spent: Amount, kept: Amount) -> list[Draw | End | Book]:
        """Say of each slice what is spent of it, and what is kept: the last ones are kept longest.

        No slice's part is above what it was, so no limit is passed in between; but for the last
        one told, which takes what is left over if calls have cost more than they had taken.
        """
        commands: list[Draw | End | Book] = []
        keeping: list[tuple[int, Amount, Amount]] = []
        for key, amount in reversed(self._slices.items()):
            stays = Amount(*map(min, kept, amount))
            kept = kept.minus(stays)
            keeping.append((key, amount, stays))
        for number, (key, amount, stays) in enumerate(reversed(keeping), 1):
            part = Amount(*map(min, spent, amount.minus(stays)))
            if number == len(keeping):
                part, stays = spent, stays.plus(kept)
            spent = spent.minus(part)
            if stays == NOTHING:
                del self._slices[key]
                commands.append(End(self.path, key, part, NOTHING))
            elif part != NOTHING or stays != amount:
                self._slices[key] = stays
                commands.append(Draw(self.path, key, part, NOTHING, stays))
        return commands

    def lose_slice(self, key: int) -> None:
        """Take note that the store does not know of a slice any more: no call may use it."""
        amount = self._slices.pop(key, NOTHING)
        _add(self._free, [-part for part in amount])


def _add(total: list[int], amount: Sequence[int]) -> None:
    for index, part in enumerate(amount):
        total[index] += part


def _above_zero(amount: Amount) -> Amount:
    return Amount(*[max(0, part) for part in amount])

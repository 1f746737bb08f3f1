"""How large a slice of a budget a process borrows: pure functions of what is left of it."""

from collections.abc import Sequence
from fractions import Fraction

from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount

__all__ = ["is_large", "is_near_limit", "parse_slice", "room_for", "slice_of", "with_room"]

LEFT_TO_OTHERS = 8
"""A slice is at most one part in so many of what is free: the less there is, the smaller it is."""

LEAST_CALLS = 4
"""A slice that is worth fewer calls is not borrowed: near a limit each call reserves for itself."""

MOST_CALLS = 4096
"""And one is worth no more, so that budgets with high limits, or none, are not held for nothing."""

ROOMY = 4
"""Quantities without a limit are borrowed so many times over, so that they do not run out first."""


def parse_slice(text: str) -> Fraction:
    """The share of a limit that a process may borrow.

    Args:
        text: ``"2%"``: above 0 %, and 50 % at most.

    Raises:
        ValueError: It is no such share.

    Example:
        >>> parse_slice("2%"), parse_slice("0.5 %")
        (Fraction(1, 50), Fraction(1, 200))
    """
    try:
        if isinstance(text, str) and text.rstrip().endswith("%"):
            share = Fraction(text.rstrip().removesuffix("%").strip()) / 100
            if 0 < share <= Fraction(1, 2):
                return share
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"a slice is a share of the limit, from above 0% to 50%, got {text!r}")


def slice_of(states: Sequence[AccountState], asked: Amount, share: Fraction) -> Amount | None:
    """The slice to borrow, in whole calls like the one that is asked for.

    Args:
        states: The states of the path.
        asked: What one call reserves.
        share: The part of each limit that it may be.

    Returns:
        The slice; None if so little is left that each call has to reserve for itself.

    Example:
        >>> team = AccountState(10_000, None, None, None, None, *[0] * 12)
        >>> slice_of([team], Amount(usd=10, calls=1), Fraction(1, 50))
        Amount(usd=200, calls=80, input_tokens=0, output_tokens=0)
        >>> slice_of([team.plus(Amount(9_900))], Amount(usd=10, calls=1), Fraction(1, 50)) is None
        True
    """
    calls, limited = MOST_CALLS, [False] * 4
    for state in states:
        used = state.spent.plus(state.reserved, state.uncertain)
        limits = state.limits
        of_each = (
            (limits.usd, used.usd, asked.usd, (0,)),
            (limits.calls, used.calls, asked.calls, (1,)),
            (limits.tokens, used.tokens, asked.tokens, (2, 3)),
            (limits.input_tokens, used.input_tokens, asked.input_tokens, (2,)),
            (limits.output_tokens, used.output_tokens, asked.output_tokens, (3,)),
        )
        for limit, taken, each, parts in of_each:
            if limit is None:
                continue
            for part in parts:
                limited[part] = True
            if each:
                most = min(
                    limit * share.numerator // share.denominator, (limit - taken) // LEFT_TO_OTHERS
                )
                calls = min(calls, most // each)
    if calls < LEAST_CALLS:
        return None
    return Amount(
        *[
            part * calls * (1 if is_limited else ROOMY)
            for part, is_limited in zip(asked, limited, strict=True)
        ]
    )


def is_near_limit(states: Sequence[AccountState], asked: Amount, share: Fraction) -> bool:
    """Whether so little is left that a slice is smaller than its share of the limit.

    Args:
        states: The states of the path.
        asked: What one call reserves.
        share: The part of each limit that a slice may be.

    Example:
        >>> team = AccountState(10_000, None, None, None, None, *[0] * 12)
        >>> is_near_limit([team.plus(Amount(8_000))], Amount(usd=10, calls=1), Fraction(1, 50))
        False
        >>> is_near_limit([team.plus(Amount(9_000))], Amount(usd=10, calls=1), Fraction(1, 50))
        True
    """
    unused = [AccountState._make([*state[:5], *[0] * 12]) for state in states]
    return slice_of(states, asked, share) != slice_of(unused, asked, share)


def room_for(states: Sequence[AccountState], asked: Amount) -> Amount:
    """As much of what is asked for as there is room for, of each quantity.

    Example:
        >>> team = AccountState(100, None, None, None, None, *[0] * 12)
        >>> room_for([team.plus(Amount(70))], Amount(usd=50, calls=1))
        Amount(usd=30, calls=1, input_tokens=0, output_tokens=0)
    """
    usd, calls, into, out = asked
    for state in states:
        used, limits = state.spent.plus(state.reserved, state.uncertain), state.limits
        usd = _at_most(usd, limits.usd, used.usd)
        calls = _at_most(calls, limits.calls, used.calls)
        into = _at_most(into, limits.input_tokens, used.input_tokens)
        out = _at_most(out, limits.output_tokens, used.output_tokens)
        into = _at_most(into, limits.tokens, used.tokens)
        out = _at_most(out, limits.tokens, used.tokens + into)
    return Amount(usd, calls, into, out)


def with_room(state: AccountState, room: Amount) -> AccountState:
    """A state in which no more is left of anything than so much; the rest counts as uncertain.

    Example:
        >>> team = AccountState(100, None, None, None, None, *[0] * 12)
        >>> with_room(team, Amount(usd=30)).uncertain
        Amount(usd=70, calls=0, input_tokens=0, output_tokens=0)
    """
    used = state.spent.plus(state.reserved, state.uncertain)
    limits = state.limits
    more = [0, 0, 0, 0]
    for index, (limit, taken, left) in enumerate(
        [
            (limits.usd, used.usd, room.usd),
            (limits.calls, used.calls, room.calls),
            (limits.input_tokens, used.input_tokens, room.input_tokens),
            (limits.output_tokens, used.output_tokens, room.output_tokens),
        ]
    ):
        if limit is not None:
            more[index] = max(0, limit - taken - max(0, left))
    if limits.tokens is not None:
        left = limits.tokens - used.tokens - more[2] - more[3]
        more[2] += max(0, left - max(0, room.tokens))
    return state.plus(NOTHING, NOTHING, Amount(*more))


def is_large(states: Sequence[AccountState], asked: Amount) -> bool:
    """Whether a call needs so much that those who hold slices may not see that it waits.

    They give back what they hold unused when less is free than is worth ``LEFT_TO_OTHERS *
    LEAST_CALLS`` of their own calls. Of those, what is reserved gives the mean.

    Args:
        states: The states of a path that has no room for it.
        asked: What it needs.

    Example:
        >>> busy = AccountState(1_000, *[None] * 4, *[0] * 4, 900, 90, *[0] * 6)
        >>> is_large([busy], Amount(usd=120, calls=1)), is_large([busy], Amount(usd=400, calls=1))
        (False, True)
    """
    most = LEFT_TO_OTHERS * LEAST_CALLS
    for state in states:
        room, reserved = room_for([state], asked), state.reserved
        for part, there, held in zip(asked, room, reserved, strict=True):
            if there < part and part * reserved.calls > most * held:
                return True
    return False


def _at_most(asked: int, limit: int | None, used: int) -> int:
    return asked if limit is None else max(0, min(asked, limit - used))

"""Which call may reserve what: a pure function of the call, the prices and the state of its path.

The order of the rules (`decide`):

1. the wanted model, or the fallback whose stage has begun, if it fits now;
2. wait, if it would fit once calls of others have settled;
3. the next fallback, by the same two rules;
4. the largest answer cap that fits, if it is still useful;
5. refuse.

A call whose caller set no output maximum has no natural bound but the model's ceiling, which would
let the first few calls pin the whole budget. How its cap is found is explained at `_open_ended`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from tokenfence_integrations.money import PICO_PER_NANO
from tokenfence_integrations.stores.base import AccountState, Amount

__all__ = [
    "ENOUGH",
    "LONE_SHARE",
    "SPREAD",
    "WAIT",
    "Admit",
    "Decision",
    "Headroom",
    "Option",
    "Refuse",
    "Room",
    "Wait",
    "affordable",
    "bound",
    "decide",
    "headroom",
    "useful",
]

ENOUGH = 1 << 100
"""Stands for "unlimited" in arithmetic."""

SPREAD = 128
"""How many more calls a call without a maximum expects while others are in flight."""

LONE_SHARE = 16
"""A lone call without a maximum takes its model's ceiling at once only if so many would fit.

One among others does so only if `SPREAD` would. Then `decide` would say the same, whatever the
number of rivals.
"""


UNUSED = (0,) * 12
"""What an account holds before its first call: nothing spent, reserved or uncertain."""

new = tuple.__new__


class Option(NamedTuple):
    """One model that could answer a call, with all that its bound depends on.

    ``wish`` is the caller's own output maximum per choice, or None. ``ceiling`` is the most that
    the model can produce per choice. ``typical`` and ``tail`` are output lengths that most and
    nearly all answers keep within (see `engine.forecast`). Rates are pico-dollars per token.
    """

    model: str
    input_tokens: int
    input_rate: int
    output_rate: int
    call_price: int
    choices: int
    wish: int | None
    ceiling: int
    typical: int
    tail: int


class Room(NamedTuple):
    """How much of each quantity is left in the tightest account of a path."""

    usd: int
    calls: int
    tokens: int
    input_tokens: int
    output_tokens: int


UNLIMITED = Room(ENOUGH, ENOUGH, ENOUGH, ENOUGH, ENOUGH)


class Headroom(NamedTuple):
    """A budget path as `decide` sees it.

    ``now`` is what is free; ``later`` is what would be free if every call of others in flight were
    released. ``settled`` is the largest share of a limit that is spent or uncertain. ``fresh``
    tells that nothing was ever charged to, or reserved in, the call's own budget.
    """

    now: Room
    later: Room
    settled: float
    fresh: bool


class Admit(NamedTuple):
    """Reserve for this option, with this output maximum per choice."""

    option: Option
    output_tokens: int


class Wait(NamedTuple):
    """It may fit once others have settled."""


class Refuse(NamedTuple):
    """It does not fit, whatever becomes of the calls in flight."""


Decision: TypeAlias = Admit | Wait | Refuse
WAIT, REFUSE = Wait(), Refuse()


def headroom(states: Sequence[AccountState], stuck: Sequence[Amount | None]) -> Headroom:
    """Sum up the accounts of a path, leaf first.

    Args:
        states: The accounts' states.
        stuck: For each account what is reserved by calls that cannot end before this one does (see
            `Tree.stuck`); None is nothing. It may be longer than the path.

    Returns:
        The path as `decide` needs it.
    """
    now = later = UNLIMITED
    settled = 0.0
    for state, held in zip(states, stuck, strict=False):
        free, freed, ratio = _account_room(state, held)
        now = free if now == UNLIMITED else Room(*map(min, now, free))
        later = freed if later == UNLIMITED else Room(*map(min, later, freed))
        settled = max(settled, ratio)
    return Headroom(now, later, settled, fresh=states[0][5:] == UNUSED)


def _account_room(s: AccountState, held: Amount | None) -> tuple[Room, Room, float]:
    usd = s[0]
    if usd is not None and s[1] is s[2] is s[3] is s[4] is None:
        # Dollars alone: by far the most common budget, so it has a short way of its own.
        charged = s[5] + s[13]
        left = usd - charged
        free = left - s[9]
        if held is not None:
            left -= held[0]
        now = new(Room, (free, ENOUGH, ENOUGH, ENOUGH, ENOUGH))
        later = now if left == free else new(Room, (left, ENOUGH, ENOUGH, ENOUGH, ENOUGH))
        return now, later, charged / usd if usd else 1.0
    limits, spent, reserved, uncertain = s[:5], s[5:9], s[9:13], s[13:17]
    charged_by = _by_quantity(Amount(*[a + b for a, b in zip(spent, uncertain, strict=True)]))
    reserved_by = _by_quantity(Amount(*reserved))
    held_by = _by_quantity(held) if held is not None else (0,) * 5
    left_by = [
        ENOUGH if limit is None else limit - charged
        for limit, charged in zip(limits, charged_by, strict=True)
    ]
    ratios = [
        charged / limit if limit else 1.0
        for limit, charged in zip(limits, charged_by, strict=True)
        if limit is not None
    ]
    # A cheaper model saves dollars; it saves tokens or calls only where dollars are not limited.
    ratio = ratios[0] if limits[0] is not None else max(ratios, default=0.0)
    now = Room(*[_less(left, part) for left, part in zip(left_by, reserved_by, strict=True)])
    later = Room(*[_less(left, part) for left, part in zip(left_by, held_by, strict=True)])
    return now, later, ratio


def _by_quantity(amount: Amount) -> tuple[int, int, int, int, int]:
    usd, calls, into, out = amount
    return usd, calls, into + out, into, out


def _less(left: int, part: int) -> int:
    return left if left == ENOUGH else left - part


def affordable(option: Option, room: Room) -> int:
    """Output tokens per choice that fit into the room; -1 if not even the input does.

    Args:
        option: The model and its rates.
        room: What is left.

    Returns:
        A number of tokens, `ENOUGH` if nothing limits it.
    """
    _, into, input_rate, output_rate, call_price, choices, *_ = option
    usd, calls, tokens, input_tokens, output_tokens = room
    if calls < 1 or into > input_tokens or into > tokens:
        return -1
    most = ENOUGH
    if usd != ENOUGH:
        pico = usd * PICO_PER_NANO - into * input_rate - call_price
        if pico < 0:
            return -1
        if output_rate:
            most = pico // (output_rate * choices)
    if tokens != ENOUGH:
        most = min(most, (tokens - into) // choices)
    if output_tokens != ENOUGH:
        most = min(most, output_tokens // choices)
    return most


def bound(option: Option, output_tokens: int) -> Amount:
    """The most that a call can cost with this output maximum per choice; dollars round up."""
    _, into, input_rate, output_rate, call_price, choices, *_ = option
    out = output_tokens * choices
    pico = into * input_rate + out * output_rate + call_price
    return Amount(-(-pico // PICO_PER_NANO), 1, into, out)


def decide(
    options: Iterable[Option],
    room: Headroom,
    *,
    rivals: int,
    patient: bool,
    min_output_tokens: int,
) -> Decision:
    """Apply the rules of this module's docstring.

    Args:
        options: The wanted model (or the fallback whose stage has begun), then the fallbacks.
        room: The state of the budget path.
        rivals: How many other calls wait for this budget at this moment.
        patient: False once the call has waited as long as it may.
        min_output_tokens: The smallest cap that is worth paying for.

    Returns:
        `Admit` with the option and its output maximum, `Wait`, or `Refuse`.
    """
    contended = room.now != room.later
    tried: list[tuple[int, Option]] = []
    could_grow = False
    for option in options:
        fits = affordable(option, room.now)
        shortest = useful(option, min_output_tokens)
        admitted, least = (
            _fixed(option, fits)
            if option.wish is not None
            else _open_ended(option, fits, rivals=rivals, contended=contended)
        )
        if admitted is not None:
            return Admit(option, admitted)
        if contended and patient:
            fits_later = affordable(option, room.later)
            if fits_later >= least:
                return WAIT
            could_grow = could_grow or (fits_later > fits and fits_later >= shortest)
        if room.fresh and not tried and fits >= shortest:
            return Admit(option, _at_most(option, fits))
        tried.append((fits, option))
    if could_grow:
        return WAIT
    capped = [(fits, o) for fits, o in tried if fits >= useful(o, min_output_tokens)]
    if not capped:
        return REFUSE
    fits, option = max(capped, key=lambda pair: pair[0])
    return Admit(option, _at_most(option, fits))


def _fixed(option: Option, fits: int) -> tuple[int | None, int]:
    """For a caller's own maximum: it whole, or what it needs to wait for."""
    wish = option.wish or 0
    return (wish if fits >= wish else None), wish


def _open_ended(
    option: Option, fits: int, *, rivals: int, contended: bool
) -> tuple[int | None, int]:
    """For a call without a maximum: its cap if it is admitted now, and what it needs to wait for.

    - Alone (nobody waits, nothing is in flight): all that the budget can pay, up to the ceiling.
    - With others: never less than ``tail``, which nearly no answer passes, so that it is cut short
      only in the rarest case; and more than that if an equal share of what is free is more. The
      share is among those known to wait, or else among `SPREAD` calls yet to come, so that no call
      pins the budget and a rich budget caps nobody.
    - Others wait and nothing is in flight, but ``tail`` does not fit: waiting would not help
      anyone, so the share is taken if it is at least a ``typical`` answer.
    """
    ceiling = option.ceiling
    typical, tail = min(option.typical, ceiling), min(option.tail, ceiling)
    if not rivals and not contended:
        return (min(ceiling, fits) if fits >= typical else None), typical
    share = fits // (rivals + 1 if rivals else SPREAD)
    if fits >= tail:
        return min(ceiling, max(tail, share)), tail
    if not contended and fits >= typical:
        return min(ceiling, max(typical, share)), typical
    return None, typical


def _at_most(option: Option, fits: int) -> int:
    return min(fits, option.ceiling if option.wish is None else option.wish)


def useful(option: Option, min_output_tokens: int) -> int:
    """The shortest answer of this model, in tokens per choice, that is worth paying for."""
    return min(min_output_tokens, option.ceiling if option.wish is None else option.wish)

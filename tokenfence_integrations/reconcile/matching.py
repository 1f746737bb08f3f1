"""Which uncertain charge a provider's export tells the cost of: only what is certain.

An export says what was billed, and not for which of our calls. So what our ledger knows is taken
away from it first; what is left are the calls of unknown outcome. See docs/reconcile.md.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from tokenfence_integrations.money import format_usd
from tokenfence_integrations.reconcile.exports import Row
from tokenfence_integrations.stores.base import Amount, Charge
from tokenfence_integrations.usage import Usage

__all__ = ["WITHIN", "Known", "Match", "Pricer", "match", "same_model"]

WITHIN = 3_600.0
"""Seconds: a request is in the export within so many of the time that the books have for it.

An export has a request's beginning, the ledger a call's end, and clocks differ. A longer time than
that makes fewer charges certain, and none wrong; a shorter one would.
"""


class Known(NamedTuple):
    """A call that the books know the end of.

    Args:
        at: Unix time of its end.
        model: The model.
        usage: What it used; None if its cost alone is known.
        cost: What it cost, in nano-dollars.
    """

    at: float
    model: str
    usage: Usage | None
    cost: int


class Match(NamedTuple):
    """What became of a charge: what it cost, or why that is not certain.

    Args:
        charge: The charge.
        spent: What to replace it by; None: it stays.
        usage: What the provider says that it used, if it says so.
        why: Where the cost is from, or what stands in the way of it.
    """

    charge: Charge
    spent: Amount | None
    usage: Usage | None
    why: str


Pricer: TypeAlias = Callable[[Row], int | None]
"""The cost of a row's tokens in nano-dollars; None if they alone do not tell it."""

Span: TypeAlias = tuple[float, float]
"""The time that an export covers, from its first row to its last."""

_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


def same_model(name: str) -> str:
    """A model's name without the maker before it and the date after it.

    Example:
        >>> same_model("openai/gpt-4o-2024-08-06")
        'gpt-4o'
    """
    return _DATE.sub("", name.rsplit("/", 1)[-1].lower())


def match(
    charges: Sequence[Charge],
    rows: Sequence[Row],
    known: Sequence[Known],
    price: Pricer,
    now: float,
) -> tuple[Match, ...]:
    """Find the cost of charges in an export.

    Args:
        charges: All uncertain charges that calls in the export may have left.
        rows: What the export says.
        known: All other calls in it: those of the ledger.
        price: Prices a row that has no cost.
        now: Unix time: what is younger than `WITHIN` may still be in flight.

    Returns:
        A match for each charge, in their order. No row is the cost of two of them.
    """
    settled = [row for row in rows if row.end <= now - WITHIN]
    matches: dict[str, Match] = {}
    for model in dict.fromkeys(same_model(charge.what) for charge in charges):
        found = _of_model(
            [charge for charge in charges if same_model(charge.what) == model],
            [row for row in settled if same_model(row.model) == model],
            [call for call in known if same_model(call.model) == model],
            price,
            _span(settled),
        )
        matches |= {each.charge.id: each for each in found}
    return tuple(
        [
            _stays(charge, "it is too young: calls in flight may be in the export as well")
            if charge.at > now - 2 * WITHIN
            else matches[charge.id]
            for charge in charges
        ]
    )


def _span(rows: Sequence[Row]) -> Span:
    return (min((r.begin for r in rows), default=0.0), max((r.end for r in rows), default=0.0))


def _of_model(
    charges: Sequence[Charge],
    rows: Sequence[Row],
    known: Sequence[Known],
    price: Pricer,
    span: Span,
) -> Iterable[Match]:
    if not rows:
        return [_stays(charge, "the export has nothing of its model") for charge in charges]
    if all(row.requests == 1 for row in rows):
        return _by_request(charges, rows, known, price, span)
    return _by_sum(charges, rows, known, price, span)


def _stays(charge: Charge, why: str) -> Match:
    return Match(charge, None, None, why)


# Rows of one request each


def _by_request(
    charges: Sequence[Charge],
    rows: Sequence[Row],
    known: Sequence[Known],
    price: Pricer,
    span: Span,
) -> Iterable[Match]:
    left, missing = _without(rows, known, price)
    strange = [row for row in left if not any(_near(row, charge.at) for charge in charges)]
    for charge in charges:
        mine = [row for row in left if _near(row, charge.at)]
        if strange:
            yield _stays(
                charge,
                f"the export has calls of its model that the books do not know (line "
                f"{strange[0].line}); export what is paid with these budgets' keys alone",
            )
        elif any(abs(call.at - charge.at) <= 2 * WITHIN for call in missing):
            yield _stays(
                charge, "the export lacks a call that the ledger knows from about the same time"
            )
        elif not mine and span[0] <= charge.at - WITHIN and charge.at + WITHIN <= span[1]:
            yield _stays(
                charge,
                f"no request of it is in the export. If that is complete for the time around it, "
                f"it was not billed: --release {charge.id}",
            )
        elif not mine:
            yield _stays(charge, "the export does not cover the time around it")
        elif len(mine) > 1:
            yield _stays(charge, f"{len(mine)} requests in the export may be its own")
        elif sum(_near(mine[0], other.at) for other in charges) > 1:
            yield _stays(charge, f"line {mine[0].line} may be of another charge as well")
        else:
            yield _settled(charge, mine[0], price)


def _without(
    rows: Sequence[Row], known: Sequence[Known], price: Pricer
) -> tuple[list[Row], list[Known]]:
    """The rows that are of no known call, and the known calls that have no row."""
    left, missing = list(rows), []
    for call in known:
        same = [row for row in left if _near(row, call.at) and _is_of(row, call, price)]
        if same:
            # Of several alike whichever is left tells the same.
            left.remove(min(same, key=lambda row: abs(row.begin - call.at)))
        else:
            missing.append(call)
    return left, missing


def _is_of(row: Row, call: Known, price: Pricer) -> bool:
    if call.usage is not None and row.usage is not None and row.usage[:2] == call.usage[:2]:
        return True
    # Some gateways count tokens in their own way, and bill the provider's.
    cost = row.cost
    if cost is None and call.usage is None:
        cost = price(row)
    return cost == call.cost


def _near(row: Row, at: float) -> bool:
    return row.begin - WITHIN <= at <= row.end + WITHIN


# Rows that add up


def _by_sum(
    charges: Sequence[Charge],
    rows: Sequence[Row],
    known: Sequence[Known],
    price: Pricer,
    span: Span,
) -> Iterable[Match]:
    inside = [call for call in known if _overlaps(call.at, span)]
    mine = [charge for charge in charges if _overlaps(charge.at, span)]
    why = _hindrance(mine, rows, inside)
    if why is None:
        usage = _sum_of(row.usage for row in rows)
        used = _sum_of(call.usage for call in inside)
        if usage is None or used is None:
            why = "the export adds requests up, and tokens of some are not known"
        else:
            rest = Usage(*[a - b for a, b in zip(usage, used, strict=True)])
            left = rows[0]._replace(usage=rest, cost=None, requests=1)
            if min(rest) < 0 or not rest.input_tokens:
                why = "the export has no more tokens of its model than the ledger"
            else:
                return [
                    _settled(c, left, price)
                    if c in mine
                    else _stays(c, "the export does not cover the time around it")
                    for c in charges
                ]
    return [_stays(charge, why) for charge in charges]


def _hindrance(
    charges: Sequence[Charge], rows: Sequence[Row], known: Sequence[Known]
) -> str | None:
    """Why the rest of a sum would not be the one charge's, if it would not."""
    if len(charges) != 1:
        return (
            f"the export adds requests up, and {len(charges)} charges may be in the same sum; "
            f"an export of single requests may tell them apart"
        )
    if len({(same.model, same.tier, same.batch) for same in rows}) > 1:
        return "the export adds requests up that have different prices"
    counts = [row.requests for row in rows]
    if None in counts:
        return "the export adds requests up, and does not say how many"
    # Calls at the edges, which the ledger knows and the export lacks, can only make it fewer.
    requests = sum(count or 0 for count in counts)
    if requests != len(known) + 1:
        return (
            f"the export has {requests} requests of its model, and the ledger {len(known)} of that "
            f"time and an hour around it: it is not one request that is left"
        )
    return None


def _overlaps(at: float, span: Span) -> bool:
    return span[0] - WITHIN <= at <= span[1] + WITHIN


def _sum_of(usages: Iterable[Usage | None]) -> Usage | None:
    total = Usage()
    for usage in usages:
        if usage is None:
            return None
        total += usage
    return total


# Both


def _settled(charge: Charge, row: Row, price: Pricer) -> Match:
    cost = price(row) if row.cost is None else row.cost
    if cost is None:
        return _stays(charge, f"its tokens alone do not tell the cost of {row.model}")
    bound, usage = charge.amount, row.usage
    into, out = (bound.input_tokens, bound.output_tokens) if usage is None else usage[:2]
    if cost > bound.usd or into > bound.input_tokens or out > bound.output_tokens:
        return _stays(
            charge,
            f"line {row.line} is of {format_usd(cost)}, more than it can have cost",
        )
    spent = Amount(cost, bound.calls, into, out)
    return Match(charge, spent, usage, f"line {row.line}")

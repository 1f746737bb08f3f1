"""``tokenfence reconcile``: list uncertain charges, and replace those whose cost is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time

from tokenfence_integrations.engine.charges import amount_by_cost
from tokenfence_integrations.engine.ledger import LedgerRecord
from tokenfence_integrations.errors import TokenFenceError, UnknownModelError
from tokenfence_integrations.money import format_usd
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Rates
from tokenfence_integrations.reconcile.exports import Row, read_export
from tokenfence_integrations.reconcile.ledgers import LedgerFile, LedgerOnFile, read_ledger
from tokenfence_integrations.reconcile.matching import Match, Pricer, match
from tokenfence_integrations.stores.base import Charge, Read, Resolve, Store

__all__ = ["ReconcileError", "Report", "Wanted", "belongs_to", "carry_out", "plan"]

TRIES = 5
"""How often a ledger is read that does not agree with the books: a call may have ended between."""


class ReconcileError(TokenFenceError):
    """What was asked for cannot be done; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for.

    Args:
        budget: Whose charges; None: all.
        older_than: The least age of a charge, in seconds.
        settle: Costs by charge id, in nano-dollars; 0: it was free.
        export: A provider's usage export.
        ledger: The file of a `LedgerFile`.
        provider: Whose prices count where the export has none.
    """

    budget: str | None = None
    older_than: float = 0.0
    settle: Mapping[str, int] = field(default_factory=dict)
    export: Path | None = None
    ledger: Path | None = None
    provider: str = "openai"


@dataclass(frozen=True)
class Report:
    """What is to be done with each charge, and what of the export could not be read."""

    matches: tuple[Match, ...]
    unread: tuple[str, ...] = ()


def belongs_to(charge: Charge, budget: str) -> bool:
    """Whether a charge is one of a budget or of one below it, in whichever window of time.

    Args:
        charge: The charge.
        budget: A budget's name (``acme/researcher``), or an account's (``acme~2026-11-24``).
    """
    plain = ["/".join(p.split("~")[0] for p in name.split("/")) for name in charge.path]
    return budget in charge.path or budget in plain


def plan(store: Store, wanted: Wanted) -> Report:
    """What to do with each charge; nothing is changed.

    Raises:
        ReconcileError: A charge that is to be settled is not there, or what is given does not fit.
        ExportError: The export or the ledger cannot be read.
        StoreError: The store cannot be used.
    """
    now = time()
    everything = store.charges()
    charges = [
        charge
        for charge in everything
        if (wanted.budget is None or belongs_to(charge, wanted.budget))
        and charge.at <= now - wanted.older_than
    ]
    unknown = wanted.settle.keys() - {charge.id for charge in charges}
    if unknown:
        raise ReconcileError(
            f"there is no uncertain charge {', '.join(sorted(unknown))} (any more) among those "
            f"asked for; nothing was changed. List them without --settle and --release"
        )
    unread: tuple[str, ...] = ()
    found: dict[str, Match] = {}
    if wanted.export is not None:
        rows, unread = read_export(wanted.export)
        # All of them, because any may be what a row of the export is about.
        found = {m.charge.id: m for m in _matched(store, everything, rows, unread, wanted, now)}
    return Report(
        tuple([_by_hand(c, wanted.settle) or found.get(c.id) or _open(c) for c in charges]), unread
    )


def _by_hand(charge: Charge, costs: Mapping[str, int]) -> Match | None:
    cost = costs.get(charge.id)
    return None if cost is None else Match(charge, amount_by_cost(charge, cost), None, "by hand")


def _open(charge: Charge) -> Match:
    return Match(charge, None, None, "")


def _matched(
    store: Store,
    charges: Sequence[Charge],
    rows: Sequence[Row],
    unread: Sequence[str],
    wanted: Wanted,
    now: float,
) -> Sequence[Match]:
    if wanted.ledger is None:
        return _all_stay(charges, "which calls of the export are known is not told: give --ledger")
    if unread:
        return _all_stay(charges, "some lines of the export cannot be read; one may be of it")
    ledger, short = _complete(store, charges, wanted.ledger)
    if short is not None:
        return _all_stay(charges, short)
    return match(charges, rows, ledger.known, _pricer(wanted.provider), now)


def _all_stay(charges: Sequence[Charge], why: str) -> Sequence[Match]:
    return [Match(charge, None, None, why) for charge in charges]


def _complete(
    store: Store, charges: Sequence[Charge], file: Path
) -> tuple[LedgerOnFile, str | None]:
    """The ledger, and why it does not hold all that is spent, if it does not."""
    roots = dict.fromkeys(charge.path[-1] for charge in charges)
    short = None
    for _ in range(TRIES):
        ledger = read_ledger(file)
        for root in roots:
            [state] = store.execute(Read((root,))).states
            if state.spent_usd != ledger.spent.get(root, 0):
                short = (
                    f"the ledger has {format_usd(ledger.spent.get(root, 0))} of the "
                    f"{format_usd(state.spent_usd)} spent of {root}, so it does not know all calls"
                )
                break
        else:
            return ledger, None
    return ledger, short


def _pricer(provider: str) -> Pricer:
    book = PriceBook(None, provider)

    def price(row: Row) -> int | None:
        if row.usage is None:
            return None
        try:
            card = book.card(row.model)
        except UnknownModelError:
            return None
        tier = row.tier or None
        if not _by_tokens(card.rates(row.usage[0], service_tier=tier, batch=row.batch)):
            return None
        return card.cost(row.usage, service_tier=tier, batch=row.batch)

    return price


def _by_tokens(rates: Rates) -> bool:
    """Whether tokens of input and output, cached or not, are all that a model is billed by."""
    extra = (rates.character, rates.call, rates.image, rates.audio_ms)
    return not any(extra) and (rates.input_audio, rates.output_audio) == (
        rates.input,
        rates.output,
    )


def carry_out(store: Store, report: Report, ledger: Path | None = None) -> list[Match]:
    """Replace the charges whose cost is known; each is also added to the ledger's file.

    Returns:
        Those that were not charged any more, and so left as they were.

    Raises:
        StoreError: The store cannot be used.
    """
    note = None if ledger is None else LedgerFile(ledger)
    gone = []
    for found in report.matches:
        charge, spent, usage, _ = found
        if spent is None:
            continue
        if not store.execute(Resolve(charge.id, spent)).done:
            gone.append(found)
        elif note is not None:
            note(
                LedgerRecord(
                    at=time(),
                    call=0,
                    accounts=charge.path,
                    model_asked=charge.what,
                    model=charge.what,
                    outcome="resolved",
                    usage=usage,
                    cost=spent.usd,
                    uncertain=-charge.amount.usd,
                    bound=0,
                    cap=None,
                    truncated=False,
                    waited=0.0,
                    tags={"charge": charge.id, "at": charge.at},
                )
            )
    return gone

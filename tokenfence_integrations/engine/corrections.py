"""Corrections of a budget's books that no call makes: what is recorded, reset and resolved."""

from collections.abc import Mapping
from typing import Any

from tokenfence_integrations.engine.calls.request import NO_TAGS
from tokenfence_integrations.engine.drivers import execute
from tokenfence_integrations.engine.events import Event
from tokenfence_integrations.engine.ledger import LedgerRecord, Outcome
from tokenfence_integrations.engine.limits.names import budget_of
from tokenfence_integrations.engine.limits.quota import Quota
from tokenfence_integrations.engine.tree import Tree
from tokenfence_integrations.stores.base import (
    NOTHING,
    Amount,
    Book,
    Charge,
    Path,
    Reset,
    Resolve,
)
from tokenfence_integrations.usage import Usage

__all__ = ["charges", "record", "reset", "resolve"]


def record(quota: Quota, spent: Amount) -> None:
    """Book what was spent outside of any guard."""
    tree = quota.tree
    tree.settle_orphans()
    path = quota.charged_path()
    tree.store.note(Book(path, spent))
    _note(tree, "recorded", path, spent, NOTHING)
    if tree.listeners:
        quota.tell_threshold()


def reset(quota: Quota) -> None:
    """Forget what is spent and uncertain, here and in all below, in the windows now open."""
    tree, below = quota.tree, quota.below()
    accounts = tuple([each.charged_path()[0] for each in below])
    with tree.correcting:
        states = execute(tree.store, Reset(accounts)).states
        for each, account, state in zip(below, accounts, states, strict=True):
            _note(tree, "recorded", (account,), state.spent.negative(), state.uncertain.negative())
            each.uncross()
    tree.line.freed()


def charges(quota: Quota) -> tuple[Charge, ...]:
    """The uncertain charges of a budget and of all below it, oldest first."""
    tree = quota.tree
    tree.settle_orphans()
    accounts = quota.accounts
    if accounts is None:
        return tree.store.charges(quota.name)
    quota.charged_path()
    found = [c for name in accounts.kept() for c in tree.store.charges(name)]
    return tuple(sorted(found, key=lambda charge: charge.at))


def resolve(quota: Quota, charge: Charge, spent: Amount, usage: Usage | None) -> bool:
    """Replace an uncertain charge by what was spent.

    Args:
        quota: That of a budget that it is charged to.
        charge: The charge.
        spent: What the call cost; nothing: it was free.
        usage: What the provider reports of it, if that is known.

    Returns:
        Whether it was still charged.
    """
    tree = quota.tree
    with tree.correcting:
        # As it is now: a reset since it was listed has taken it out of some accounts.
        now = {each.id: each for each in charges(quota)}.get(charge.id)
        if now is None or not execute(tree.store, Resolve(now.id, spent)).done:
            return False
        tags = {"charge": now.id, "at": now.at}
        _note(tree, "resolved", now.path, spent, now.amount.negative(), now.what, usage, tags)
    path = tuple(map(budget_of, now.path))
    for each in (*quota.lineage(), *quota.below()[1:]):
        if each.name in path:
            each.uncross_if_below()
    tree.line.freed()
    if tree.listeners:
        event = Event(
            kind="resolved",
            budget=path[0],
            call=0,
            at=tree.clock.wall(),
            model_asked=now.what,
            model=now.what,
            bound=now.amount.usd,
            cost=spent.usd,
            usage=usage,
            tags=tags,
        )
        tree.tell(path, event)
        quota.tell_threshold()
    return True


def _note(
    tree: Tree,
    outcome: Outcome,
    accounts: Path,
    spent: Amount,
    uncertain: Amount,
    model: str = "",
    usage: Usage | None = None,
    tags: Mapping[str, Any] = NO_TAGS,
) -> None:
    tree.ledger.append(
        LedgerRecord(
            at=tree.clock.wall(),
            call=0,
            accounts=accounts,
            model_asked=model,
            model=model,
            outcome=outcome,
            usage=usage,
            cost=spent.usd,
            uncertain=uncertain.usd,
            bound=0,
            cap=None,
            truncated=False,
            waited=0.0,
            tags=tags,
        )
    )

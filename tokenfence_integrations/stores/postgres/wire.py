"""Batches of commands on their way to PostgreSQL: each is one call of one function there."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tokenfence_integrations.stores.base import (
    AccountState,
    Adjust,
    Amount,
    Anchor,
    Book,
    Charge,
    Command,
    Draw,
    Drop,
    End,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
)
from tokenfence_integrations.stores.numbers import MOST
from tokenfence_integrations.stores.postgres.ears import PostgresEars, SleepingEars
from tokenfence_integrations.stores.postgres.link import UNSAYABLE, Link
from tokenfence_integrations.stores.remote.wire import (
    Answer,
    Batch,
    Ears,
    Order,
    Outcome,
    Unreachable,
    Wire,
    accounts_of,
    tree_of,
)

__all__ = ["PostgresWire"]


class PostgresWire(Wire):
    """Batches as calls of the function ``exchange``; a lone reservation has one of its own.

    Args:
        link: The connection.
    """

    def __init__(self, link: Link) -> None:
        self.where = link.where
        self._link = link
        self._exchange = link.sql("SELECT tokenfence.exchange(%s, %s, %s, %s, %s)")
        self._reserve_alone = link.sql(
            "SELECT tokenfence.reserve_alone(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        )

    def exchange(self, batch: Batch) -> Sequence[Outcome]:
        orders = batch.orders
        try:
            return self._apply(batch, orders)
        except UNSAYABLE as error:
            if len(orders) == 1:
                return [ValueError(f"PostgreSQL cannot hold {orders[0].command}: {error}")]
            # One of them is the culprit, and the others shall not suffer for it.
            return [outcome for order in orders for outcome in self._alone(batch, order)]

    def _alone(self, batch: Batch, order: Order) -> Sequence[Outcome]:
        return self.exchange(batch._replace(orders=[order]))

    def _apply(self, batch: Batch, orders: Sequence[Order]) -> Sequence[Outcome]:
        if len(orders) == 1 and type(orders[0].command) is Reserve and not batch.renew:
            command = orders[0].command
            tree = tree_of(command.path[-1])
            # All as text: psycopg would tell the size of each number, and prepare them all anew.
            values = (str(batch.owner), str(batch.epoch), tree, *map(_as_text, _reserve(command)))
            [(reply,)] = self._link.run(self._reserve_alone, values)
            if reply is not None:
                return [_outcome(reply)]
        changes = batch.renew or any(type(order.command) is not Read for order in orders)
        trees = {tree for order in orders for tree in _trees(order.command)}
        [(replies,)] = self._link.run(
            self._exchange,
            (
                batch.owner,
                batch.epoch,
                batch.lease if changes else None,
                _texts(sorted(trees)),
                json.dumps([_written(order) for order in orders]),
            ),
        )
        if replies is None:
            raise Unreachable("a later batch was there before this one")
        return [_outcome(reply) for reply in replies]

    def state(self, raw: Any) -> AccountState:
        return AccountState._make(raw)

    def charges(self, account: str | None) -> tuple[Charge, ...]:
        rows = self._link.run(
            self._link.sql(
                "SELECT tree || ':' || id, charged, usd, calls, input, output, "
                "extract(epoch FROM at)::float8, what FROM tokenfence.charges "
                "WHERE %s::text IS NULL OR %s = ANY (charged) ORDER BY at, id"
            ),
            (account, account),
        )
        return tuple(
            [
                Charge(id, tuple(path), Amount(*amount), at, what)
                for id, path, *amount, at, what in rows
            ]
        )

    def accounts(self, budget: str | None) -> Collection[str]:
        rows = self._link.run(
            self._link.sql(
                "SELECT name FROM tokenfence.accounts WHERE %s::text IS NULL OR name = %s "
                "OR starts_with(name, %s || '/') OR starts_with(name, %s || '~')"
            ),
            (budget,) * 4,
        )
        return [name for (name,) in rows]

    def listen(self) -> Ears:
        return SleepingEars() if self._link.pooled else PostgresEars(self._link.copy())

    def close(self) -> None:
        self._link.close()

    def forget(self) -> None:
        self._link.forget()


def _trees(command: Command) -> tuple[str, ...]:
    """The trees that a command changes; all its accounts are of one."""
    if type(command) is Resolve:
        return (command.id.rpartition(":")[0],)
    return (tree_of(accounts_of(command)[-1]),)


def _written(order: Order) -> list[Any]:
    """An order as ``exchange.sql`` reads it."""
    command = order.command
    return [order.number, type(command).__name__, *_FIELDS[type(command)](command)]


def _reserve(command: Reserve) -> list[Any]:
    path, key, amount, force, times, what, idle = command
    usd, calls, into, out = amount
    room = None
    if not force:
        room = _numbers([min(part * times, MOST) for part in (usd, calls, into, out, into + out)])
    return [_texts(path), key, _numbers(amount), room, what, idle]


def _draw(command: Draw) -> list[Any]:
    path, key, *amounts, what = command
    return [_texts(path), key, *map(_numbers, amounts), what]


def _resolve(command: Resolve) -> list[Any]:
    number = command.id.rpartition(":")[2]
    known = number.isascii() and number.isdecimal() and len(number) < 19
    return [command.id, int(number) if known else 0, _numbers(command.spent)]


_FIELDS: dict[type[Any], Callable[[Any], list[Any]]] = {
    Reserve: _reserve,
    Draw: _draw,
    End: lambda c: [_texts(c.path), c.id, _numbers(c.spent), _numbers(c.uncertain)],
    Read: lambda c: [_texts(c.path)],
    Open: lambda c: [c.account, _numbers(c.limits)],
    Book: lambda c: [_texts(c.path), _numbers(c.spent)],
    Adjust: lambda c: [_texts(c.path), _numbers(c.by), c.tokens],
    SetLimits: lambda c: [_texts(c.path), _numbers(c.limits)],
    Reset: lambda c: [_texts(c.accounts)],
    Drop: lambda c: [c.account],
    Resolve: _resolve,
    Anchor: lambda c: [c.account, c.at],
}


def _as_text(field: Any) -> str | None:
    return None if field is None else str(field)


def _numbers(numbers: Sequence[int | None]) -> str:
    """Numbers as PostgreSQL writes an array."""
    return "{" + ",".join(["null" if n is None else str(n) for n in numbers]) + "}"


def _texts(texts: Sequence[str]) -> str:
    """Texts as PostgreSQL writes an array."""
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return '{"' + '","'.join(quoted) + '"}'


def _outcome(reply: Any) -> Outcome:
    if isinstance(reply, dict):
        return KeyError(reply["unknown"])
    if isinstance(reply, list):
        done, states, *at = reply
        return Answer(done, tuple(states or ()), *at)
    return Answer(reply)

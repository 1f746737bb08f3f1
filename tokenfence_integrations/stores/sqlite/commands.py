"""What each command does with the books in a file."""

import sqlite3
from functools import partial
from typing import Any

from tokenfence_integrations.stores.base import (
    Adjust,
    Anchor,
    Book,
    Charge,
    Draw,
    Drop,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
)
from tokenfence_integrations.stores.noting import Held, sayable
from tokenfence_integrations.stores.numbers import check_numbers
from tokenfence_integrations.stores.sqlite.books import Books
from tokenfence_integrations.stores.sqlite.errors import is_busy, is_unwritten
from tokenfence_integrations.stores.sqlite.keeper import SEVERAL, Keeper, Way

__all__ = ["WAYS", "accounts", "charges", "is_open", "reserve"]

DONE = Reply(True)
NOT_DONE = Reply(False)


def is_open(keeper: Keeper, books: Books, command: Open) -> bool:
    """Whether there is nothing to be done for it."""
    return books.is_open(command)


def _read(keeper: Keeper, books: Books, command: Read) -> Reply:
    # Whose lease is over changes no sum, so a file that is locked can be read all the same.
    if keeper.depth == 1 and books.any_expired(keeper.clock()):
        try:
            keeper.transact(books, Books.expire, keeper.clock())
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
    return Reply(True, keeper.states(books, command.path))


def reserve(keeper: Keeper, books: Books, command: Reserve) -> Reply:
    """As `Reserve` says."""
    path, key, amount, *_ = command
    keeper.begin(books, 1 if len(path) == 1 else SEVERAL)
    try:
        # Before it is written: should that fail half-way, its end is written all the same.
        keeper.held[key] = Held(path, amount)
        if books.reserve(command, keeper.now):
            keeper.commit(books)
            keeper.active = True
            if keeper.tender.asleep:
                keeper.tender.asleep = False
                keeper.tender.call()
            return DONE
    except BaseException as error:
        if books.connection.in_transaction or is_unwritten(error):
            keeper.held.pop(key, None)
        keeper.roll_back(books)
        raise
    keeper.held.pop(key, None)
    keeper.roll_back(books)
    return keeper.transact(books, partial(_settled, keeper), path)


def _settled(keeper: Keeper, books: Books, path: Path) -> Reply:
    books.expire(keeper.clock())
    return Reply(False, books.states(path))


def _draw(keeper: Keeper, books: Books, command: Draw) -> Reply:
    held = keeper.held.get(command.id)
    if held is None:
        return NOT_DONE
    # Before it is written: a finalizer may end it in the midst of that.
    before = held.draw(command.kept)
    try:
        return Reply(keeper.transact(books, keeper.drawn, sayable(command)))
    except BaseException:
        held.draw(before)
        raise


def _open(keeper: Keeper, books: Books, command: Open) -> Reply:
    check_numbers(command)
    keeper.made_room = True  # perhaps: other limits may be higher ones
    return Reply(keeper.transact(books, Books.open, command))


def _book(keeper: Keeper, books: Books, command: Book) -> Reply:
    keeper.transact(books, Books.book, command)
    return DONE


def _adjust(keeper: Keeper, books: Books, command: Adjust) -> Reply:
    keeper.transact(books, Books.adjust, command)
    keeper.made_room = True
    return Reply(True, books.states(command.path))


def _set_limits(keeper: Keeper, books: Books, command: SetLimits) -> Reply:
    check_numbers(command)
    keeper.transact(books, Books.set_limits, command)
    keeper.made_room = True
    return Reply(True, books.states(command.path))


def _reset(keeper: Keeper, books: Books, command: Reset) -> Reply:
    keeper.made_room = True
    return Reply(True, keeper.transact(books, Books.reset, command.accounts))


def _drop(keeper: Keeper, books: Books, command: Drop) -> Reply:
    return Reply(keeper.transact(books, Books.drop, command))


def _resolve(keeper: Keeper, books: Books, command: Resolve) -> Reply:
    done = keeper.transact(books, Books.resolve, command)
    keeper.made_room = done
    return Reply(done)


def _anchor(keeper: Keeper, books: Books, command: Anchor) -> Reply:
    first, at = keeper.transact(books, Books.anchor, command)
    return Reply(first, at=at)


def accounts(keeper: Keeper, books: Books, budget: str | None) -> tuple[str, ...]:
    """As `Store.accounts`."""
    return keeper.transact(books, Books.accounts, budget)


def charges(keeper: Keeper, books: Books, what: object) -> tuple[Charge, ...]:
    """All that is uncertain, with what leases that are over leave."""
    return keeper.transact(books, partial(_charged, keeper), None)


def _charged(keeper: Keeper, books: Books, what: object) -> tuple[Charge, ...]:
    books.expire(keeper.now)
    return books.charges()


WAYS: dict[type[Any], Way] = {
    Open: _open,
    Read: _read,
    Reserve: reserve,
    Draw: _draw,
    Book: _book,
    Adjust: _adjust,
    SetLimits: _set_limits,
    Reset: _reset,
    Drop: _drop,
    Resolve: _resolve,
    Anchor: _anchor,
}
"""How each is done, but for `End`, which is noted."""

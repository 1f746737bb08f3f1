"""The state of a budget path, summed up for `decide`."""

import pytest

from tokenfence_integrations.engine.calls.admission import (
    ENOUGH,
    Room,
    headroom,
)
from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount


def account(
    limits: dict[str, int],
    *,
    spent: Amount = NOTHING,
    reserved: Amount = NOTHING,
    uncertain: Amount = NOTHING,
) -> AccountState:
    names = ("usd", "calls", "tokens", "input_tokens", "output_tokens")
    return AccountState(*[limits.get(name) for name in names], *spent, *reserved, *uncertain)


def test_what_is_free_is_neither_spent_nor_reserved_nor_uncertain() -> None:
    state = account({"usd": 100}, spent=Amount(20), reserved=Amount(30), uncertain=Amount(5))
    room = headroom([state], [None])
    assert (room.now.usd, room.later.usd, room.settled) == (45, 75, 0.25)


def test_what_is_stuck_is_not_waited_for() -> None:
    state = account({"usd": 100}, reserved=Amount(30))
    assert headroom([state], [Amount(10)]).later.usd == 90
    assert headroom([state], [Amount(30)]).later == headroom([state], [Amount(30)]).now


def test_the_tightest_account_of_a_path_counts_quantity_by_quantity() -> None:
    leaf = account({"usd": 50, "calls": 9})
    root = account({"usd": 100, "calls": 3, "tokens": 1_000})
    assert headroom([leaf, root], [None, None]).now == Room(50, 3, 1_000, ENOUGH, ENOUGH)


@pytest.mark.parametrize("quantity", ["usd", "calls", "tokens", "input_tokens", "output_tokens"])
@pytest.mark.parametrize("leaf_first", [True, False])
def test_no_limit_is_forgotten_wherever_it_stands_in_the_path(
    quantity: str, leaf_first: bool
) -> None:
    states = [account({quantity: 7}), account({"usd": 100, "input_tokens": 100})]
    if not leaf_first:
        states.reverse()
    room = headroom(states, [None, None])
    assert getattr(room.now, quantity) == getattr(room.later, quantity) == 7


def test_tokens_are_input_and_output_together() -> None:
    state = account({"tokens": 100}, spent=Amount(0, 1, 10, 20), reserved=Amount(0, 1, 5, 5))
    room = headroom([state], [None])
    assert (room.now.tokens, room.later.tokens, room.settled) == (60, 70, 0.3)


def test_the_settled_share_is_the_largest_of_the_path_and_of_dollars_where_they_are_limited() -> (
    None
):
    leaf = account({"usd": 100, "calls": 2}, spent=Amount(10, 2, 0, 0))
    root = account({"calls": 10}, spent=Amount(10, 5, 0, 0))
    assert headroom([leaf], [None]).settled == 0.1
    assert headroom([leaf, root], [None, None]).settled == 0.5
    assert headroom([root, leaf], [None, None]).settled == 0.5


def test_a_limit_of_nothing_is_used_up() -> None:
    assert headroom([account({"usd": 0})], [None]).settled == 1.0
    assert headroom([account({})], [None]).settled == 0.0


def test_a_budget_is_fresh_until_something_is_charged_or_reserved_in_it() -> None:
    used = account({"usd": 100}, spent=Amount(1))
    for part in ("spent", "reserved", "uncertain"):
        leaf = account({"usd": 100}, **{part: Amount(0, 1, 0, 0)})
        assert not headroom([leaf], [None]).fresh
    assert headroom([account({"usd": 100}), used], [None, None]).fresh

"""What every store keeps: commands that apply to the whole path, or not at all."""

import threading
import time
from itertools import count
from typing import Any

import pytest

from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
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
    Limits,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
    Store,
)

LEAF, ROOT = "root/leaf", "root"
PATH = (LEAF, ROOT)


def open_path(store: Store, leaf: Limits = UNLIMITED, root: Limits = UNLIMITED) -> None:
    for account, limits in ((ROOT, root), (LEAF, leaf)):
        assert store.execute(Open(account, limits)).done


def read(store: Store, account: str = LEAF) -> AccountState:
    [state] = store.execute(Read((account,))).states
    return state


def parts(state: AccountState) -> tuple[Amount, Amount, Amount]:
    return state.spent, state.reserved, state.uncertain


def test_an_account_is_made_once(store: Store) -> None:
    assert store.execute(Open(ROOT, Limits(usd=5))).done
    assert read(store, ROOT).limits == Limits(usd=5)
    assert parts(read(store, ROOT)) == (NOTHING, NOTHING, NOTHING)
    store.execute(Book((ROOT,), Amount(3)))
    store.execute(Reserve((ROOT,), 1, Amount(1)))
    assert not store.execute(Open(ROOT, Limits(usd=5))).done
    assert parts(read(store, ROOT)) == (Amount(3), Amount(1), NOTHING)


def test_other_limits_replace_those_of_an_account_and_what_is_spent_stays(store: Store) -> None:
    store.execute(Open(ROOT, Limits(usd=5)))
    store.execute(Book((ROOT,), Amount(3)))
    assert not store.execute(Open(ROOT, Limits(usd=9, calls=2))).done
    assert read(store, ROOT).limits == Limits(usd=9, calls=2)
    assert read(store, ROOT).spent == Amount(3)
    assert not store.execute(Reserve((ROOT,), 1, Amount(1, 3, 0, 0))).done
    store.execute(Open(ROOT, Limits(usd=3)))
    assert not store.execute(Reserve((ROOT,), 1, Amount(1, 3, 0, 0))).done
    assert store.execute(Reserve((ROOT,), 1, Amount(0, 3, 0, 0))).done


@pytest.mark.parametrize("again", [Limits(usd=5, calls=2), UNLIMITED])
def test_the_same_limits_or_none_leave_an_account_as_it_is(store: Store, again: Limits) -> None:
    store.execute(Open(ROOT, Limits(usd=5, calls=2)))
    store.execute(Adjust((ROOT,), Amount(4)))
    store.execute(Open(ROOT, again))
    assert read(store, ROOT).limits == Limits(usd=9, calls=2)


def test_what_is_noted_counts_at_once(store: Store) -> None:
    store.note(Open(ROOT, Limits(usd=10)))
    store.note(Book((ROOT,), Amount(2)))
    store.execute(Reserve((ROOT,), 1, Amount(8)))
    assert not store.execute(Reserve((ROOT,), 2, Amount(3))).done
    store.note(End((ROOT,), 1, Amount(4), Amount(1)))
    store.end((ROOT,), 1, Amount(9), NOTHING)
    assert parts(read(store, ROOT)) == (Amount(6), NOTHING, Amount(1))
    assert store.execute(Reserve((ROOT,), 2, Amount(3))).done


@pytest.mark.parametrize(
    "command",
    [Read(PATH), Reserve(PATH, 1, Amount(1)), Book(PATH, Amount(1)), Reset(PATH)],
)
def test_an_account_that_was_never_opened_is_an_error(store: Store, command: Command) -> None:
    with pytest.raises(KeyError, match="root"):
        store.execute(command)


def test_states_come_in_the_order_of_the_path(store: Store) -> None:
    open_path(store, leaf=Limits(usd=1), root=Limits(usd=2))
    states = store.execute(Read(PATH)).states
    assert [state.limits.usd for state in states] == [1, 2]


def test_a_reservation_counts_in_every_account_of_the_path(store: Store) -> None:
    open_path(store)
    amount = Amount(10, 1, 3, 4)
    assert store.execute(Reserve(PATH, 1, amount)).done
    for account in PATH:
        assert parts(read(store, account)) == (NOTHING, amount, NOTHING)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(usd=10),
        Limits(calls=1),
        Limits(tokens=7),
        Limits(input_tokens=3),
        Limits(output_tokens=4),
    ],
)
@pytest.mark.parametrize("limited", [LEAF, ROOT])
def test_each_limit_holds_to_the_last_unit_and_for_the_whole_path(
    store: Store, limits: Limits, limited: str
) -> None:
    given = {"leaf": UNLIMITED, "root": UNLIMITED, limited.split("/")[-1]: limits}
    open_path(store, **given)
    assert store.execute(Reserve(PATH, 1, Amount(10, 1, 3, 4))).done
    before = store.execute(Read(PATH)).states
    for one_more in (Amount(1, 1, 1, 0), Amount(1, 1, 0, 1)):
        reply = store.execute(Reserve(PATH, 2, one_more))
        if limits == Limits(input_tokens=3) and not one_more.input_tokens:
            continue
        if limits == Limits(output_tokens=4) and not one_more.output_tokens:
            store.execute(End(PATH, 2, NOTHING, NOTHING))
            continue
        assert reply == Reply(False, before)
        assert store.execute(Read(PATH)).states == before


@pytest.mark.parametrize("quantity", Limits._fields)
def test_each_limit_holds_to_the_last_unit_beyond_what_doubles_can_tell_apart(
    store: Store, quantity: str
) -> None:
    def amount(number: int) -> Amount:
        field = "input_tokens" if quantity == "tokens" else quantity
        return Amount(**{field: number})

    numbers = (10**14, 10**15 - 1, 10**15, 2**53 + 1, 10**17 + 1, 2**62 - 2)
    for first, most in zip(count(0, 10), numbers, strict=False):  # no id is ever used twice
        account = (f"root/{most}",)
        store.execute(Open(account[0], Limits(**{quantity: most})))
        assert not store.execute(Reserve(account, first + 1, amount(most + 1))).done
        assert store.execute(Reserve(account, first + 2, amount(most - 2))).done
        store.execute(End(account, first + 2, amount(most - 3), NOTHING))
        assert not store.execute(Reserve(account, first + 3, amount(1), times=4)).done
        assert store.execute(Reserve(account, first + 4, amount(2))).done
        store.execute(End(account, first + 4, NOTHING, amount(2)))
        assert not store.execute(Reserve(account, first + 5, amount(2))).done
        assert store.execute(Reserve(account, first + 6, amount(1))).done
        assert not store.execute(Reserve(account, first + 7, amount(1))).done
        store.execute(End(account, first + 6, NOTHING, NOTHING))


@pytest.mark.parametrize("ended", ["settled", "uncertain", "recorded"])
def test_what_is_charged_leaves_no_room_for_reservations(store: Store, ended: str) -> None:
    open_path(store, root=Limits(usd=10, tokens=10))
    charge = Amount(6, 1, 2, 2)
    if ended == "recorded":
        store.execute(Book(PATH, charge))
    else:
        store.execute(Reserve(PATH, 1, charge))
        amounts = (charge, NOTHING) if ended == "settled" else (NOTHING, charge)
        store.execute(End(PATH, 1, *amounts))
    assert not store.execute(Reserve(PATH, 2, Amount(5, 1, 0, 0))).done
    assert not store.execute(Reserve(PATH, 2, Amount(0, 1, 7, 0))).done
    assert store.execute(Reserve(PATH, 2, Amount(4, 1, 3, 3))).done


def test_force_reserves_past_the_limit(store: Store) -> None:
    open_path(store, root=Limits(usd=10))
    assert store.execute(Reserve(PATH, 1, Amount(25), force=True)).done
    assert read(store, ROOT).reserved.usd == 25
    assert not store.execute(Reserve(PATH, 2, Amount(0))).done


def test_an_end_replaces_the_reservation(store: Store) -> None:
    open_path(store, root=Limits(usd=100))
    store.execute(Reserve(PATH, 1, Amount(50, 1, 20, 30)))
    store.execute(Reserve(PATH, 2, Amount(5, 1, 2, 3)))
    assert store.execute(End(PATH, 1, Amount(40, 1, 18, 22), Amount(7, 1, 0, 1))).done
    for account in PATH:
        assert parts(read(store, account)) == (
            Amount(40, 1, 18, 22),
            Amount(5, 1, 2, 3),
            Amount(7, 1, 0, 1),
        )


def test_an_end_books_more_than_was_reserved_and_more_than_the_limit(store: Store) -> None:
    open_path(store, root=Limits(usd=10))
    store.execute(Reserve(PATH, 1, Amount(5)))
    store.execute(End(PATH, 1, Amount(99, 1, 1, 1), NOTHING))
    assert parts(read(store, ROOT)) == (Amount(99, 1, 1, 1), NOTHING, NOTHING)


def test_the_second_end_and_the_end_of_nothing_change_nothing(store: Store) -> None:
    open_path(store)
    store.execute(Reserve(PATH, 1, Amount(5)))
    store.execute(End(PATH, 1, NOTHING, NOTHING))
    before = store.execute(Read(PATH)).states
    for key in (1, 2):
        assert not store.execute(End(PATH, key, Amount(5), Amount(5))).done
    assert store.execute(Read(PATH)).states == before


def test_a_draw_books_a_part_of_a_reservation_and_keeps_the_rest(store: Store) -> None:
    open_path(store, leaf=Limits(usd=100), root=Limits(usd=100))
    store.execute(Reserve(PATH, 1, Amount(100, 10, 50, 50)))
    assert store.execute(Draw(PATH, 1, Amount(30, 2, 9, 8), NOTHING, Amount(60, 7, 20, 30))).done
    for account in PATH:
        assert parts(read(store, account)) == (
            Amount(30, 2, 9, 8),
            Amount(60, 7, 20, 30),
            NOTHING,
        )
    assert store.execute(Reserve(PATH, 2, Amount(10))).done
    assert not store.execute(Reserve(PATH, 3, Amount(1))).done
    store.execute(Draw(PATH, 1, Amount(20, 1, 0, 0), NOTHING, Amount(5, 1, 0, 0)))
    assert store.execute(End(PATH, 1, Amount(4, 1, 1, 1), NOTHING)).done
    for account in PATH:
        assert parts(read(store, account)) == (Amount(54, 4, 10, 9), Amount(10), NOTHING)
    assert store.charges() == ()


def test_what_is_uncertain_of_a_draw_is_a_charge_of_its_own(store: Store) -> None:
    open_path(store, root=Limits(usd=100))
    store.execute(Reserve(PATH, 1, Amount(100), what="slice"))
    store.execute(Draw(PATH, 1, Amount(10), Amount(20, 1, 2, 3), Amount(70), "gpt-4o"))
    store.execute(Draw(PATH, 1, NOTHING, Amount(5), Amount(65), "gpt-4o-mini"))
    store.execute(End(PATH, 1, NOTHING, Amount(65)))
    charges = store.charges()
    # What is left may count from when it was reserved, or from now.
    assert sorted([(c.amount, c.what) for c in charges]) == [
        (Amount(5), "gpt-4o-mini"),
        (Amount(20, 1, 2, 3), "gpt-4o"),
        (Amount(65), "slice"),
    ]
    assert [c.at for c in charges] == sorted([c.at for c in charges])
    assert len({charge.id for charge in charges}) == 3
    for charge in charges:
        assert store.execute(Resolve(charge.id, Amount(1))).done
    assert parts(read(store, ROOT)) == (Amount(13), NOTHING, NOTHING)


def test_nothing_is_drawn_from_what_is_not_reserved(store: Store) -> None:
    open_path(store)
    draw = Draw(PATH, 1, Amount(1), Amount(1), Amount(1))
    assert not store.execute(draw).done
    store.execute(Reserve(PATH, 1, Amount(5)))
    store.execute(End(PATH, 1, Amount(2), NOTHING))
    assert not store.execute(draw).done
    assert parts(read(store)) == (Amount(2), NOTHING, NOTHING)
    assert store.charges() == ()


async def test_an_idle_reservation_counts_like_any_other(store: Store) -> None:
    open_path(store, root=Limits(usd=100))
    assert (await store.aexecute(Reserve(PATH, 1, Amount(60), idle=True))).done
    assert not (await store.aexecute(Reserve(PATH, 2, Amount(60), idle=True))).done
    assert (await store.aexecute(Draw(PATH, 1, NOTHING, NOTHING, Amount(60)))).done
    assert parts(read(store)) == (NOTHING, Amount(60), NOTHING)
    store.execute(End(PATH, 1, Amount(60), NOTHING))
    assert parts(read(store)) == (Amount(60), NOTHING, NOTHING)


def test_a_refused_reservation_has_no_end(store: Store) -> None:
    open_path(store, root=Limits(usd=1))
    assert not store.execute(Reserve(PATH, 1, Amount(5))).done
    assert not store.execute(End(PATH, 1, Amount(5), NOTHING)).done
    assert parts(read(store, ROOT)) == (NOTHING, NOTHING, NOTHING)


def test_limits_are_raised_where_there_are_any_and_in_one_account(store: Store) -> None:
    open_path(store, leaf=Limits(usd=10, tokens=5), root=Limits(usd=10))
    reply = store.execute(Adjust(PATH, Amount(1, 2, 3, 4), tokens=6))
    assert [state.limits for state in reply.states] == [
        Limits(usd=11, tokens=11),
        Limits(usd=10),
    ]


@pytest.mark.parametrize("limits", [Limits(usd=7, tokens=3), Limits(calls=1), UNLIMITED])
def test_limits_are_replaced_in_one_account_and_what_is_in_it_stays(
    store: Store, limits: Limits
) -> None:
    open_path(store, leaf=Limits(usd=5, calls=4), root=Limits(usd=9))
    store.execute(Book(PATH, Amount(2)))
    store.execute(Reserve(PATH, 1, Amount(1, 1, 1, 1)))
    reply = store.execute(SetLimits(PATH, limits))
    assert reply.done
    assert [state.limits for state in reply.states] == [limits, Limits(usd=9)]
    assert parts(read(store)) == (Amount(2), Amount(1, 1, 1, 1), NOTHING)
    fits = limits.calls is None
    assert store.execute(Reserve(PATH, 2, Amount(4, 1, 0, 0))).done is fits


def test_limits_below_what_is_charged_admit_nothing_until_it_fits(store: Store) -> None:
    open_path(store, leaf=Limits(usd=10))
    store.execute(Reserve(PATH, 1, Amount(8)))
    store.execute(SetLimits(PATH, Limits(usd=5)))
    assert not store.execute(Reserve(PATH, 2, Amount(0, 1))).done
    store.execute(End(PATH, 1, Amount(3), NOTHING))
    assert store.execute(Reserve(PATH, 2, Amount(2, 1))).done


def test_replaced_limits_last_until_others_are_given_than_before(store: Store) -> None:
    store.execute(Open(ROOT, Limits(usd=5)))
    store.execute(SetLimits((ROOT,), Limits(tokens=7)))
    for again in (Limits(usd=5), UNLIMITED):
        store.execute(Open(ROOT, again))
        assert read(store, ROOT).limits == Limits(tokens=7)
    store.execute(Open(ROOT, Limits(usd=6)))
    assert read(store, ROOT).limits == Limits(usd=6)


def test_limits_of_an_account_that_was_never_opened_cannot_be_replaced(store: Store) -> None:
    with pytest.raises(KeyError, match="root"):
        store.execute(SetLimits((ROOT,), UNLIMITED))


def test_a_reset_forgets_what_is_charged_and_keeps_what_is_reserved(store: Store) -> None:
    open_path(store, leaf=Limits(usd=100))
    store.execute(Reserve(PATH, 1, Amount(10, 1, 1, 1)))
    store.execute(Reserve(PATH, 2, Amount(20, 1, 2, 2)))
    store.execute(End(PATH, 2, Amount(15, 1, 1, 1), Amount(5, 0, 1, 1)))
    before = store.execute(Read((LEAF,))).states
    assert store.execute(Reset((LEAF,))).states == before
    assert parts(read(store)) == (NOTHING, Amount(10, 1, 1, 1), NOTHING)
    assert read(store).limits == Limits(usd=100)
    assert read(store, ROOT).spent.usd == 15
    store.execute(End(PATH, 1, Amount(3, 1, 1, 1), NOTHING))
    assert read(store).spent.usd == 3


async def test_the_async_form_does_the_same(store: Store) -> None:
    open_path(store, root=Limits(usd=10))
    assert (await store.aexecute(Reserve(PATH, 1, Amount(10)))).done
    assert not (await store.aexecute(Reserve(PATH, 2, Amount(1)))).done
    assert (await store.aexecute(End(PATH, 1, Amount(4), NOTHING))).done
    [state] = (await store.aexecute(Read((ROOT,)))).states
    assert parts(state) == (Amount(4), NOTHING, NOTHING)


def test_a_dropped_account_is_gone_and_its_parents_keep_what_was_charged(store: Store) -> None:
    open_path(store)
    store.execute(Reserve(PATH, 1, Amount(10, 1)))
    assert not store.execute(Drop(LEAF)).done
    assert parts(read(store)) == (NOTHING, Amount(10, 1), NOTHING)
    store.execute(End(PATH, 1, Amount(7, 1), NOTHING))
    assert store.execute(Drop(LEAF)).done
    with pytest.raises(KeyError, match="leaf"):
        read(store)
    assert parts(read(store, ROOT)) == (Amount(7, 1), NOTHING, NOTHING)
    assert not store.execute(Drop(LEAF)).done
    assert store.execute(Open(LEAF, Limits(usd=5))).done
    assert parts(read(store)) == (NOTHING, NOTHING, NOTHING)


# Which accounts there are


def test_accounts_are_listed_by_name_for_a_budget_with_those_below_it(store: Store) -> None:
    names = [
        "acme",
        "acme/*",
        "acme/[a]/x",
        "acme/[a]~2026-11",
        "acme/ann",
        "acme/ann2",
        "acme/ann~2026-11-24",
        "acme2",
        "acme~2026-11",
        "other[a]{b}/c",
        "Ünder % way/c",
    ]
    for name in reversed(names):
        store.note(Open(name, UNLIMITED))
    assert store.accounts() == tuple(sorted(names))
    assert store.accounts("acme") == tuple(sorted([*names[:7], "acme~2026-11"]))
    assert store.accounts("acme/ann") == ("acme/ann", "acme/ann~2026-11-24")
    assert store.accounts("acme/[a]") == ("acme/[a]/x", "acme/[a]~2026-11")
    assert store.accounts("acme/*") == ("acme/*",)
    assert store.accounts("other[a]{b}") == ("other[a]{b}/c",)
    assert store.accounts("Ünder % way") == ("Ünder % way/c",)
    assert store.accounts("acm") == store.accounts("acme/%") == ()


def test_an_account_that_was_dropped_is_listed_no_more(store: Store) -> None:
    open_path(store)
    store.execute(Drop(LEAF))
    assert store.accounts() == (ROOT,)


# Uncertain charges


def lose(store: Store, key: int, amount: Amount, what: str = "", path: Path = PATH) -> Charge:
    """The charge of a call that ended as nobody knows."""
    before = store.charges()
    store.execute(Reserve(path, key, amount, what=what))
    store.execute(End(path, key, NOTHING, amount))
    [charge] = [charge for charge in store.charges() if charge not in before]
    return charge


def test_what_is_uncertain_is_listed_oldest_first_with_what_it_was_for(store: Store) -> None:
    open_path(store)
    before = time.time()
    store.execute(Reserve(PATH, 1, Amount(60, 1, 2, 3), what="gpt-4o"))
    store.execute(End(PATH, 1, Amount(5), Amount(7, 1, 0, 1)))
    store.reserve((ROOT,), 2, Amount(50), False, 1, "mini")
    store.end((ROOT,), 2, NOTHING, Amount(50))
    for key, spent in ((3, Amount(4)), (4, NOTHING)):
        store.execute(Reserve(PATH, key, Amount(9)))
        store.execute(End(PATH, key, spent, Amount(0)))
    first, second = store.charges()
    assert (first.path, first.amount, first.what) == (PATH, Amount(7, 1, 0, 1), "gpt-4o")
    assert (second.path, second.amount, second.what) == ((ROOT,), Amount(50), "mini")
    # A server's clock is not ours, and yet much the same.
    assert before - 60 <= first.at <= second.at <= time.time() + 60
    assert first.id != second.id


def test_the_charges_of_an_account_are_its_own_and_those_below_it(store: Store) -> None:
    open_path(store)
    store.execute(Open("root/leaf2", UNLIMITED))
    store.execute(Open("other", UNLIMITED))
    leaf = lose(store, 1, Amount(1))
    root = lose(store, 2, Amount(2), path=(ROOT,))
    leaf2 = lose(store, 3, Amount(3), path=("root/leaf2", ROOT))
    other = lose(store, 4, Amount(4), path=("other",))
    assert store.charges() == (leaf, root, leaf2, other)
    assert store.charges(ROOT) == (leaf, root, leaf2)
    assert store.charges(LEAF) == (leaf,)
    assert store.charges("other") == (other,)
    assert store.charges("nobody") == ()


@pytest.mark.parametrize("spent", [Amount(4, 1, 2, 2), NOTHING, Amount(99, 1, 9, 9)])
def test_a_charge_is_replaced_by_the_truth_once(store: Store, spent: Amount) -> None:
    open_path(store, root=Limits(usd=50))
    charge, other = lose(store, 1, Amount(10, 1, 5, 5)), lose(store, 2, Amount(30, 1, 1, 1))
    assert store.execute(Resolve(charge.id, spent)).done
    for _ in range(2):
        for account in PATH:
            assert parts(read(store, account)) == (spent, NOTHING, Amount(30, 1, 1, 1))
        assert store.charges() == (other,)
        assert not store.execute(Resolve(charge.id, Amount(7, 1, 0, 0))).done
    assert store.execute(Reserve(PATH, 3, Amount(max(0, 20 - spent.usd)))).done == (spent.usd <= 20)


def test_no_charge_has_an_id_that_was_never_given(store: Store) -> None:
    open_path(store)
    charge = lose(store, 1, Amount(10))
    before = read(store)
    for name in ("", "nobody", f"{charge.id}.0", f" {charge.id}", f"0{charge.id}", "999"):
        assert not store.execute(Resolve(name, Amount(5))).done
    assert read(store) == before


def test_a_charge_of_which_an_account_was_reset_counts_in_the_others_alone(store: Store) -> None:
    open_path(store)
    charge = lose(store, 1, Amount(10, 1, 5, 5))
    store.execute(Reset((LEAF,)))
    assert store.charges(LEAF) == ()
    assert store.charges() == (charge._replace(path=(ROOT,)),)
    assert store.execute(Resolve(charge.id, Amount(4, 1, 2, 2))).done
    assert parts(read(store)) == (NOTHING, NOTHING, NOTHING)
    assert parts(read(store, ROOT)) == (Amount(4, 1, 2, 2), NOTHING, NOTHING)


def test_a_charge_of_which_all_accounts_were_reset_is_gone(store: Store) -> None:
    open_path(store)
    charge = lose(store, 1, Amount(10))
    store.execute(Reset((ROOT,)))
    store.execute(Reset((LEAF,)))
    assert store.charges() == ()
    assert not store.execute(Resolve(charge.id, Amount(4))).done
    assert parts(read(store, ROOT)) == (NOTHING, NOTHING, NOTHING)


def test_a_charge_outlives_a_dropped_account_in_its_parents(store: Store) -> None:
    open_path(store)
    charge = lose(store, 1, Amount(10))
    assert store.execute(Drop(LEAF)).done
    store.execute(Open(LEAF, UNLIMITED))  # another one, of the same name
    assert store.charges(LEAF) == ()
    assert store.charges() == (charge._replace(path=(ROOT,)),)
    assert store.execute(Resolve(charge.id, Amount(4))).done
    assert parts(read(store)) == (NOTHING, NOTHING, NOTHING)
    assert parts(read(store, ROOT)) == (Amount(4), NOTHING, NOTHING)


def test_what_was_never_uncertain_leaves_no_charge(store: Store) -> None:
    open_path(store, root=Limits(usd=10))
    store.execute(Reserve(PATH, 1, Amount(10)))
    store.execute(Reserve(PATH, 2, Amount(10)))
    store.execute(Book(PATH, Amount(3)))
    store.execute(End(PATH, 1, Amount(4), NOTHING))
    assert store.charges() == ()


async def test_a_charge_is_resolved_in_async_code_as_well(store: Store) -> None:
    open_path(store)
    charge = lose(store, 1, Amount(10))
    assert (await store.aexecute(Resolve(charge.id, Amount(4)))).done
    assert not (await store.aexecute(Resolve(charge.id, Amount(4)))).done
    assert (await store.aexecute(Anchor(ROOT, 2.5))) == Reply(True, at=2.5)
    assert parts(read(store, ROOT)) == (Amount(4), NOTHING, NOTHING)


def test_threads_that_resolve_the_same_charges_resolve_each_once(store: Store) -> None:
    open_path(store)
    ids = [lose(store, key, Amount(5)).id for key in range(1, 31)]
    together = threading.Barrier(4)
    replies: list[bool] = []

    def resolve() -> None:
        together.wait()
        replies.extend([store.execute(Resolve(number, Amount(3))).done for number in ids])

    threads = [threading.Thread(target=resolve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(replies) == 30
    assert parts(read(store, ROOT)) == (Amount(90), NOTHING, NOTHING)


# Anchors


def test_the_first_anchor_stays(store: Store) -> None:
    assert store.execute(Anchor("root", 1_700_000_000.25)) == Reply(True, at=1_700_000_000.25)
    assert store.execute(Anchor("root", 1_800_000_000.0)) == Reply(False, at=1_700_000_000.25)
    assert store.execute(Anchor("other", 3.0)) == Reply(True, at=3.0)
    open_path(store)
    store.execute(Reset((ROOT,)))
    assert store.execute(Anchor("root", 5.0)) == Reply(False, at=1_700_000_000.25)


def test_what_is_peeked_is_what_is_read(store: Store) -> None:
    open_path(store, root=Limits(usd=10))
    store.execute(Reserve(PATH, 1, Amount(10)))
    peeked = store.peek(PATH)
    assert peeked == store.execute(Read(PATH)).states or (peeked is None and not store.instant)


def test_threads_that_reserve_together_never_pass_the_limit(store: Store) -> None:
    """400 wishes of 7 for 1,000: exactly 142 come true, whoever comes first."""
    open_path(store, root=Limits(usd=1_000))
    together = threading.Barrier(4)
    done: list[int] = []

    def reserve(first: int) -> None:
        together.wait()
        for key in range(first, first + 100):
            if store.execute(Reserve(PATH, key, Amount(7, 1, 0, 0))).done:
                done.append(key)

    threads = [threading.Thread(target=reserve, args=(n * 100 + 1,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 142
    assert read(store, ROOT).reserved == read(store).reserved == Amount(994, 142, 0, 0)


def test_threads_that_end_the_same_reservations_end_each_once(store: Store) -> None:
    open_path(store)
    for key in range(1, 201):
        store.execute(Reserve(PATH, key, Amount(5)))
    together = threading.Barrier(4)
    replies: list[Any] = []

    def end() -> None:
        together.wait()
        for key in range(1, 201):
            replies.append(store.execute(End(PATH, key, Amount(3), NOTHING)).done)

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(replies) == 200
    assert parts(read(store, ROOT)) == (Amount(600), NOTHING, NOTHING)

"""Children that are forgotten once nothing uses them: their parents keep what they spent."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.engine.waiters import Worker, idle
from tokenfence_integrations import Budget
from tokenfence_integrations.stores.memory import MemoryStore


def passing(parent: Budget, **options: Any) -> Budget:
    return Budget(parent=parent, kept=False, **options)


def accounts(root: Budget) -> set[str]:
    """What the tree's store holds, once all notes of finalizers have been acted on."""
    root.snapshot()
    store = root._tree.store
    assert isinstance(store, MemoryStore)
    return set(store._accounts)


def test_it_leaves_nothing_but_its_part_in_the_parents_books() -> None:
    root = small(1_000, name="root")
    for _ in range(3):
        spend(passing(root, calls=1), 10)
    assert root.children == {}
    assert accounts(root) == {"root"}
    assert charged(root) == (30, 0, 0)
    assert root.ledger.total == 30
    assert [record.cost for record in root.ledger] == [10, 10, 10]


def test_its_children_pass_with_it() -> None:
    root = small(1_000, name="root")
    request = passing(root)
    spend(request.child("researcher"), 10)
    assert len(accounts(root)) == 3
    del request
    gc.collect()
    assert accounts(root) == {"root"}
    assert root.ledger.total == 10


@pytest.mark.parametrize("size", [0, 5])
def test_the_ledgers_sums_do_not_grow_with_those_that_are_gone(size: int) -> None:
    root = small(100_000, ledger_size=size)
    held = passing(root)
    for _ in range(300):
        spend(passing(root), 10)
        spend(held, 1)
    assert accounts(root) == {root.name, held.name}
    assert root.ledger.total == root.snapshot().spent.usd == 3_300
    assert held.ledger.total == held.snapshot().spent.usd == 300
    assert len(root._tree.ledger._left) <= 2


def test_a_call_in_flight_holds_it() -> None:
    root = small(1_000, name="root")
    call = reserve(passing(root), 10).admit()
    gc.collect()
    assert len(root.children) == 1
    call.lose()
    assert charged(root) == (0, 0, 10)
    del call
    assert accounts(root) == {"root"}


def test_an_abandoned_call_is_charged_before_it_passes() -> None:
    root = small(1_000, name="root")
    reserve(passing(root), 10).admit()
    gc.collect()
    assert charged(root) == (0, 0, 10)
    assert accounts(root) == {"root"}


async def test_a_task_that_was_started_in_its_scope_holds_it() -> None:
    root = small(1_000, name="root")
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        assert len(root.children) == 1

    with passing(root).scope():
        task = asyncio.create_task(later())
    gc.collect()
    go.set()
    await task
    del task
    await idle()
    gc.collect()
    assert accounts(root) == {"root"}


def test_one_with_a_name_is_found_again_as_it_was() -> None:
    root = small(1_000, name="root")
    user = root.child("user", "$1", kept=False)
    assert root.child("user") is user
    with pytest.raises(ValueError, match="has a child 'user'"):
        Budget(name="user", parent=root)
    spend(user, 10)
    del user
    assert root.children == {}
    again = root.child("user", "$1", kept=False)
    assert charged(again) == (10, 0, 0)
    assert again.ledger.total == 10


def test_listeners_of_it_pass_too() -> None:
    root = small(1_000)
    passing(root).on_event(print)
    root.snapshot()
    assert root._tree.listeners == []


def test_reset_and_tree_include_those_that_are_there() -> None:
    root = small(1_000, name="root")
    child = passing(root)
    spend(child, 10)
    assert child.name.removeprefix("root/") in root.tree()
    root.reset()
    assert charged(child) == charged(root) == (0, 0, 0)


def test_threads_make_and_leave_them_side_by_side(
    threads_take_turns_often: Callable[[], None],
) -> None:
    root = small(10**6, name="root", ledger_size=10)

    def work() -> None:
        for _ in range(100):
            spend(passing(root, usd="$1"), 1)

    for worker in [Worker(work) for _ in range(4)]:
        worker.result()
    assert accounts(root) == {"root"}
    assert root.ledger.total == root.snapshot().spent.usd == 400


def test_an_argument_that_is_not_valid_leaves_no_note() -> None:
    root = small(1_000)
    with pytest.raises(ValueError, match="calls must be"):
        passing(root, calls=-1)
    gc.collect()
    assert not root._tree.passed

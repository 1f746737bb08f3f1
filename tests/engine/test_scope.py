"""The ambient budget: what inherits it, and where it ends."""

import asyncio
import contextlib
import contextvars
import threading

import pytest

from tokenfence_integrations import Budget, NoBudgetError
from tokenfence_integrations.engine.scope import budget_here, budget_in_scope


def test_outside_of_any_scope_there_is_none() -> None:
    with pytest.raises(NoBudgetError, match=r"budget\.scope\(\)"):
        budget_in_scope()


def test_scopes_nest_and_end_with_their_block() -> None:
    outer, inner = Budget(1), Budget(2)
    with outer.scope() as entered:
        assert entered is outer
        with contextlib.suppress(ZeroDivisionError), inner.scope():
            assert budget_in_scope() is inner
            raise ZeroDivisionError
        assert budget_in_scope() is outer
    with pytest.raises(NoBudgetError):
        budget_in_scope()


async def test_tasks_inherit_the_scope_in_which_they_were_started() -> None:
    one, other = Budget(1), Budget(2)

    async def mine() -> Budget:
        await asyncio.sleep(0)
        return budget_in_scope()

    with one.scope():
        first = asyncio.create_task(mine())
        with other.scope():
            second = asyncio.create_task(mine())
    assert await asyncio.gather(first, second) == [one, other]


async def test_a_scope_of_one_task_is_not_seen_by_another() -> None:
    entered = asyncio.Event()

    async def enter() -> None:
        with Budget(1).scope():
            entered.set()
            await asyncio.sleep(0)

    async def look() -> None:
        await entered.wait()
        with pytest.raises(NoBudgetError):
            budget_in_scope()

    await asyncio.gather(enter(), look())


async def test_threads_of_asyncio_inherit_it() -> None:
    budget = Budget(1)
    with budget.scope():
        assert await asyncio.to_thread(budget_in_scope) is budget


def test_threads_that_run_in_a_copied_context_inherit_it() -> None:
    budget = Budget(1)
    found: list[Budget | None] = []

    def look() -> None:
        try:
            found.append(budget_in_scope())
        except NoBudgetError:
            found.append(None)

    with budget.scope():
        copied = contextvars.copy_context()
        threads = [threading.Thread(target=work) for work in (lambda: copied.run(look), look)]
        for thread in threads:
            thread.start()
            thread.join()
    assert found == [budget, None]


def test_a_scope_narrows_what_counts_against_a_budget_above_it() -> None:
    team, other = Budget(1, name="team"), Budget(1, name="other")
    request = team.child("request", 1).child("step", 1)
    assert budget_here(team) is team
    with request.scope():
        assert budget_here(None) is request
        assert budget_here(team) is request  # which charges the team too
        assert budget_here(other) is other
    with team.scope():
        assert budget_here(request) is request  # a scope never widens
    with team.child("sibling", 1).scope():
        assert budget_here(request) is request
    with pytest.raises(NoBudgetError):
        budget_here(None)


def test_two_trees_of_one_name_are_not_mistaken_for_each_other() -> None:
    one, other = Budget(1, name="team"), Budget(1, name="team")
    with other.child("request", 1).scope():
        assert budget_here(one) is one

"""What has no name: shared with nobody, or refused."""

import gc
from pathlib import Path

import pytest

from tests.engine.helpers import charged, nano, spend
from tests.stores.factories import STORES
from tokenfence_integrations import Budget
from tokenfence_integrations.stores.base import Read
from tokenfence_integrations.stores.memory import MemoryStore

SHARED = sorted(STORES.keys() - {"memory"})


@pytest.mark.parametrize("kind", SHARED)
def test_a_root_without_a_name_is_refused_where_its_store_is_shared(kind: str) -> None:
    store = STORES[kind]()
    with pytest.raises(ValueError, match=r"needs a name, .* name='acme'"):
        Budget("$5", store=store)
    with pytest.raises(KeyError):  # so it has no account
        store.execute(Read(("budget",)))


def test_nothing_is_opened_for_a_root_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Budget("$5", store=f"sqlite:///{tmp_path}/budgets.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", SHARED)
def test_a_child_that_is_kept_needs_a_name_where_its_store_is_shared(kind: str) -> None:
    store = STORES[kind]()
    team = Budget(nano(1_000), name="team", store=store)
    with pytest.raises(ValueError, match=r"child of budget 'team' needs a name, .*kept=False"):
        Budget(nano(100), parent=team)
    assert team.children == {}
    spend(team.child("writer", nano(100)), 30)
    # As another process does: the name is what is shared.
    again = Budget(nano(1_000), name="team", store=store)
    assert charged(again.child("writer", nano(100))) == (30, 0, 0)


@pytest.mark.parametrize("kind", sorted(STORES))
def test_a_passing_child_without_a_name_is_nobody_elses(kind: str) -> None:
    store = STORES[kind]()
    trees = [Budget(nano(1_000), name="team", store=store) for _ in range(2)]
    works = [Budget(nano(100), parent=team, kept=False) for team in trees]
    parts = [Budget(nano(50), parent=work) for work in works]  # which pass with it
    for part in parts:
        spend(part, 50)
    assert [charged(part) for part in parts] == [(50, 0, 0)] * 2
    assert len({part.name for part in parts}) == 2
    assert charged(trees[0]) == (100, 0, 0)


def test_what_has_no_name_is_not_found_again_below_a_child_that_passes_and_comes_back() -> None:
    team = Budget(nano(1_000), name="team", store=MemoryStore())
    for spent in (40, 80):
        user = Budget(parent=team, name="ann", kept=False)
        part = Budget(nano(50), parent=user)
        spend(part, 40)
        assert charged(part) == (40, 0, 0)
        assert charged(user) == (spent, 0, 0)  # which has a name
        del part, user
        gc.collect()


def test_budgets_in_memory_need_no_name() -> None:
    root = Budget(nano(1_000), store="memory:")
    assert [root.name, Budget(parent=root).name] == ["budget", "budget/budget-1"]


@pytest.mark.parametrize("limit", ["$5", "$5/day"])
def test_a_second_root_without_a_name_is_refused_where_it_would_share_the_account(
    limit: str,
) -> None:
    store = MemoryStore()
    first = Budget(limit, store=store)
    with pytest.raises(ValueError, match=r"unnamed budget .account 'budget'.*name='acme'"):
        Budget("$7", store=store)
    assert first.remaining == 5.0  # whose limit is not another one's now
    Budget("$7", name="acme", store=store).record(2)
    assert first.remaining == 5.0
    assert Budget("$7", store=MemoryStore()).remaining == 7.0

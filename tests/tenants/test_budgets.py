"""Budgets found by key: those of the file, and those of tenants by their tier."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.helpers import FakeClock, charged, nano, reserve, spend
from tests.engine.waiters import Worker
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Budgets, UnknownBudgetError, guard
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.tenants.plan import Template, segment
from tokenfence_integrations.testing import SimulatedProvider

FILE: dict[str, Any] = {
    "threshold": 0.5,
    "default_tier": "free",
    "budgets": {
        "acme": {
            "usd": "$10",
            "research": {"usd": "60%", "threshold": 0.9, "writer": {"calls": 5}},
        },
        "users": {"usd": "$5", "known": {"usd": "$3"}},
    },
    "tiers": {
        "free": {"name": "users/{tenant}", "usd": "10%", "calls": 100},
        "pro": {"name": "user:{tenant}", "usd": "$2", "agent": {"usd": "50%"}},
        "gold": {"name": "user:{tenant}", "usd": "$4"},
    },
}


def budgets(**options: Any) -> Budgets:
    return Budgets.from_dict(FILE, **options)


def changed(**paths: Any) -> dict[str, Any]:
    """The file with other values, by path with ``__`` between its parts; None takes one away."""
    data = _copied(FILE)
    for path, value in paths.items():
        *above, last = path.split("__")
        table = data
        for key in above:
            table = table[key]
        if value is None:
            del table[last]
        else:
            table[last] = value
    return data


def _copied(table: Any) -> Any:
    return {k: _copied(v) for k, v in table.items()} if isinstance(table, dict) else table


# Those in the file


def test_a_key_of_the_file_is_a_budget_below_those_above_it() -> None:
    found = budgets()
    writer = found["acme/research/writer"]
    assert writer is found["acme/research/writer"]
    assert writer.path == ("acme/research/writer", "acme/research", "acme")
    assert writer.snapshot().limits.calls == 5
    assert writer.parent is found["acme/research"]
    assert found["acme/research"].budget == 6
    assert [found[key].threshold for key in ("acme", "acme/research", "acme/research/writer")] == [
        0.5,
        0.9,
        0.9,
    ]
    assert list(found) == [
        "acme",
        "acme/research",
        "acme/research/writer",
        "users",
        "users/known",
    ]
    assert "acme/research" in found
    assert "users/ann" not in found


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("acme/reserch", "acme/research"),
        ("acm", "acme"),
        ("user:ann/agnt", ""),
        ("users/known/x", "users/known"),
        ("", ""),
    ],
)
def test_a_key_that_is_not_there_is_a_key_error_with_near_ones(key: str, near: str) -> None:
    with pytest.raises(KeyError) as told:
        budgets(tier_of=lambda _: "pro")[key]
    assert isinstance(told.value, UnknownBudgetError)
    assert near in str(told.value)
    assert key in str(told.value)


def test_all_trees_lie_in_one_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/budgets.db"
    here, there = (Budgets.from_dict({**FILE, "store": url}) for _ in range(2))
    spend(here["acme/research"], 5)
    spend(here.tenant("ann", "pro"), 7)
    assert charged(there["acme"]) == (5, 0, 0)
    assert charged(there.tenant("ann", "pro")) == (7, 0, 0)


def test_a_guarded_client_keeps_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with SimulatedProvider(output_tokens=50) as provider:
        found = budgets()
        client = guard(
            openai.OpenAI(base_url=provider.base_url, api_key="unused"),
            budget=found["acme/research"],
        )
        client.responses.create(model="gpt-4o", input="Why?", max_output_tokens=100)
        client.close()
        assert found["acme"].snapshot().spent.usd == provider.billed > 0


# Tenants


def test_a_tenant_has_the_budget_of_its_tier() -> None:
    found = budgets(tier_of={"ann": "pro", "bob": "gold"}.get)
    ann, bob, eve = found.tenant("ann"), found.tenant("bob"), found.tenant("eve")
    assert [b.name for b in (ann, bob, eve)] == ["user:ann", "user:bob", "users/eve"]
    assert [b.budget for b in (ann, bob, eve)] == [2, 4, 0.5]
    assert eve.parent is found["users"]
    assert found["user:ann"] is ann
    assert found["users/eve"] is eve
    agent = found["user:ann/agent"]
    assert (agent.budget, agent.parent) == (1, ann)


def test_a_tenant_that_is_in_the_file_has_what_it_says() -> None:
    found = budgets()
    assert found.tenant("known") is found["users/known"]
    assert found.tenant("known").budget == 3


def test_a_key_of_another_tier_than_the_tenants_is_told() -> None:
    with pytest.raises(UnknownBudgetError, match="is of tier 'pro', whose budget is 'user:ann'"):
        budgets(tier_of=lambda _: "pro")["users/ann"]


def test_a_tier_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="'free', 'pro', 'gold'"):
        budgets().tenant("ann", "platinum")
    with pytest.raises(ValueError, match="not known: name it"):
        Budgets.from_dict(changed(default_tier=None)).tenant("ann")
    with pytest.raises(ValueError, match="not known: name it"):
        Budgets.from_dict(changed(default_tier=None))["user:ann"]
    assert Budgets.from_dict(changed(default_tier=None))["users/ann"].budget == 0.5


@pytest.mark.parametrize("tenant", ["", True, None, b"ann", 1.5])
def test_what_is_no_tenant_is_an_error(tenant: Any) -> None:
    with pytest.raises(ValueError, match="a tenant must be text"):
        budgets().tenant(tenant)


def test_a_tenant_that_changes_its_tier_keeps_what_it_has_spent() -> None:
    found = budgets()
    ann = found.tenant("ann", "pro")
    spend(ann, 10)
    assert found.tenant("ann", "gold") is ann
    assert (ann.budget, charged(ann)) == (4, (10, 0, 0))
    del ann
    assert found.tenant("ann", "pro").budget == 2
    assert charged(found.tenant("ann", "pro")) == (10, 0, 0)


names = st.text(min_size=1, max_size=12)


@given(one=names, other=names)
def test_no_tenants_budget_is_anothers(one: str, other: str) -> None:
    assert (segment(one) == segment(other)) == (one == other)
    assert not set("/~") & set(segment(one))
    for template in (
        Template((), "", ""),
        Template(("a", "b"), "user:", ""),
        Template((), "<", ">"),
    ):
        assert template.tenant((*template.names(one), "agent")) == one


@given(
    keys=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), max_size=8),
    limit=st.integers(1, 100),
)
def test_every_key_of_every_tree_is_found_below_its_parent(keys: list[Any], limit: int) -> None:
    data: dict[str, Any] = {}
    for names in keys:
        table = data
        for name in names:
            table = table.setdefault(name, {"usd": nano(limit)})
    found = Budgets.from_dict({"budgets": data})
    for key in {"/".join(names[:depth]) for names in keys for depth in range(1, len(names) + 1)}:
        budget = found[key]
        assert budget.name == key
        assert budget.path == tuple(key.rsplit("/", n)[0] for n in range(key.count("/") + 1))
        spend(budget, 1) if budget.snapshot().spent.usd + 1 <= limit and _room(budget) else None
    for root in data:
        assert found[root].snapshot().spent.usd <= limit


def _room(budget: Budget | None) -> bool:
    return budget is None or (
        budget.snapshot().remaining_usd >= nano(1) and _room(budget.parent)  # type: ignore[operator]
    )


# Memory


def test_a_tenant_is_there_while_something_uses_it() -> None:
    found = budgets()
    for tier in ("free", "pro"):
        call = reserve(found.tenant("ann", tier), 10).admit()
        gone = weakref.ref(call.budget)
        gc.collect()
        assert found.tenant("ann", tier) is call.budget
        call.lose()
        del call
        gc.collect()
        assert gone() is None
        assert charged(found.tenant("ann", tier)) == (0, 0, 10)


@pytest.mark.parametrize("tier", ["free", "pro"])
def test_an_abandoned_call_of_a_tenant_that_is_gone_ends(tier: str) -> None:
    found = budgets()
    reserve(found.tenant("ann", tier), 10).admit()
    gc.collect()
    found.tenant("other", tier).snapshot()
    gc.collect()
    assert charged(found.tenant("ann", tier)) == (0, 0, 10)


@pytest.mark.parametrize("tier", ["free", "pro"])
def test_a_second_round_of_tenants_grows_nothing(tier: str) -> None:
    store = MemoryStore()
    found = Budgets.from_dict(changed(ledger_size=10), store=store)

    def touch_all() -> list[int]:
        for number in range(300):
            tenant = found.tenant(f"user-{number}", tier)
            tenant.on_event(lambda event: None)
            spend(tenant, 1)
        del tenant
        gc.collect()
        users = found["users"]
        users.snapshot()
        tree = users._tree
        return [
            len(users.children),
            len(tree.listeners),
            len(tree.ledger._open),
            len(tree.ledger._left),
            len(tree.passed),
            len(tree._retiring),
            sum(map(len, found._alive.values())),
            len(store._accounts),
            len(store._reservations),
        ]

    first = touch_all()
    assert first == touch_all()
    users = found["users"]
    assert len(store._accounts) == 301
    assert first[0] == first[1] == first[6] == 0
    assert max(first[2:6]) <= 3
    if tier == "free":
        assert users.ledger.total == users.snapshot().spent.usd == 600


@pytest.mark.parametrize("tier", ["free", "pro"])
def test_windows_of_tenants_that_are_gone_are_dropped(tier: str) -> None:
    clock, store = FakeClock(), MemoryStore()
    data = changed(budgets__users__usd="$5/minute", tiers__pro__usd="$2/minute")
    found = Budgets.from_dict(data, store=store, clock=clock.clock)
    sizes = []
    for _ in range(40):
        for number in range(5):
            spend(found.tenant(f"user-{number}", tier), 1)
        gc.collect()
        sizes.append(len(store._accounts))
        clock.advance(60)
    assert max(sizes[-10:]) <= max(sizes[:25])


def test_threads_that_ask_for_one_tenant_get_the_same_budget(
    threads_take_turns_often: Callable[[], None],
) -> None:
    found = budgets()
    together = threading.Barrier(4)

    def look(tier: str) -> list[Budget]:
        together.wait()
        return [found.tenant(f"user-{number}", tier) for number in range(100)]

    for tier in ("free", "pro"):
        rounds = [worker.result() for worker in [Worker(lambda t=tier: look(t)) for _ in range(4)]]
        for same in zip(*rounds, strict=True):
            assert len(set(map(id, same))) == 1


# Reloading


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]()


def test_reloaded_limits_count_for_calls_in_flight_and_spent_money_stays(store: Store) -> None:
    found = budgets(store=store)
    team, ann, eve = found["acme/research"], found.tenant("ann", "pro"), found.tenant("eve")
    agent = found["users/known"]
    for budget in (team, ann, eve):
        spend(budget, 10)
    with reserve(team, 1_000) as call:
        found.reload(
            changed(
                budgets__acme__usd=nano(1_100),
                budgets__users__usd="$50",
                budgets__users__known__usd=None,
                tiers__pro__usd="$3",
            )
        )
        assert charged(team) == (10, 1_000, 0)
        with pytest.raises(BudgetExceeded):
            reserve(team, 100, wait=0).admit()
        call.release()
    assert [budget.snapshot().limits.usd for budget in (team, ann, eve)] == [660, 3e9, 5e9]
    assert agent.snapshot().limits.usd is None
    assert [charged(budget)[0] for budget in (team, ann, eve)] == [10, 10, 10]


def test_a_reload_wakes_those_who_wait(asleep: Any) -> None:
    found = Budgets.from_dict({"budgets": {"a": {"usd": nano(10)}}})
    held = reserve(found["a"], 10).admit()
    waiter = Worker(lambda: spend(found["a"], 10))
    asleep.wait()
    found.reload({"budgets": {"a": {"usd": nano(20)}}})
    waiter.result()
    assert charged(found["a"]) == (10, 10, 0)
    held.release()


def test_a_reload_of_the_same_keeps_what_was_changed_by_hand(store: Store) -> None:
    found = budgets(store=store)
    found["acme"].top_up("$5")
    found.tenant("ann", "pro").set_limits("$9")
    gc.collect()
    found.reload(_copied(FILE))
    assert found["acme"].budget == 15
    assert found["acme/research"].budget == 9
    assert found.tenant("ann", "pro").budget == 9


def test_a_reload_with_a_mistake_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text('[budgets.a]\nusd = "$1"\n[budgets.b]\nusd = "$1"\n')
    found = Budgets.from_toml(file)
    for text in (
        '[budgets.a]\nusd = "$2"\n[budgets.b]\nusd = "x"\n',
        'store = "sqlite:///x.db"',
        "# nothing yet\n",
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"budgets\.toml: (budgets\.b\.usd|store|it is empty)"):
            found.reload()
        assert found["a"].budget == 1
    file.write_text('[budgets.a]\nusd = "$2"\n[budgets.c]\nusd = "$3"\n')
    b = found["b"]
    found.reload()
    assert (found["a"].budget, found["c"].budget) == (2, 3)
    with pytest.raises(KeyError):
        found["b"]
    spend(b, 5)


@pytest.mark.parametrize(
    "look",
    [lambda found: found.tenant("ann"), lambda found: found["user:ann"]],
    ids=["tenant", "key"],
)
def test_a_budget_that_is_looked_up_while_the_file_is_read_anew_is_as_the_new_one_says(
    look: Callable[[Budgets], Budget],
) -> None:
    new = [changed(tiers__pro__usd="$3")]

    def tier_of(tenant: str) -> str:
        if new:  # another thread, say
            found.reload(new.pop())
        return "pro"

    found = budgets(tier_of=tier_of)
    assert look(found).budget == 3


def test_of_two_threads_that_reload_the_later_has_the_later_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text('[budgets.a]\nusd = "$1"\n')
    found = Budgets.from_toml(file)
    read_text, workers = Path.read_text, []

    def slowly(path: Path, **options: Any) -> str:
        text = read_text(path, **options)
        if not workers:
            file.write_text('[budgets.a]\nusd = "$2"\n')
            workers.append(Worker(found.reload))
            workers[0].join(0.2)  # it has to wait, and else would be overtaken
        return text

    monkeypatch.setattr(Path, "read_text", slowly)
    found.reload()
    workers[0].result()
    assert found["a"].budget == 2


def test_a_borrower_that_is_in_the_file_no_longer_is_stopped_by_its_own_limit(
    store: Store,
) -> None:
    borrower = {"usd": nano(40), "overflow": True}
    data = {"budgets": {"a": {"usd": nano(100), "b": borrower, "c": borrower}}}
    found = Budgets.from_dict(data, store=store)
    b, c = found["a/b"], found["a/c"]
    found.reload({"budgets": {"a": {"calls": 99, "c": {"usd": nano(50)}}}})
    for held, most in ((b, 40), (c, 50)):
        spend(held, most)
        with pytest.raises(BudgetExceeded, match=held.name):
            reserve(held, 1, wait=0).admit()
    found.reload(data)
    spend(b, 10)


def test_what_was_made_of_a_dict_is_reloaded_with_one() -> None:
    with pytest.raises(ValueError, match="needs the new one"):
        budgets().reload()


def test_a_root_that_comes_and_goes_is_one_budget_for_those_who_hold_it() -> None:
    found = budgets()
    ann = found.tenant("ann", "pro")
    found.reload(changed(budgets__acme=None) | {"budgets": {**FILE["budgets"], "user:ann": {}}})
    assert found["user:ann"] is ann
    assert ann.snapshot().limits.usd is None
    found.reload(_copied(FILE))
    assert found.tenant("ann", "pro") is ann
    assert ann.budget == 2


def test_windows_can_change_while_calls_are_in_flight() -> None:
    clock = FakeClock()
    found = Budgets.from_dict(
        {"budgets": {"a": {"usd": "$5", "b": {"usd": "20%"}}}}, clock=clock.clock
    )
    child = found["a/b"]
    with reserve(child, 10) as call:
        found.reload({"budgets": {"a": {"usd": "$5/minute", "b": {"usd": "20%"}}}})
        assert child.window is not None
        assert charged(child) == (0, 0, 0)
        call.release()
    spend(child, 7)
    assert charged(found["a"]) == (7, 0, 0)
    clock.advance(60)
    assert charged(found["a"]) == (0, 0, 0)
    assert child.budget == 1

"""Promises 1 to 4 of the design, after every step of every history that hypothesis can think of."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.engine.helpers import BOOK, nano
from tests.properties.model import QUANTITIES, Account, Amounts, Ending, Terms, end
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded, Call, Usage
from tokenfence_integrations.stores.base import Store

CEILING = 10_000
DIVISOR = {"model": 1, "mini": 10}
"""A token costs one nano-dollar, or a tenth of one (see `BOOK`)."""

sizes = st.integers(0, 120)
counts = st.one_of(st.integers(0, 600), st.sampled_from([100, 200, 400]))
amounts = {name: counts if name != "calls" else st.integers(0, 12) for name in QUANTITIES}
shares = st.sampled_from(["0%", "33.3%", "50%", "100%"])
limits = st.fixed_dictionaries({}, optional=amounts)
parts = st.fixed_dictionaries({}, optional={n: st.one_of(a, shares) for n, a in amounts.items()})
changes = st.fixed_dictionaries(
    {}, optional={name: st.one_of(a, shares, st.none()) for name, a in amounts.items()}
)


def price(model: str, into: int, out: int) -> Amounts:
    """The most that so many tokens cost, rounded up."""
    return Amounts(-(-(into + out) // DIVISOR[model]), 1, into, out)


def cost(model: str, usage: Usage) -> Amounts:
    """What a usage costs, rounded half to even."""
    exact = Decimal(usage.input_tokens + usage.output_tokens) / DIVISOR[model]
    return Amounts(round(exact), 1, usage.input_tokens, usage.output_tokens)


class Trees(RuleBasedStateMachine):
    """Grows a tree of budgets, and makes calls on it, beside a model of what must come of it."""

    make_store: Callable[[], Store]
    budgets: Bundle[tuple[Budget, Account]] = Bundle("budgets")
    calls: Bundle[list[Any]] = Bundle("calls")  # [call, account, bound, model]; emptied when ended

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.known: list[tuple[Budget, Account]] = []
        self.ended: list[Call] = []
        self.open = 0
        self.was_reset = False

    def teardown(self) -> None:
        self.loop.close()

    # A tree

    @initialize(target=budgets, limits=limits)
    def root(self, limits: dict[str, int]) -> Any:
        self.store = type(self).make_store()
        budget = Budget(name="budget", store=self.store, ledger_size=4, **_in_dollars(limits))
        return self._known(budget, Account(budget.name, limits, None))

    @rule(target=budgets, parent=budgets, limits=parts, overflow=st.booleans())
    def child(
        self, parent: tuple[Budget, Account], limits: dict[str, int | str], overflow: bool
    ) -> Any:
        if len(self.known) >= 6:
            return multiple()
        above, account = parent[0], Account("", _terms(limits), parent[1], overflow)
        given = {"name": f"budget-{len(self.known)}", "overflow": overflow, **_in_dollars(limits)}
        if not account.is_sound():
            before = above.children
            with pytest.raises(ValueError, match=r"share|overflow|parent"):
                Budget(parent=above, **given)
            assert above.children == before
            return multiple()
        budget = Budget(parent=above, **given)
        account.name = budget.name
        return self._known(budget, account)

    def _known(self, budget: Budget, account: Account) -> tuple[Budget, Account]:
        self.known.append((budget, account))
        return budget, account

    # Calls

    @rule(
        target=calls,
        on=budgets,
        model=st.sampled_from(sorted(DIVISOR)),
        fallback=st.sampled_from([None, "mini"]),
        into=sizes,
        wish=st.one_of(st.none(), sizes),
        choices=st.integers(1, 3),
        least=st.sampled_from([1, 16, 60]),
        on_limit=st.sampled_from(["raise", "raise", "raise", "warn"]),
        on_unknown=st.sampled_from(["charge", "release"]),
        in_task=st.booleans(),
    )
    def reserve(
        self,
        on: tuple[Budget, Account],
        model: str,
        fallback: str | None,
        into: int,
        wish: int | None,
        choices: int,
        least: int,
        on_limit: Any,
        on_unknown: Any,
        in_task: bool,
    ) -> Any:
        budget, account = on
        call = budget.reserve(
            model=model,
            input_tokens=into,
            max_output_tokens=wish,
            choices=choices,
            fallback=fallback,
            min_output_tokens=least,
            on_limit=on_limit,
            on_unknown=on_unknown,
            wait=0,
            prices=BOOK,
        )
        models = dict.fromkeys([model, *([fallback] if fallback else [])])
        useful = min(least, CEILING if wish is None else wish)
        fits = any(account.has_room(price(m, into, useful * choices)) for m in models)
        try:
            if in_task:
                self.loop.run_until_complete(call.aadmit())
            else:
                call.admit()
        except BudgetExceeded:
            assert on_limit == "raise"
            assert not fits, "refused although it fits"
            return multiple()
        bound = Amounts(*call.bound)
        assert call.model in models
        assert bound == price(call.model, into, bound.output_tokens)
        assert bound.output_tokens <= choices * (CEILING if wish is None else wish)
        if not account.has_room(bound, stale=True):
            assert on_limit == "warn", "admitted although it does not fit"
            account.excuse(bound)
        for each in account.path():
            each.reserved.add(bound)
        self.open += 1
        return [call, account, bound, call.model]

    def _end(self, entry: list[Any], ending: Ending) -> None:
        _, account, bound, _ = entry
        end(account, bound, ending)
        self.open -= 1

    @rule(
        entry=consumes(calls),
        more=st.sampled_from([-20, -1, 0, 0, 1, 50]),
        in_task=st.booleans(),
    )
    def settle(self, entry: list[Any], more: int, in_task: bool) -> None:
        call, account, bound, model = entry
        usage = Usage(bound.input_tokens, max(0, bound.output_tokens + more))
        true = cost(model, usage)
        if more > 0:
            account.excuse(true)
        if in_task:
            self.loop.run_until_complete(call.asettle(usage))
        else:
            call.settle(usage)
        assert call.cost == true.usd
        self.ended.append(call)
        self._end(entry, Ending(spent=true))

    @rule(entry=consumes(calls))
    def release(self, entry: list[Any]) -> None:
        entry[0].release()
        self.ended.append(entry[0])
        self._end(entry, Ending())

    @rule(entry=consumes(calls), how=st.sampled_from(["lose", "fail", "leave", "forget"]))
    def lose(self, entry: list[Any], how: str) -> None:
        call, _, bound, _ = entry
        kept = call.policy.on_unknown == "charge"
        if how == "lose":
            call.lose()
        elif how == "fail":
            call.fail(TimeoutError())
        elif how == "leave":
            call.__exit__(None, None, None)
        else:
            entry[0] = None
        del call
        self._end(entry, Ending(uncertain=bound if kept else Amounts()))

    @rule(
        on=budgets,
        number=st.integers(0, 20),
        truth=st.one_of(st.integers(0, 200), st.tuples(sizes, sizes)),
    )
    def resolve(self, on: tuple[Budget, Account], number: int, truth: Any) -> None:
        charges = on[0].charges()
        if not charges:
            return
        charge = charges[number % len(charges)]
        charged = Amounts(*charge.amount)
        if isinstance(truth, tuple):
            usage = Usage(*truth)
            spent = cost(charge.what, usage)
            done = on[0].resolve(charge, usage, prices=BOOK)
        else:
            spent = replace(charged, usd=truth) if truth else Amounts()
            done = on[0].resolve(charge, nano(truth))
        assert done
        assert not on[0].resolve(charge, nano(7)), "resolved twice"
        for _, account in self.known:
            if account.name in charge.path:
                account.uncertain.add(charged, -1)
                account.spent.add(spent)
                for quantity in QUANTITIES:
                    account.beyond[quantity] += max(0, getattr(spent, quantity))
                if account.name == charge.path[0]:
                    account.own.add(spent)

    @rule(number=st.integers(0, 20), how=st.sampled_from(["settle", "release", "lose"]))
    def end_again(self, number: int, how: str) -> None:
        if self.ended:
            call = self.ended[number % len(self.ended)]
            getattr(call, how)(*([Usage(9, 9)] if how == "settle" else []))

    # Limits and books

    @rule(on=budgets, by=st.integers(0, 100), name=st.sampled_from(QUANTITIES))
    def top_up(self, on: tuple[Budget, Account], by: int, name: str) -> None:
        budget, account = on
        term = account.terms.get(name)
        if isinstance(term, int):
            budget.top_up(**_in_dollars({name: by}))
            account.terms = {**account.terms, name: term + by}
            for each in self._below(account):
                each.stale.clear()
        elif by:
            with pytest.raises(ValueError, match="no limit of" if term is None else "is a share"):
                budget.top_up(**_in_dollars({name: by}))

    @rule(on=budgets, changes=changes)
    def set_limits(self, on: tuple[Budget, Account], changes: dict[str, int | str | None]) -> None:
        budget, account = on
        before = account.terms
        kept = {name: term for name, term in before.items() if name not in changes}
        account.terms = kept | _terms(changes)
        if all(each.is_sound() for _, each in self.known):
            budget.set_limits(**_in_dollars(changes))
            for each in (account, *self._below(account)):
                each.stale.clear()
                each.excuse_what_is_used()
        else:
            account.terms = before
            with pytest.raises(ValueError, match=r"share|overflow|parent"):
                budget.set_limits(**_in_dollars(changes))

    @rule(on=budgets, amounts=limits)
    def set_limits_elsewhere(self, on: tuple[Budget, Account], amounts: dict[str, int]) -> None:
        """As another process does, which knows of no shares."""
        account = on[1]
        terms = account.terms
        amounts = {q: n for q, n in amounts.items() if isinstance(terms.get(q), int)}
        if account.overflows or not amounts:
            return
        names = account.name.split("/")
        budget = Budget(name=names[0], store=self.store)
        for name in names[1:]:
            budget = budget.child(name)
        for each in self._below(account):
            for quantity in amounts:
                each.let_go(quantity)
        budget.set_limits(**_in_dollars(amounts))
        account.terms = {**terms, **amounts}
        for each in (account, *self._below(account)):
            each.excuse_what_is_used()

    def _below(self, account: Account) -> list[Account]:
        return [each for _, each in self.known if each is not account and account in each.path()]

    @rule(on=budgets)
    def reset(self, on: tuple[Budget, Account]) -> None:
        on[0].reset()
        for _, account in self.known:
            if on[1] in account.path():
                account.spent, account.uncertain = Amounts(), Amounts()
        self.was_reset = True

    @rule(on=budgets, amount=st.integers(0, 50))
    def record(self, on: tuple[Budget, Account], amount: int) -> None:
        budget, account = on
        budget.record(nano(amount))
        booked = Amounts(amount, 1, 0, 0)
        account.excuse(booked)
        account.own.add(booked)
        for each in account.path():
            each.spent.add(booked)

    # Promises

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        for budget, account in self.known:
            now = budget.snapshot()
            for part in ("spent", "reserved", "uncertain"):
                assert Amounts(*getattr(now, part)) == getattr(account, part), (budget, part)
            found = {n: v for n, v in now.limits._asdict().items() if v is not None}
            assert found.keys() == account.terms.keys()
            for name, limit in account.limits.items():
                if account.is_sure(name):
                    assert found[name] == limit, (budget, name)
                else:
                    assert found[name] <= account.most(name), (budget, name)

    @invariant()
    def no_limit_is_passed_but_by_the_truth(self) -> None:
        for budget, account in self.known:
            now = budget.snapshot()
            for quantity, limit in account.walls.items():
                parts = (now.spent, now.reserved, now.uncertain)
                used = sum(getattr(part, quantity) for part in parts)
                most = max(limit, account.most(quantity))
                assert used <= most + account.beyond[quantity], (budget, quantity)

    @invariant()
    def what_is_uncertain_is_the_sum_of_the_charges(self) -> None:
        for budget, account in self.known:
            total = Amounts()
            for charge in budget.charges():
                total.add(Amounts(*charge.amount))
            assert total == account.uncertain, budget

    @invariant()
    def every_reservation_ends_once(self) -> None:
        if self.known:
            tree = self.known[0][0]._tree
            assert self.known[0][0].snapshot().reserved.calls == self.open
            assert len(tree.live) == self.open
            assert all(call.outcome is not None and not call.open for call in self.ended)

    @invariant()
    def spent_is_the_sum_of_the_ledger(self) -> None:
        for budget, _ in self.known:
            now = budget.snapshot()
            assert budget.ledger.total == now.spent.usd
            assert budget._tree.ledger.total(budget.name) == (now.spent.usd, now.uncertain.usd)

    @invariant()
    def a_parent_has_spent_what_it_and_its_children_have(self) -> None:
        if self.was_reset:
            return
        for budget, account in self.known:
            below = sum(child.snapshot().spent.usd for child in budget.children.values())
            assert budget.snapshot().spent.usd == account.own.usd + below


def _in_dollars(limits: Mapping[str, int | str | None]) -> dict[str, Any]:
    return {
        name: nano(limit) if name == "usd" and isinstance(limit, int) else limit
        for name, limit in limits.items()
    }


def _terms(limits: Mapping[str, int | str | None]) -> Terms:
    """Limits as the model has them, in exact parts."""
    return {
        name: Fraction(limit.rstrip("%")) / 100 if isinstance(limit, str) else limit
        for name, limit in limits.items()
        if limit is not None
    }


@pytest.mark.parametrize("store", sorted(STORES))
def test_every_history_keeps_the_promises(store: str) -> None:
    class OnThisStore(Trees):
        make_store = STORES[store]

    # The rules are the engine's. What a server adds is a round trip for every look.
    times = {"redis": 1.0, "sliced": 0.5, "postgres": 0.1}.get(store, 3.0)
    longer = settings(max_examples=round(times * settings.default.max_examples))
    run_state_machine_as_test(OnThisStore, settings=longer)

"""Limits that change in every order, in few amounts, so that they meet again and again."""

from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.helpers import nano, reserve, small
from tests.stores.factories import STORES
from tokenfence_integrations import Budget, BudgetExceeded

amounts = st.sampled_from([0, 100, 200, 400])
shares = st.sampled_from([25, 50, 100])
"""Of a hundred."""

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["parent", "elsewhere", "top up"]), amounts),
        st.tuples(st.just("share"), shares),
        st.tuples(st.just("amount"), amounts),
        st.tuples(st.just("made anew"), st.none()),
    ),
    max_size=12,
)


@pytest.mark.parametrize("store", sorted(STORES))
def test_a_child_has_the_limit_that_its_last_terms_come_to(store: str) -> None:
    @settings(max_examples=400 if store == "memory" else 30, deadline=None)
    @given(first=amounts, share=shares, steps=steps)
    def holds(first: int, share: int, steps: list[tuple[str, Any]]) -> None:
        books = STORES[store]()
        here, there = (small(first, name="acme", store=books) for _ in range(2))
        child = here.child("a", f"{share}%")
        limit, term = first, _part(share)
        for kind, value in steps:
            if kind == "parent":
                here.set_limits(nano(value))
                limit = value
            elif kind == "elsewhere":
                there.set_limits(nano(value))
                limit = value
            elif kind == "top up":
                here.top_up(nano(value))
                limit += value
            elif kind == "share":
                child.set_limits(f"{value}%")
                term = _part(value)
            elif kind == "amount":
                child.set_limits(nano(value))
                term = value
            else:  # by a process that knows the terms
                here = Budget(name="acme", store=books)
                child = here.child("a")
                child.set_limits(nano(term) if isinstance(term, int) else f"{float(term):.0%}")
            own = term if isinstance(term, int) else floor(limit * term)
            most = min(own, limit)
            # It never refuses what fits. By that it notices what others have changed...
            reserve(child, most, wait=0).admit().release()
            with pytest.raises(BudgetExceeded):
                reserve(child, limit + 1, wait=0).admit()
            # ... and counts as what it is, from then on.
            assert child.snapshot().limits.usd == own

    holds()


def _part(share: int) -> Fraction:
    return Fraction(share, 100)

"""What the callback handlers of all frameworks have in common: how they reserve, and for how long.

A callback sees a call before it is made, and can forbid it; it cannot change it, and is not told
of every end. So it can neither cap an answer nor fall back, and what it has reserved has a lease.
"""

import asyncio
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from math import isfinite
from typing import Any, Protocol

from tokenfence_integrations.engine.budget import Budget, Dollars, as_budget
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import OnLimit, OnUnknown, Policy
from tokenfence_integrations.engine.scope import budget_here
from tokenfence_integrations.log import logger
from tokenfence_integrations.pricing.book import PriceBook, Prices, as_book

__all__ = ["LEASE", "Handling", "counts_against", "end_quietly", "forget_ended", "on_event_loop"]

LEASE = 600.0
"""Seconds that a call may take before it is no longer waited for: the provider's own time-out."""


class Handling:
    """How a callback handler keeps the calls that it hears of within a budget.

    Args:
        budget: Dollars, or a `Budget`; None: the one in scope at each call.
        expected_output_tokens: Reserve for answers of this length per choice, where longer ones are
            possible; None: for the longest possible.
        prices: Prices of your own by model name, used before the price list.
        on_limit: ``"raise"``, or ``"warn"`` to log and let the call through.
        wait: Seconds that a call in a thread may wait for calls in flight; on an event loop none.
        on_unknown: Whether a call of unknown outcome is charged or released.
        lease: Seconds after which a call whose end was never told is booked as of unknown outcome.

    Raises:
        ValueError: A number is out of its range.
    """

    __slots__ = (
        "_books",
        "_expected",
        "_lease",
        "_policy",
        "_prices",
        "_without_waiting",
        "budget",
    )

    def __init__(
        self,
        budget: Budget | Dollars | None,
        *,
        expected_output_tokens: int | None,
        prices: Prices,
        on_limit: OnLimit,
        wait: float,
        on_unknown: OnUnknown,
        lease: float,
    ) -> None:
        if on_limit == "stop":
            raise ValueError(
                'a callback has no reply to give: on_limit must be "raise" or "warn"; guard the '
                'model to have on_limit="stop"'
            )
        expected = expected_output_tokens
        if expected is not None and (type(expected) is not int or expected < 1):
            raise ValueError(f"expected_output_tokens must be 1 or more, got {expected!r}")
        if isinstance(lease, bool) or not isfinite(lease) or lease <= 0:
            raise ValueError(f"lease must be a number of seconds above 0, got {lease!r}")
        self.budget = None if budget is None else as_budget(budget, 0.8)
        self._policy = Policy(on_limit, wait=wait, on_unknown=on_unknown, replaceable=False)
        self._without_waiting = replace(self._policy, wait=0)
        self._expected = expected
        self._books = {"openai": as_book(prices, "openai")}  # which looks at them, too
        self._prices = copy(prices)
        self._lease = lease

    @property
    def whose(self) -> str:
        """What its calls count against, in words."""
        return "the budget in scope" if self.budget is None else f"budget {self.budget.name!r}"

    @property
    def budget_now(self) -> Budget:
        """The budget that calls made here and now count against."""
        return budget_here(self.budget)

    @property
    def policy_now(self) -> Policy:
        """How a call made here and now is admitted: waiting would block an event loop."""
        return self._without_waiting if on_event_loop() else self._policy

    def book(self, provider: str) -> PriceBook:
        """The prices of a provider's models, as genai-prices names it."""
        book = self._books.get(provider)
        if book is None:
            book = self._books.setdefault(provider, as_book(self._prices, provider))
        return book

    def expected(self, most: int) -> int:
        """The output tokens per choice to reserve for, where so many are possible."""
        return most if self._expected is None else min(most, self._expected)

    def reserve(self, call: Call) -> Call:
        """Admit a call, and give it a lease.

        Raises:
            BudgetExceeded: It does not fit.
            UnknownModelError: Its model has no known price.
        """
        call.admit()
        # A guarded model that takes the call sends its own maximum; there is none of ours to send.
        call.max_output_tokens = None
        call.tree.leases.add(call, self._lease)
        return call


class _Run(Protocol):
    @property
    def call(self) -> Call: ...


def forget_ended(runs: dict[Any, Any]) -> None:
    """Let go of the oldest runs whose end was never told, but whose lease is over.

    Args:
        runs: By their numbers, oldest first; each has its ``call``.
    """
    while runs:
        try:
            key = next(iter(runs))
        except (RuntimeError, StopIteration):  # another thread was faster
            return
        run: _Run | None = runs.get(key)
        if run is not None and run.call.open:
            return
        runs.pop(key, None)


def counts_against(guarded: Budget, budget: Budget) -> bool:
    """Whether what is charged to one budget is charged to the other as well."""
    return guarded._tree is budget._tree and budget.name in guarded.path


def on_event_loop() -> bool:
    """Whether this code runs on an event loop, which waiting would block."""
    return asyncio._get_running_loop() is not None


def end_quietly(end: Callable[..., None], *told: Any) -> None:
    """End a call; whatever goes wrong must not cost the caller an answer that is paid for."""
    try:
        end(*told)
    except Exception:
        logger().exception("a call could not be settled; its lease will end it")

"""What can go wrong, as exceptions that carry the numbers.

The tree::

    TokenFenceError
    ├── BudgetExceeded        (also RuntimeError)   a call does not fit its budget
    ├── UnknownModelError     (also LookupError)    a model has no known price
    ├── UnmeteredError        (also RuntimeError)   strict=True met something that cannot be metered
    ├── NoBudgetError         (also LookupError)    a guard without a budget was used outside any
    │                                               scope
    ├── UnknownBudgetError    (also KeyError)       a file of budgets has no budget with this key
    └── StoreError            (also RuntimeError)   the accounts cannot be read or written

Bad arguments are plain ``ValueError`` or ``TypeError``, raised before anything is sent.
"""

from collections.abc import Sequence
from datetime import datetime
from math import ceil
from typing import Any

__all__ = [
    "BudgetExceeded",
    "NoBudgetError",
    "StoreError",
    "TokenFenceError",
    "UnknownBudgetError",
    "UnknownModelError",
    "UnmeteredError",
    "in_units",
]


class TokenFenceError(Exception):
    """Base of every exception of this library."""


# A shorter answer would not help: as short a one as is worth paying for was tried.
_RAISE = "Raise the limit with budget.top_up()"
_ADVICE = {
    "usd": f"{_RAISE}, send a shorter prompt, or give a cheaper fallback.",
    "tokens": f"{_RAISE}, or send a shorter prompt.",
    "input_tokens": f"{_RAISE}, or send a shorter prompt.",
}
_ADVICE_WITHOUT_FALLBACK = dict.fromkeys(_ADVICE, f"{_RAISE}, or send less.")


class BudgetExceeded(TokenFenceError, RuntimeError):
    """A call was refused because it would not fit, even after everything in flight has settled.

    Args:
        budget: The limit that would be exceeded, in dollars (or tokens, or calls: see
            ``quantity``).
        spent: How much of it is spent, in the same unit.
        name: The path of the budget, such as ``"team/researcher"``.
        quantity: ``"usd"``, ``"calls"``, ``"tokens"``, ``"input_tokens"`` or ``"output_tokens"``.
        reserved: How much of it calls in flight hold.
        uncertain: How much is charged for calls whose outcome is unknown.
        requested: The least that the refused call would have had to reserve.
        model: The model that was asked for.
        waited: Seconds that the call waited before it was refused.
        retry_after: Seconds until a window opens that has room for it; None if no window will open,
            or not even an empty one has room for it.
        window_ends: The same as a datetime, in the time zone of the budget's windows.
        replaceable: Whether a fallback could answer instead; not for embeddings, for example.

    Example:
        >>> raise BudgetExceeded(5.0, 4.99, name="research", requested=0.04, model="gpt-4o")
        Traceback (most recent call last):
        ...
        tokenfence_integrations.errors.BudgetExceeded: budget 'research' of $5.00 has no room ...
    """

    def __init__(
        self,
        budget: float,
        spent: float,
        *,
        name: str = "budget",
        quantity: str = "usd",
        reserved: float = 0.0,
        uncertain: float = 0.0,
        requested: float = 0.0,
        model: str = "",
        waited: float = 0.0,
        retry_after: float | None = None,
        window_ends: datetime | None = None,
        replaceable: bool = True,
    ) -> None:
        self.budget = budget
        self.spent = spent
        self.name = name
        self.quantity = quantity
        self.reserved = reserved
        self.uncertain = uncertain
        self.requested = requested
        self.model = model
        self.waited = waited
        self.retry_after = retry_after
        self.window_ends = window_ends
        self.replaceable = replaceable
        super().__init__(self._message())

    @property
    def limit(self) -> float:
        """The same as ``budget``: the limit that would be exceeded."""
        return self.budget

    @property
    def remaining(self) -> float:
        """What is neither spent, nor reserved, nor uncertain; never below zero."""
        return max(0.0, self.budget - self.spent - self.reserved - self.uncertain)

    def _message(self) -> str:
        def shown(amount: float) -> str:
            return in_units(amount, self.quantity)

        parts = [f"spent {shown(self.spent)}"]
        if self.reserved:
            parts.append(f"in flight {shown(self.reserved)}")
        if self.uncertain:
            parts.append(f"uncertain {shown(self.uncertain)}")
        if self.requested:
            parts.append(f"this call needs at least {shown(self.requested)}")
        if self.waited:
            parts.append(f"waited {self.waited:.1f} s")
        call = f"this call to {self.model}" if self.model else "this call"
        advice = _ADVICE if self.replaceable else _ADVICE_WITHOUT_FALLBACK
        sentences = (
            f"budget {self.name!r} of {shown(self.budget)} has no room for {call}: "
            f"{', '.join(parts)}.",
            self.renewal,
            advice.get(self.quantity, f"{_RAISE}."),
            "Settle uncertain charges with budget.resolve()." if self.uncertain else "",
        )
        return " ".join(filter(None, sentences))

    @property
    def renewal(self) -> str:
        """When the next window opens, as a sentence; empty if none would help."""
        if self.retry_after is None or self.window_ends is None:
            return ""
        at = self.window_ends.isoformat(sep=" ")
        return f"The next window opens in {_duration(self.retry_after)}, at {at}."

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.budget, self.spent, dict(self._details()))

    def _details(self) -> dict[str, Any]:
        names = ("name", "quantity", "reserved", "uncertain", "requested", "model", "waited")
        later = ("retry_after", "window_ends", "replaceable")
        return {name: getattr(self, name) for name in (*names, *later)}


class UnknownModelError(TokenFenceError, LookupError):
    """A model has no known price, so no call to it can be bounded.

    Args:
        model: The name that was asked for.
        nearest: Known names that look like it, best first; may be empty.
        provider: Whose price list was searched, such as ``"openai"``.
        elsewhere: Other providers whose price lists have exactly this name; may be empty.
    """

    def __init__(
        self,
        model: str,
        nearest: Sequence[str] = (),
        provider: str = "openai",
        elsewhere: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.nearest = tuple(nearest)
        self.provider = provider
        self.elsewhere = tuple(elsewhere)
        known = f" Nearest known: {', '.join(self.nearest)}." if self.nearest else ""
        listed = 'ListPrice("gpt-4o")'
        if self.elsewhere:
            known += f" Providers that list it: {', '.join(self.elsewhere)}."
            listed = f'ListPrice("{model}", "{self.elsewhere[0]}")'
        super().__init__(
            f"no price is known for model {model!r} of provider {provider!r}, so it cannot be kept "
            f"within a budget; nothing was sent.{known} Give its price: "
            f'prices={{{model!r}: Price(input="$1/M", output="$2/M", max_output_tokens=8192)}}; '
            f"or {listed} instead of that Price, if this is another name for that listed model."
            if model
            else "the call names no model, so its price cannot be known, and it cannot be kept "
            "within a budget; nothing was sent. Give model=, even with a stored prompt that has "
            "its own model."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.nearest, self.provider, self.elsewhere)


class UnmeteredError(TokenFenceError, RuntimeError):
    """``strict=True`` met a call whose cost this library cannot see."""


class NoBudgetError(TokenFenceError, LookupError):
    """Something guarded without a budget was called outside any ``budget.scope()``."""


class UnknownBudgetError(TokenFenceError, KeyError):
    """`Budgets` were asked for a key that is not in their file.

    Args:
        key: The key.
        reason: Why there is no such budget.
        nearest: Keys that look like it, best first; may be empty.
    """

    def __init__(self, key: str, reason: str, nearest: Sequence[str] = ()) -> None:
        self.key = key
        self.reason = reason
        self.nearest = tuple(nearest)
        near = f"; near it are {', '.join(map(repr, self.nearest))}" if self.nearest else ""
        super().__init__(f"no budget {key!r}: {reason}{near}")

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the repr of it

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.reason, self.nearest)


class StoreError(TokenFenceError, RuntimeError):
    """The accounts cannot be read or written, so no call can be admitted: nothing was sent.

    Args:
        where: The store, such as the file's path.
        reason: What is wrong, and what to do about it.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"the budgets in {where} cannot be used: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.reason)


def _rebuild(
    cls: type[BudgetExceeded], budget: float, spent: float, details: dict[str, Any]
) -> BudgetExceeded:
    return cls(budget, spent, **details)


def in_units(amount: float, quantity: str) -> str:
    """An amount as people read it.

    Args:
        amount: Dollars, or a count.
        quantity: As for `BudgetExceeded`.

    Example:
        >>> in_units(5, "usd"), in_units(1, "calls"), in_units(1200, "input_tokens")
        ('$5.00', '1 call', '1,200 input tokens')
    """
    if quantity != "usd":
        noun = quantity.replace("_", " ")
        return f"{amount:,.0f} {noun.removesuffix('s') if amount == 1 else noun}"
    cents = f"{amount:,.2f}"
    exact = f"{amount:,.9f}".rstrip("0")
    return f"${exact if len(exact) > len(cents) else cents}"


def _duration(seconds: float) -> str:
    whole = ceil(seconds)
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"

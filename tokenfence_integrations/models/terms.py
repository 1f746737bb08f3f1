"""What a model was guarded with, and the models that may answer in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.sublimit import Sublimit
from tokenfence_integrations.engine.scope import budget_here
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card

__all__ = ["ChainBook", "Terms", "is_guarded"]


def is_guarded(thing: object) -> bool:
    """Whether a model, or a client, is guarded.

    Its class is asked, because ``tokenfence`` raises if it means the budget in scope and there is
    none.
    """
    return hasattr(type(thing), "tokenfence")


class ChainBook:
    """The prices of a model and its fallbacks, each from its own provider's list.

    Args:
        first: Finds the prices of the guarded model, and of any other that is not a fallback.
        others: Finds those of the fallbacks, by their names.
    """

    def __init__(self, first: PriceBook, others: Mapping[str, PriceBook]) -> None:
        self.first = first
        self._others = others

    def card(self, model: str) -> Card:
        """The prices and limits of a model.

        Raises:
            UnknownModelError: If no price is known.
        """
        return self._others.get(model, self.first).card(model)


@dataclass(slots=True, weakref_slot=True)
class Terms:
    """What a model was guarded with; its copies and its fallbacks share it.

    Args:
        budget: None: the one in scope at each call.
        policy: How calls are admitted; its stages are names of ``targets``.
        book: Prices of the model and its fallbacks.
        targets: The fallbacks by the names of their models, guarded on these terms as well.
        exact_input: Whether the server is known to count text as OpenAI does.
        error: The class of refusals.
        sublimits: Limits beside the budget's, see `Sublimit`.
        client_reserves: Whether the guarded client below can reserve by itself: it has the same
            budget, policy and prices, and no other model may answer in its place. Whether that
            client is still there is asked for each call.
    """

    budget: Budget | None
    policy: Policy
    book: ChainBook
    targets: Mapping[str, Any] = field(default_factory=dict)
    exact_input: bool = False
    error: type[BudgetExceeded] = BudgetExceeded
    sublimits: tuple[Sublimit, ...] = ()
    client_reserves: bool = False

    def budget_now(self) -> Budget:
        """The budget that a call made here and now counts against."""
        return budget_here(self.budget)

    def but(self, **changes: Any) -> Self:
        """The same with some changes, of which the client below does not know."""
        return replace(self, **{"client_reserves": False, **changes})

    def __deepcopy__(self, memo: object) -> Self:
        return self  # the copy of a model spends from the same budget

    def raising(self) -> Self:
        """The same, where a refusal raises: a made-up object would be a lie."""
        if self.policy.on_limit != "stop":
            return self
        policy = replace(self.policy, on_limit="raise")  # as the client's is anyway
        return self.but(policy=policy, client_reserves=self.client_reserves)

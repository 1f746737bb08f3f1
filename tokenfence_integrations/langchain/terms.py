"""What a chat model was guarded with, and the models that may answer in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from langchain_core.language_models import BaseChatModel

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.policy import Policy
from tokenfence_integrations.engine.scope import budget_in_scope
from tokenfence_integrations.engine.sublimit import Sublimit
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.tools import same_family
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.rates import Card

if TYPE_CHECKING:
    from tokenfence_integrations.langchain.chat_models import BudgetedChatModel

__all__ = ["GUARD_KEY", "ChainBook", "Terms", "guard_number", "terms_of_guard"]

_numbers = count(1)
_guards: "WeakValueDictionary[int, Terms]" = WeakValueDictionary()


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
    """What a chat model was guarded with; its copies and its fallbacks share it.

    Args:
        budget: None: the one in scope at each call.
        policy: How calls are admitted; its stages are names of ``targets``.
        book: Prices of the model and its fallbacks.
        targets: The fallbacks by the names of their models, guarded on these terms as well.
        exact_input: Whether the server is known to count text as OpenAI does.
        error: The class of refusals.
        sublimits: Limits beside the budget's, see `Sublimit`.
        number: By which a callback handler finds these terms in a run's metadata.
    """

    budget: Budget | None
    policy: Policy
    book: ChainBook
    targets: "Mapping[str, BudgetedChatModel]" = field(default_factory=dict)
    exact_input: bool = False
    error: type[BudgetExceeded] = LangChainBudgetExceeded
    sublimits: tuple[Sublimit, ...] = ()
    number: int = field(default_factory=lambda: next(_numbers))

    def __post_init__(self) -> None:
        _guards[self.number] = self

    def budget_now(self) -> Budget:
        """The budget that a call made here and now counts against."""
        return self.budget if self.budget is not None else budget_in_scope()

    def foreign(self, model: BaseChatModel) -> bool:
        """Whether a fallback is of another provider than the model, and takes options unlike it."""
        return any(not same_family(model, target) for target in self.targets.values())

    def but(self, **changes: Any) -> "Terms":
        """The same with some changes."""
        return replace(self, number=next(_numbers), **changes)

    def raising(self) -> "Terms":
        """The same, where a refusal raises: a made-up object would be a lie."""
        if self.policy.on_limit != "stop":
            return self
        return self.but(policy=replace(self.policy, on_limit="raise"))


GUARD_KEY = "tokenfence_guard"
"""The key of a run's metadata that tells that, and by whose terms, its model is guarded."""


def guard_number(metadata: Mapping[str, Any] | None) -> int | None:
    """The number of the guard in a run's metadata; None if its model is not guarded."""
    number = (metadata or {}).get(GUARD_KEY)
    return number if type(number) is int else None


def terms_of_guard(number: int) -> Terms | None:
    """The terms with this number; None if nothing is guarded on them any more."""
    return _guards.get(number)

"""What a chat model was guarded with, as a callback handler finds it by a run's metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

from langchain_core.language_models import BaseChatModel

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.tools import same_family
from tokenfence_integrations.models import terms

__all__ = ["GUARD_KEY", "Terms", "guard_number", "terms_of_guard"]

_numbers = count(1)
_guards: "WeakValueDictionary[int, Terms]" = WeakValueDictionary()


@dataclass(slots=True, weakref_slot=True)
class Terms(terms.Terms):
    """What a chat model was guarded with; its copies and its fallbacks share it.

    Args:
        number: By which a callback handler finds these terms in a run's metadata.
    """

    error: type[BudgetExceeded] = LangChainBudgetExceeded
    number: int = field(default_factory=lambda: next(_numbers))

    def __post_init__(self) -> None:
        _guards[self.number] = self

    def foreign(self, model: BaseChatModel) -> bool:
        """Whether a fallback is of another provider than the model, and takes options unlike it."""
        return any(not same_family(model, target) for target in self.targets.values())

    def but(self, **changes: Any) -> Self:
        """The same with some changes, under a number of its own."""
        return super(Terms, self).but(number=next(_numbers), **changes)


GUARD_KEY = "tokenfence_guard"
"""The key of a run's metadata that tells that, and by whose terms, its model is guarded."""


def guard_number(metadata: Mapping[str, Any] | None) -> int | None:
    """The number of the guard in a run's metadata; None if its model is not guarded."""
    number = (metadata or {}).get(GUARD_KEY)
    return number if type(number) is int else None


def terms_of_guard(number: int) -> Terms | None:
    """The terms with this number; None if nothing is guarded on them any more."""
    return _guards.get(number)

"""What all guarded models are made with, and the fallbacks that may be given for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypedDict

from tokenfence_integrations.engine.budget import Budget, Dollars, as_budget
from tokenfence_integrations.engine.calls.policy import OnLimit, OnUnknown, Policy, parse_fallback
from tokenfence_integrations.errors import BudgetExceeded, UnmeteredError
from tokenfence_integrations.log import logger
from tokenfence_integrations.models.terms import is_guarded
from tokenfence_integrations.pricing.book import Prices

__all__ = ["ALREADY", "Guarding", "MoreTerms", "named_fallbacks"]

ALREADY = (
    "guarded already; to share or divide the budget, guard the plain one with "
    "budget=guarded.tokenfence, or with a child of it"
)


class MoreTerms(TypedDict, total=False):
    """What may be given for a guard beside a budget and fallbacks, as for `guard`."""

    on_limit: OnLimit
    threshold: float | None
    wait: float
    min_output_tokens: int
    on_unknown: OnUnknown
    prices: Prices
    strict: bool
    stream_usage: bool
    exact_input: bool | None


@dataclass(frozen=True, slots=True)
class Guarding:
    """How a model is to be guarded.

    Args:
        budget: What its calls count against; None: the budget in scope.
        policy: How they are admitted; its stages are found in ``fallback``.
        fallback: Cheaper models.
        threshold: The settled share from which the first fallback takes over.
        prices: Prices of your own, by model.
        exact_input: Whether the server counts text as OpenAI does; None: if it is OpenAI or Azure.
        strict: Whether what cannot be metered is refused, rather than warned of.
        stream_usage: Whether an OpenAI client may ask streams for their usage.
    """

    budget: Budget | None
    policy: Policy
    fallback: Any = None
    threshold: float = 0.8
    prices: Prices = None
    exact_input: bool | None = None
    strict: bool = False
    stream_usage: bool = True

    @classmethod
    def given(
        cls,
        budget: Budget | Dollars | None,
        fallback: Any = None,
        *,
        on_limit: OnLimit = "stop",
        threshold: float | None = None,
        wait: float = 60.0,
        min_output_tokens: int = 16,
        on_unknown: OnUnknown = "charge",
        **rest: Any,
    ) -> Self:
        """What is made of the arguments of `guard`.

        Raises:
            ValueError: An argument is out of its range.
        """
        begins = 0.8 if threshold is None else threshold
        held = None if budget is None else as_budget(budget, begins)
        if threshold is None and held is not None:
            begins = held.threshold
        policy = Policy(on_limit, (), wait, min_output_tokens, on_unknown)
        return cls(held, policy, fallback, begins, **rest)

    def embedding_policy(self) -> Policy:
        """How calls for embeddings are admitted: there is no vector that says no.

        Raises:
            ValueError: A fallback was given: vectors of another model cannot be compared.
        """
        if self.fallback is not None:
            raise ValueError(
                "embeddings cannot have a fallback: the vectors of another model are not "
                "comparable with those that are stored"
            )
        on_limit: OnLimit = "warn" if self.policy.on_limit == "warn" else "raise"
        return replace(self.policy, on_limit=on_limit, replaceable=False)

    def check_retries(self, model: object) -> None:
        """Refuse, or warn of, retries that nothing here can see; each of them may be billed.

        Raises:
            UnmeteredError: With ``strict=True``.
        """
        retries = getattr(model, "max_retries", None)
        if not isinstance(retries, int) or retries < 1:
            return
        told = (
            f"{type(model).__name__} retries by itself (max_retries={retries}), and each attempt "
            f"may be billed, but only one is reserved for: set max_retries=0, and retry around "
            f"the guarded model instead"
        )
        if self.strict:
            raise UnmeteredError(f"{told}; nothing was sent")
        logger().warning("%s", told)

    def client(self, client: Any) -> Any:
        """The guarded form of an OpenAI client, with fallbacks and replies of its own.

        Raises:
            TypeError: It is guarded already.
            ValueError: A fallback cannot work.
        """
        from tokenfence_integrations.clients.openai.client import guard_client

        policy = replace(self.policy, stages=parse_fallback(self.fallback, self.threshold))
        return guard_client(client, policy=policy, **self._of_clients())

    def openai_client(self, client: Any, error: type[BudgetExceeded]) -> Any:
        """The guarded form of an OpenAI client, which leaves fallbacks and replies to the model.

        Args:
            client: The client; one that the user has guarded stays as it is.
            error: The class of refusals.
        """
        from tokenfence_integrations.clients.openai.client import guard_client, is_guarded

        if is_guarded(client):
            return client
        on_limit: OnLimit = "warn" if self.policy.on_limit == "warn" else "raise"
        policy = replace(self.policy, on_limit=on_limit)
        return guard_client(client, policy=policy, error=error, **self._of_clients())

    def _of_clients(self) -> dict[str, Any]:
        names = ("budget", "prices", "strict", "stream_usage", "exact_input")
        return {name: getattr(self, name) for name in names}


def named_fallbacks(
    given: Any, kind: type, name_of: Callable[[Any], str], with_name: Callable[[str], Any]
) -> tuple[Any, dict[str, Any]]:
    """Fallbacks by name, as the engine takes them, and the model for each name.

    Args:
        given: A name, a model, a sequence of them, or stages; None: none.
        kind: The class of models.
        name_of: Tells the name by which a model's calls are priced.
        with_name: Makes the model of a name.

    Raises:
        TypeError: A fallback is guarded already.
        ValueError: It is none of these, or is named twice.
    """
    others: dict[str, Any] = {}

    def named(one: object) -> str:
        if is_guarded(one):
            raise TypeError(
                "a fallback shares the budget of the model that it stands in for: give the plain "
                "model, not a guarded one"
            )
        if isinstance(one, kind):
            name, other = name_of(one), one
        elif isinstance(one, str) and one.strip():
            name, other = one, with_name(one)
        else:
            raise ValueError(
                f"fallback must be a model's name or a {kind.__name__}, got {one!r}; give one, a "
                f"list of them, or stages such as {{0.5: 'gpt-4o-mini', 0.9: other_model}}"
            )
        if name in others:
            raise ValueError(f"fallback {name!r} is named twice: each needs its own name")
        others[name] = other
        return name

    if given is None:
        return None, others
    if isinstance(given, Mapping):
        return {share: named(one) for share, one in given.items()}, others
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [named(one) for one in given], others
    return named(given), others

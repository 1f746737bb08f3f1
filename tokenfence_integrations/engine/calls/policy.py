"""How the calls of one guard are admitted: what happens near the limit, and at it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, NamedTuple, TypeAlias

from tokenfence_integrations.engine.limits.shares import check_share
from tokenfence_integrations.pricing.book import Cards

__all__ = ["Fallback", "OnLimit", "OnUnknown", "Policy", "Stage", "check_priced", "parse_fallback"]

OnLimit: TypeAlias = Literal["stop", "warn", "raise"]
OnUnknown: TypeAlias = Literal["charge", "release"]
Fallback: TypeAlias = str | Sequence[str] | Mapping[float, str] | None


class Stage(NamedTuple):
    """A fallback model, and the settled share of the budget from which it takes over."""

    start: float
    model: str


def parse_fallback(fallback: Fallback, threshold: float) -> tuple[Stage, ...]:
    """Bring the three ways to name fallbacks into one.

    Args:
        fallback: A model; a chain of models, of which the first takes over at ``threshold`` and
            each other one when those before it no longer fit; or stages, ``{share: model}``.
        threshold: Share of the budget, 0.0 to 1.0.

    Returns:
        The stages in order; a chain's later models start at infinity (never by share alone).

    Raises:
        ValueError: A name is empty, or a share is not within 0.0 and 1.0.

    Example:
        >>> parse_fallback(["gpt-4.1-mini", "gpt-4.1-nano"], 0.8)
        (Stage(start=0.8, model='gpt-4.1-mini'), Stage(start=inf, model='gpt-4.1-nano'))
    """
    check_share("threshold", threshold)
    if fallback is None:
        return ()
    if isinstance(fallback, str):
        stages = [Stage(threshold, fallback)]
    elif isinstance(fallback, Mapping):
        for share in fallback:
            check_share("a fallback's stage", share)
        stages = [Stage(float(share), model) for share, model in sorted(fallback.items())]
    elif isinstance(fallback, Sequence):
        stages = [Stage(inf if n else threshold, model) for n, model in enumerate(fallback)]
    else:
        stages = [Stage(threshold, fallback)]  # which is no name
    for stage in stages:
        if not _is_name(stage.model):
            raise ValueError(
                f"fallback must name models, got {stage.model!r}; give one name, a list of names, "
                f'or stages such as {{0.5: "gpt-4o-mini", 0.9: "gpt-4.1-nano"}}'
            )
    return tuple(stages)


def check_priced(stages: Iterable[Stage], book: Cards) -> None:
    """Refuse fallbacks without a price at once, and not when the first of them is to take over.

    Raises:
        UnknownModelError: A model has no known price.
    """
    for stage in stages:
        book.card(stage.model)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one guard.

    Args:
        on_limit: ``"raise"`` BudgetExceeded, ``"stop"`` with a synthetic reply, or ``"warn"`` and
            let the call through.
        stages: The fallbacks.
        wait: Seconds that a call may wait for calls in flight; 0 never waits.
        min_output_tokens: The smallest answer cap that is worth paying for, at least 1.
        on_unknown: ``"charge"`` what a call of unknown outcome may have cost, or ``"release"`` it.
        replaceable: Whether a fallback could answer, if one were given.

    Raises:
        ValueError: A value is out of its range.
    """

    on_limit: OnLimit = "raise"
    stages: tuple[Stage, ...] = ()
    wait: float = 60.0
    min_output_tokens: int = 16
    on_unknown: OnUnknown = "charge"
    replaceable: bool = True

    def __post_init__(self) -> None:
        _check_choice("on_limit", self.on_limit, ("stop", "warn", "raise"))
        _check_choice("on_unknown", self.on_unknown, ("charge", "release"))
        if not _is_number(self.wait) or not isfinite(self.wait) or self.wait < 0:
            raise ValueError(f"wait must be a number of seconds, 0 or more, got {self.wait!r}")
        least = self.min_output_tokens
        if type(least) is not int or least < 1:
            raise ValueError(f"min_output_tokens must be 1 or more tokens, got {least!r}")

    def stages_begun(self, settled: float) -> int:
        """How many stages have begun at this settled share of the budget."""
        begun = 0
        for stage in self.stages:
            begun += settled >= stage.start
        return begun


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())

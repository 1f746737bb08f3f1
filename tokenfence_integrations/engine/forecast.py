"""How long a model's answers tend to be, learned from those that were settled."""

from collections import deque
from math import exp, log
from typing import NamedTuple, TypeAlias

__all__ = ["Answer", "Forecast", "Forecasts", "OutputForecast"]

# Before anything is known: half of all answers keep within 300 tokens, and 99.5 % within 4,096 (the
# output ceiling of a whole generation of models). It counts like this many answers seen.
PRIOR_WEIGHT = 8.0
PRIOR_MEDIAN = 300.0
PRIOR_TAIL = 4096.0

# What is older than about this many answers is forgotten, so that a change of task is followed.
MEMORY = 200.0

# Quantiles of the normal distribution: 90 % and 99.5 %.
Z_TYPICAL = 1.2816
Z_TAIL = 2.5758


class Forecast(NamedTuple):
    """Output lengths in tokens: most answers keep within ``typical``, nearly all within
    ``tail``."""

    typical: int
    tail: int


class OutputForecast:
    """A running estimate of output lengths as a lognormal distribution.

    Lengths of answers are skewed: many short ones, a few very long ones; their logarithms are close
    to normal. Mean and variance of the logarithm are kept with Welford's updates (B. P. Welford,
    Technometrics 4, 1962), starting from a prior and forgetting slowly.

    Example:
        >>> OutputForecast().forecast
        Forecast(typical=1101, tail=4096)
    """

    __slots__ = ("_estimate", "_mean", "_variance", "_weight")

    def __init__(self) -> None:
        self._weight = PRIOR_WEIGHT
        self._mean = log(PRIOR_MEDIAN)
        self._variance = ((log(PRIOR_TAIL) - self._mean) / Z_TAIL) ** 2
        self._estimate: Forecast | None = None

    def observe(self, output_tokens: int, *, cut_short: bool = False) -> None:
        """Learn from one answer.

        Args:
            output_tokens: Its length, per choice.
            cut_short: Whether our cap ended it: then it would have been longer, and counts double.
        """
        length = log(max(1, output_tokens * (2 if cut_short else 1)))
        self._weight = min(self._weight + 1.0, MEMORY)
        step = (length - self._mean) / self._weight
        self._variance += step * (length - self._mean - step) - self._variance / self._weight
        self._mean += step
        self._estimate = None

    @property
    def forecast(self) -> Forecast:
        """The estimate by what was seen so far."""
        estimate = self._estimate
        if estimate is None:
            estimate = self._estimate = self._worked_out()
        return estimate

    def _worked_out(self) -> Forecast:
        deviation = self._variance**0.5
        return Forecast(
            typical=round(exp(self._mean + Z_TYPICAL * deviation)),
            tail=round(exp(self._mean + Z_TAIL * deviation)),
        )


Answer: TypeAlias = tuple[str, int, bool]
"""A model, the length of its answer in tokens per choice, and whether our cap ended it."""

UNREAD = 1_000
"""How many of the latest answers are kept until somebody asks."""


class Forecasts:
    """The forecasts of all models in one tree of budgets.

    Attributes:
        answers: Those seen since somebody asked. Most calls are made in budgets where nobody does,
            so they are only noted.
    """

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque(maxlen=UNREAD)
        self._models: dict[str, OutputForecast] = {}

    def of(self, model: str) -> Forecast:
        """How long the answers of a model will be, by those seen so far."""
        while self.answers:
            try:
                answered, length, cut_short = self.answers.popleft()
            except IndexError:  # another thread was faster
                break
            self._of(answered).observe(length, cut_short=cut_short)
        return self._of(model).forecast

    def _of(self, model: str) -> OutputForecast:
        known = self._models.get(model)
        return self._models.setdefault(model, OutputForecast()) if known is None else known

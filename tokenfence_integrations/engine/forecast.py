"""How long a model's answers tend to be, learned from those that were settled."""

from collections import deque
from math import exp, log
from typing import NamedTuple

__all__ = ["Forecast", "OutputForecast"]

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

    __slots__ = ("_estimate", "_mean", "_unread", "_variance", "_weight")

    def __init__(self) -> None:
        self._weight = PRIOR_WEIGHT
        self._mean = log(PRIOR_MEDIAN)
        self._variance = ((log(PRIOR_TAIL) - self._mean) / Z_TAIL) ** 2
        self._estimate: Forecast | None = None
        self._unread: deque[int] = deque(maxlen=int(MEMORY))

    def observe(self, output_tokens: int, *, cut_short: bool = False) -> None:
        """Learn from one answer.

        Args:
            output_tokens: Its length, per choice.
            cut_short: Whether our cap ended it: then it would have been longer, and counts double.
        """
        # Only noted: most calls are made in budgets where nobody asks for an estimate.
        self._unread.append(output_tokens * (2 if cut_short else 1))
        self._estimate = None

    def _read(self) -> None:
        while self._unread:
            try:
                self._learn(self._unread.popleft())
            except IndexError:  # another thread was faster
                return

    def _learn(self, output_tokens: int) -> None:
        length = log(max(1, output_tokens))
        self._weight = min(self._weight + 1.0, MEMORY)
        step = (length - self._mean) / self._weight
        self._variance += step * (length - self._mean - step) - self._variance / self._weight
        self._mean += step

    @property
    def forecast(self) -> Forecast:
        """The estimate by what was seen so far."""
        estimate = self._estimate
        if estimate is None:
            self._read()
            estimate = self._estimate = self._worked_out()
        return estimate

    def _worked_out(self) -> Forecast:
        deviation = self._variance**0.5
        return Forecast(
            typical=round(exp(self._mean + Z_TYPICAL * deviation)),
            tail=round(exp(self._mean + Z_TAIL * deviation)),
        )

"""What a budget is made with, as it was agreed: limits, windows, and how they are kept."""

from datetime import UTC, tzinfo
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict

from tokenfence_integrations.engine.limits.grammar import Dollars, Given, Per, given
from tokenfence_integrations.engine.limits.shares import check_share
from tokenfence_integrations.engine.limits.windows import Interval, zone_named

if TYPE_CHECKING:
    from tokenfence_integrations.engine.limits.quota import Quota

__all__ = ["AS_IT_IS", "MoreLimits", "Terms", "Unnamed", "agreed"]


class Unnamed(Enum):
    """The type of `AS_IT_IS`, which is no limit that anybody could give."""

    AS_IT_IS = "as it is"


AS_IT_IS: Final = Unnamed.AS_IT_IS
"""For limits that a call of `Budget.set_limits` does not name."""


class MoreLimits(TypedDict, total=False):
    """What may be given for a budget's limits beside dollars, as for `Budget`."""

    tokens: int | str | None
    calls: int | str | None
    input_tokens: int | str | None
    output_tokens: int | str | None
    per: Per | None
    tz: str | tzinfo | None


class Terms(NamedTuple):
    """What a budget is made with: limits and windows, and how they are kept."""

    given: Given
    zone: tzinfo
    threshold: float
    overflow: bool


def agreed(
    usd: Dollars | None,
    above: "Quota | None",
    *,
    threshold: float,
    overflow: bool,
    tz: str | tzinfo | None = None,
    **limits: Any,
) -> Terms:
    """Read what a budget is made with; a share that says no windows has the parent's.

    Args:
        usd: Dollars, a share, or a limit in words.
        above: The parent's quota; None: it has no parent.
        threshold: As for `Budget`.
        overflow: As for `Budget`.
        tz: As for `Budget`.
        limits: Other limits, and ``per``, as for `Budget`.

    Raises:
        ValueError: Something is not valid.
    """
    inherited = UTC if above is None else above.terms.zone
    zone = inherited if tz is None else zone_named(tz)
    asked = given(usd, zone=zone, **limits)
    check_share("threshold", threshold)
    if type(overflow) is not bool:
        raise ValueError(f"overflow must be True or False, got {overflow!r}")
    if asked.shares and asked.schedule is None and above is not None:
        schedule = above.terms.given.schedule
        if isinstance(schedule, Interval):
            raise ValueError(
                f"the windows of budget {above.name!r} have a fixed length, counted from its first "
                f"use: a share of it needs its own per=, which is counted from its own first use"
            )
        asked = asked._replace(schedule=schedule)
    return Terms(asked, zone, threshold, overflow)

"""What happens to calls, as events for listeners."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tokenfence_integrations.log import logger
from tokenfence_integrations.money import to_float
from tokenfence_integrations.usage import Usage

__all__ = ["Event", "EventKind", "Listener", "tell"]

EventKind: TypeAlias = Literal[
    "admitted",
    "waited",
    "downgraded",
    "capped",
    "refused",
    "settled",
    "released",
    "uncertain",
    "resolved",
    "threshold_crossed",
    "bound_exceeded",
    "store_lost",
    "store_back",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to one call; to one budget (``threshold_crossed``); or to the store
    of a whole tree (``store_lost``: it does not answer, ``tags["reason"]`` says why;
    ``store_back``), which is sent to the listeners of all its budgets.

    Args:
        kind: What happened.
        budget: Path of the budget, such as ``"team/researcher"``.
        call: Number of the call's attempt, unique in its budget tree; 0 for none, and for
            ``resolved``, whose tags have the charge's id and time.
        at: Unix time in seconds.
        model_asked: The model that the caller asked for.
        model: The model that the call goes to.
        bound: The most that the call can cost, in nano-dollars.
        cost: What it cost (``settled``, ``resolved``), or is charged (``uncertain``), in
            nano-dollars.
        cap: The output maximum set by the library, in tokens per choice; None if it set none.
        waited: Seconds that it waited.
        usage: What the provider reported, if it did.
        ratio: Share of the limit that is settled (``threshold_crossed``).
        tags: The caller's own tags.
    """

    kind: EventKind
    budget: str
    call: int
    at: float
    model_asked: str = ""
    model: str = ""
    bound: int = 0
    cost: int = 0
    cap: int | None = None
    waited: float = 0.0
    usage: Usage | None = None
    ratio: float = 0.0
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost_usd(self) -> float:
        """The cost in dollars."""
        return to_float(self.cost)


Listener: TypeAlias = Callable[[Event], object]


def tell(listeners: list[Listener], event: Event) -> None:
    """Tell every listener; one that raises is logged and hinders nobody."""
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            logger().exception("listener %r failed on event %r", listener, event.kind)

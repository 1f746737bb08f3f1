"""The points of a call's life at which a fault may strike, and what the books show there."""

from typing import NamedTuple

__all__ = ["POINTS", "Held", "Point"]


class Held(NamedTuple):
    """What a store's own books hold of one budget, in nano-dollars."""

    spent: int
    reserved: int
    uncertain: int


class Point(NamedTuple):
    """A point of a call's life.

    Attributes:
        name: What it is.
        sent: Whether its request is with the provider.
        reserved: Whether the books hold its reservation.
        settled: Whether they hold its cost.
    """

    name: str
    sent: bool = False
    reserved: bool = False
    settled: bool = False

    def __str__(self) -> str:
        return self.name


POINTS = (
    Point("reserve under way"),  # the store has not begun
    Point("reserved, not told", reserved=True),  # the store has, and the worker does not know
    Point("before send", reserved=True),
    Point("in flight", sent=True, reserved=True),
    Point("answered, not settled", sent=True, reserved=True),
    Point("settle under way", sent=True, reserved=True),
    Point("settled, not told", sent=True, settled=True),
)
"""Those that every kind of store has."""

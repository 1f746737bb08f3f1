"""Windows of time, of which each has its limit anew: calendar ones, and ones of a fixed length.

Pure functions of a moment. All moments are Unix times, and all windows begin and end at whole
seconds. The windows of a schedule follow each other without a gap.
"""

from datetime import UTC, date, datetime, timedelta, tzinfo
from math import floor
from typing import Literal, NamedTuple, TypeAlias, get_args

__all__ = [
    "UNITS",
    "Calendar",
    "Interval",
    "Schedule",
    "Unit",
    "Window",
    "zone_named",
]

Unit: TypeAlias = Literal["minute", "hour", "day", "week", "month", "year"]
UNITS: tuple[Unit, ...] = get_args(Unit)

SECONDS = {"minute": 60, "hour": 3600}
"""The units that end where the clock is changed; the longer ones go on over it."""


class Window(NamedTuple):
    """A window of time.

    Attributes:
        name: Such as ``"2026-11-24"``; no other window of its schedule has it.
        start: Unix time of its first moment.
        end: Unix time of the first moment after it, which is the next window's.
    """

    name: str
    start: int
    end: int


class Calendar(NamedTuple):
    """The minutes, hours, days, weeks (from Monday), months or years of a time zone.

    A day begins at the first midnight of its date, or with the first moment after that if the clock
    skips it; so it may have 23 or 25 hours. An hour or minute begins with its figure on the clock,
    and ends with it or where the clock is changed. So one that occurs twice is two windows.

    Example:
        >>> Calendar("day", zone_named("Europe/Berlin")).at(1_793_000_000).name
        '2026-10-26'
    """

    unit: Unit
    zone: tzinfo = UTC

    def at(self, time: float) -> Window:
        """The window that a moment lies in."""
        second = floor(time)
        return self._of_clock(second) if self.unit in SECONDS else self._of_dates(second)

    def local(self, time: float) -> datetime:
        """A moment as the clocks of its zone show it."""
        return datetime.fromtimestamp(time, self.zone)

    def _of_clock(self, second: int) -> Window:
        zone, size = self.zone, SECONDS[self.unit]
        offset = _offset(second, zone)
        start = second - (second + offset) % size
        end = start + size
        name = self.local(second).isoformat(timespec=f"{self.unit}s")
        if _offset(start, zone) != offset:
            start = _change(start, second, zone)
        if _offset(end - 1, zone) != offset:
            end = _change(second, end - 1, zone)
        return Window(name, start, end)

    def _of_dates(self, second: int) -> Window:
        first = self._first(self.local(second).date())
        start, end = _beginning(first, self.zone), _beginning(self._next(first), self.zone)
        if second >= end:  # the clock was set back over midnight, and shows the old date again
            first, start = self._next(first), end
            end = _beginning(self._next(first), self.zone)
        return Window(self._name(first), start, end)

    def _first(self, day: date) -> date:
        if self.unit == "day":
            return day
        if self.unit == "week":
            return day - timedelta(day.weekday())
        return day.replace(day=1) if self.unit == "month" else day.replace(month=1, day=1)

    def _next(self, first: date) -> date:
        days = {"day": 1, "week": 7, "month": 31, "year": 366}[self.unit]
        return self._first(first + timedelta(days))

    def _name(self, first: date) -> str:
        if self.unit == "week":
            year, week, _ = first.isocalendar()
            return f"{year}-W{week:02}"
        return first.isoformat()[: {"day": 10, "month": 7, "year": 4}[self.unit]]


class Interval(NamedTuple):
    """Windows of one length, counted from an anchor.

    Example:
        >>> Interval(18_000, anchor=1_793_000_000).at(1_793_020_000)
        Window(name='2026-10-26T12:33:20+00:00', start=1793018000, end=1793036000)
    """

    seconds: int
    anchor: int | None = None
    """Unix time at which the first one begins; None: it is not known yet."""

    def at(self, time: float) -> Window:
        """The window that a moment lies in; before the anchor, the first one."""
        if self.anchor is None:
            raise ValueError("nobody has said yet when the first window begins")
        number = max(0, (floor(time) - self.anchor) // self.seconds)
        start = self.anchor + number * self.seconds
        return Window(self.local(start).isoformat(), start, start + self.seconds)

    def local(self, time: float) -> datetime:
        """A moment, in UTC."""
        return datetime.fromtimestamp(time, UTC)


Schedule: TypeAlias = Calendar | Interval


def zone_named(name: object) -> tzinfo:
    """The time zone of a name.

    Args:
        name: Such as ``"Europe/Berlin"``; or a `ZoneInfo` already.

    Raises:
        ValueError: There is no such zone, or no time zone data.
    """
    if name is UTC or name == "UTC":  # needs no data
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # here: importing it takes milliseconds

    if isinstance(name, ZoneInfo):
        return name
    if not isinstance(name, str):
        raise ValueError(
            f"tz must be a name such as 'Europe/Berlin', or a zoneinfo.ZoneInfo, got {name!r}"
        )
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"no time zone {name!r} is known: give a name of the IANA database, such as "
            f"'Europe/Berlin'. If the system has no time zone data (Windows, small containers): "
            f"pip install tzdata"
        ) from error


def _beginning(day: date, zone: tzinfo) -> int:
    """The first second at which clocks show this date, or a later one if it is skipped."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)  # the first one, if two
    second = floor(midnight.timestamp())
    if datetime.fromtimestamp(second, zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return second
    # It is skipped. By PEP 495 these are the moments that it would be by the clock as it was
    # before the change, and as it is after it; the change itself lies between.
    return _change(floor(midnight.replace(fold=1).timestamp()), second, zone)


def _change(before: int, after: int, zone: tzinfo) -> int:
    """The first second of a zone's new offset, of which one is before that, and one is not."""
    old = _offset(before, zone)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == old:
            before = middle
        else:
            after = middle
    return after


def _offset(second: int, zone: tzinfo) -> int:
    """How many seconds clocks are ahead of UTC."""
    offset = datetime.fromtimestamp(second, zone).utcoffset()
    return 0 if offset is None else floor(offset.total_seconds())

"""Calendar windows against zoneinfo itself, and windows of a fixed length."""

import zoneinfo
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenfence_integrations.engine.limits.windows import (
    UNITS,
    Calendar,
    Interval,
    Unit,
    Window,
    zone_named,
)

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = sorted(zoneinfo.available_timezones() - {"localtime"})

zones = st.sampled_from(ZONES).map(ZoneInfo)
moments = st.integers(0, 2**31) | st.floats(0, 2**31)
days = st.integers(0, 24_000).map(lambda number: date(1970, 1, 1) + timedelta(number))

HARD = [
    # Where clocks were changed at midnight, over midnight, by half an hour, or by a whole day.
    ("Africa/Cairo", datetime(2024, 4, 26)),
    ("America/St_Johns", datetime(2010, 11, 7)),
    ("America/Havana", datetime(2024, 11, 3)),
    ("America/Sao_Paulo", datetime(2018, 2, 18)),
    ("America/Scoresbysund", datetime(2024, 3, 31)),
    ("America/Asuncion", datetime(2023, 3, 26)),
    ("Australia/Lord_Howe", datetime(2026, 4, 5)),
    ("Australia/Lord_Howe", datetime(2026, 10, 4)),
    ("Europe/Berlin", datetime(2026, 3, 29)),
    ("Europe/Berlin", datetime(2026, 10, 25)),
    ("Pacific/Apia", datetime(2011, 12, 30)),
    ("Pacific/Kwajalein", datetime(1993, 8, 21)),
    ("Asia/Pyongyang", datetime(2015, 8, 15)),
    ("Asia/Kathmandu", datetime(1986, 1, 1)),
]


def around(zone: ZoneInfo, day: datetime) -> range:
    """Moments of three days, each 10 minutes and a bit after the one before."""
    midnight = int(day.replace(tzinfo=zone).timestamp())
    return range(midnight - 86_400, midnight + 2 * 86_400, 613)


def check(calendar: Calendar, time: float) -> Window:
    """What holds for every window, whichever moment of it was asked about."""
    window = calendar.at(time)
    assert window.start <= time < window.end
    for moment in (window.start, (window.start + window.end) / 2, window.end - 1):
        assert calendar.at(moment) == window
    before, after = calendar.at(window.start - 1), calendar.at(window.end)
    assert before.end == window.start
    assert after.start == window.end
    assert len({before.name, window.name, after.name}) == 3
    return window


@given(unit=st.sampled_from(UNITS), zone=zones, time=moments)
def test_windows_follow_each_other_without_gap_or_overlap(
    unit: Unit, zone: ZoneInfo, time: float
) -> None:
    check(Calendar(unit, zone), time)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("zone", "day"), HARD)
def test_also_where_clocks_are_changed(unit: Unit, zone: str, day: datetime) -> None:
    calendar = Calendar(unit, ZoneInfo(zone))
    windows = [calendar.at(time) for time in around(ZoneInfo(zone), day)]
    distinct = list(dict.fromkeys(windows))
    assert len({window.name for window in distinct}) == len(distinct)
    for time, window in zip(around(ZoneInfo(zone), day), windows, strict=True):
        assert window.start <= time < window.end
    if unit != "minute":
        for before, after in pairwise(distinct):
            assert before.end == after.start
    check(calendar, distinct[0].start)


@given(zone=zones, day=days)
@example(ZoneInfo("Pacific/Apia"), date(2011, 12, 31))
@example(ZoneInfo("Africa/Cairo"), date(2024, 4, 26))
@example(ZoneInfo("Africa/Monrovia"), date(1972, 1, 7))
def test_a_day_begins_when_clocks_first_show_its_date(zone: ZoneInfo, day: date) -> None:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone)
    if datetime.fromtimestamp(noon.timestamp(), zone).date() != day:
        return  # the day that a zone has left out
    window = Calendar("day", zone).at(noon.timestamp())
    assert window.name == day.isoformat()
    shown = [datetime.fromtimestamp(second, zone) for second in (window.start - 1, window.start)]
    assert shown[0].date() < day == shown[1].date()


@given(zone=zones, day=days)
def test_longer_units_are_made_of_days(zone: ZoneInfo, day: date) -> None:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).timestamp()
    own = Calendar("day", zone).at(noon)
    for unit in ("week", "month", "year"):
        window = Calendar(unit, zone).at(noon)
        assert window.start <= own.start < own.end <= window.end
        first = Calendar("day", zone).at(window.start)
        assert first.start == window.start
        last = Calendar("day", zone).at(window.end - 1)
        assert last.end == window.end
    month = Calendar("month", zone).at(noon)
    assert own.name.startswith(month.name)


@given(unit=st.sampled_from(["hour", "minute"]), zone=zones, time=moments)
def test_an_hour_is_what_clocks_show_as_one(unit: Unit, zone: ZoneInfo, time: float) -> None:
    """It begins and ends with the figure on the clock, or where the offset changes."""
    window = Calendar(unit, zone).at(time)
    shown = [
        datetime.fromtimestamp(second, zone)
        for second in (window.start - 1, window.start, window.end - 1, window.end)
    ]
    figures = [(each.strftime("%Y-%m-%d %H")[: 13 if unit == "hour" else 16]) for each in shown]
    if unit == "minute":
        figures = [each.strftime("%Y-%m-%d %H:%M") for each in shown]
    assert figures[1] == figures[2]
    assert (figures[0], shown[0].utcoffset()) != (figures[1], shown[1].utcoffset())
    assert (figures[3], shown[3].utcoffset()) != (figures[2], shown[2].utcoffset())
    assert shown[1].utcoffset() == shown[2].utcoffset()


@pytest.mark.parametrize(
    ("month", "day", "hours"), [(3, 29, 23), (10, 25, 25), (6, 1, 24)], ids=str
)
def test_days_in_berlin_have_23_to_25_hours(month: int, day: int, hours: int) -> None:
    noon = datetime(2026, month, day, 12, tzinfo=BERLIN).timestamp()
    window = Calendar("day", BERLIN).at(noon)
    assert (window.end - window.start) / 3600 == hours
    inside = {
        Calendar("hour", BERLIN).at(time).name for time in range(window.start, window.end, 600)
    }
    assert len(inside) == hours


def test_the_hour_that_occurs_twice_is_two_windows() -> None:
    second = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp())
    one, two = (Calendar("hour", BERLIN).at(second + late).name for late in (0, 3600))
    assert (one, two) == ("2026-10-25T02+02:00", "2026-10-25T02+01:00")


@pytest.mark.parametrize(
    ("unit", "time", "name", "hours"),
    [
        ("minute", "2026-11-24T10:35:59", "2026-11-24T10:35+00:00", 1 / 60),
        ("hour", "2026-11-24T10:35:00", "2026-11-24T10+00:00", 1),
        ("day", "2024-02-29T00:00:00", "2024-02-29", 24),
        ("week", "2026-11-29T23:59:59", "2026-W48", 168),
        ("week", "2027-01-01T00:00:00", "2026-W53", 168),
        ("month", "2024-02-10T00:00:00", "2024-02", 29 * 24),
        ("month", "2026-02-10T00:00:00", "2026-02", 28 * 24),
        ("year", "2024-12-31T23:59:59", "2024", 366 * 24),
        ("year", "2100-02-28T00:00:00", "2100", 365 * 24),
    ],
)
def test_names_and_lengths(unit: Unit, time: str, name: str, hours: float) -> None:
    window = Calendar(unit).at(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp())
    assert window.name == name
    assert window.end - window.start == hours * 3600


def test_a_week_begins_on_monday() -> None:
    tuesday = datetime(2026, 11, 24, tzinfo=BERLIN)
    start = Calendar("week", BERLIN).at(tuesday.timestamp()).start
    assert datetime.fromtimestamp(start, BERLIN) == datetime(2026, 11, 23, tzinfo=BERLIN)


@given(
    seconds=st.integers(1, 10**7),
    anchor=st.integers(0, 2**31),
    after=st.floats(0, 10**8),
)
def test_windows_of_a_fixed_length_are_counted_from_the_anchor(
    seconds: int, anchor: int, after: float
) -> None:
    interval = Interval(seconds, anchor)
    window = interval.at(anchor + after)
    assert window.start <= anchor + after < window.end
    assert window.end - window.start == seconds
    assert (window.start - anchor) % seconds == 0
    following = interval.at(window.end)
    assert following.start == window.end
    assert following.name != window.name
    assert interval.at(anchor - after) == interval.at(anchor)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "Europe", ""])
def test_an_unknown_zone_says_what_to_do(name: str) -> None:
    with pytest.raises(ValueError, match=r"no time zone .* pip install tzdata"):
        zone_named(name)


def test_a_zone_of_another_type_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="tz must be a name such as 'Europe/Berlin'"):
        zone_named(3)


class WithoutData:
    """A system without time zone data."""

    def __init__(self, name: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError(name)


def test_utc_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoneinfo.ZoneInfo", WithoutData)
    assert zone_named("UTC") is UTC
    with pytest.raises(ValueError, match="pip install tzdata"):
        zone_named("Europe/Berlin")

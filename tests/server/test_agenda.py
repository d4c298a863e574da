"""The day as people live it, on the real calendars of three exchanges."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.agenda import Agenda, DayType, Slot, of_calendar, of_days
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number, from_day_number

ZONES = {"XSHG": "Asia/Shanghai", "XHKG": "Asia/Hong_Kong", "XNYS": "America/New_York"}
FIRST, LAST = date(2026, 1, 1), date(2026, 12, 31)


@cache
def agenda(mic: str) -> Agenda:
    return of_calendar(build_calendar(mic, date(2026, 11, 20)), FIRST, LAST)


def at(mic: str, day: date, clock: str) -> float:
    return datetime.combine(day, time.fromisoformat(clock), ZoneInfo(ZONES[mic])).timestamp()


def slots(mic: str, day: date, *clocks: str) -> list[Slot]:
    return [agenda(mic).moment(at(mic, day, clock)).slot for clock in clocks]


def session_day(mic: str, instant: float) -> date:
    return from_day_number(agenda(mic).days[agenda(mic).moment(instant).session])


@pytest.mark.parametrize(("mic", "close"), [("XSHG", "15:00"), ("XHKG", "16:00"), ("XNYS", "16:00")])
def test_a_day_has_its_parts(mic: str, close: str) -> None:
    day = date(2026, 11, 18)
    assert slots(mic, day, "00:00", "06:59", "07:00", "09:29", "09:30", "10:29", "10:30") == [
        Slot.OVERNIGHT,
        Slot.OVERNIGHT,
        Slot.PRE_OPEN,
        Slot.PRE_OPEN,
        Slot.FIRST_HOUR,
        Slot.FIRST_HOUR,
        Slot.MIDDAY,
    ]
    hour = int(close[:2])
    late = (f"{hour - 2}:59", f"{hour - 1}:00", f"{hour - 1}:59", close, f"{hour + 2}:59", f"{hour + 3}:00", "23:59")
    assert slots(mic, day, *late) == [
        Slot.MIDDAY,
        Slot.LAST_HOUR,
        Slot.LAST_HOUR,
        Slot.POST_CLOSE,
        Slot.POST_CLOSE,
        Slot.EVENING,
        Slot.EVENING,
    ]
    assert {session_day(mic, at(mic, day, clock)) for clock in ("00:00", "09:30", "23:59")} == {day}


def test_a_half_day_ends_early_and_still_has_a_middle() -> None:
    assert slots("XNYS", date(2026, 11, 27), "09:45", "11:15", "12:30", "13:00", "15:59", "16:00") == [
        Slot.FIRST_HOUR,
        Slot.MIDDAY,
        Slot.LAST_HOUR,
        Slot.POST_CLOSE,
        Slot.POST_CLOSE,
        Slot.EVENING,
    ]
    assert slots("XHKG", date(2026, 12, 24), "09:45", "12:00") == [Slot.FIRST_HOUR, Slot.POST_CLOSE]


def test_summer_time_moves_the_day_along_with_the_exchange() -> None:
    before, after = date(2026, 10, 30), date(2026, 11, 2)
    assert at("XNYS", after, "09:30") - at("XNYS", before, "09:30") == 3 * 86_400 + 3600
    assert slots("XNYS", before, "09:29", "09:30") == slots("XNYS", after, "09:29", "09:30") == [Slot.PRE_OPEN, Slot.FIRST_HOUR]
    morning = datetime(2026, 10, 30, 13, 45, tzinfo=UTC).timestamp()  # whoever asks at the same hour in UTC
    asked = [agenda("XNYS").moment(morning + days * 86_400).slot for days in (0, 3)]
    assert asked == [Slot.FIRST_HOUR, Slot.PRE_OPEN]
    assert agenda("XNYS").moment(at("XNYS", date(2026, 11, 1), "12:00")).slot == Slot.CLOSED


@pytest.mark.parametrize(
    ("mic", "day", "before"),
    [
        ("XNYS", date(2026, 11, 26), date(2026, 11, 25)),  # Thanksgiving
        ("XNYS", date(2026, 11, 22), date(2026, 11, 20)),  # a Sunday
        ("XSHG", date(2026, 10, 5), date(2026, 9, 30)),  # National Day
        ("XHKG", date(2026, 12, 25), date(2026, 12, 24)),
    ],
)
def test_a_date_without_a_session_belongs_to_the_one_before(mic: str, day: date, before: date) -> None:
    assert slots(mic, day, "00:00", "09:45", "23:59") == [Slot.CLOSED] * 3
    assert session_day(mic, at(mic, day, "12:00")) == before
    assert not agenda(mic).is_session(day_number(day))
    assert from_day_number(agenda(mic).days[agenda(mic).number(day_number(day))]) == before


def test_the_exchange_s_date_counts_and_not_that_of_utc() -> None:
    midnight = at("XSHG", date(2026, 11, 19), "00:00")  # 16:00 of the 18th in UTC
    assert (session_day("XSHG", midnight), session_day("XSHG", midnight - 1)) == (date(2026, 11, 19), date(2026, 11, 18))


@pytest.mark.parametrize(
    ("mic", "day", "special"),
    [
        ("XNYS", date(2026, 11, 18), None),
        ("XNYS", date(2026, 11, 20), DayType.EXPIRY),
        ("XNYS", date(2026, 11, 27), DayType.HALF_DAY),  # after a gap, too
        ("XNYS", date(2026, 11, 30), DayType.MONTH_END),
        ("XNYS", date(2026, 11, 16), None),  # a Monday after a plain weekend
        ("XNYS", date(2026, 9, 8), DayType.AFTER_GAP),  # the Tuesday after Labor Day
        ("XSHG", date(2026, 10, 8), DayType.AFTER_GAP),
        ("XSHG", date(2026, 9, 30), DayType.MONTH_END),
        ("XHKG", date(2026, 12, 24), DayType.HALF_DAY),
    ],
)
def test_kinds_of_day_go_from_special_to_weekday_to_all(mic: str, day: date, special: DayType | None) -> None:
    types = agenda(mic).day_types(agenda(mic).number(day_number(day)))
    assert types == (*([] if special is None else [int(special)]), day.weekday(), DayType.ALL)


@pytest.mark.parametrize("mic", ["XSHG", "XHKG", "XNYS", "XSGE", None])
def test_the_parts_of_every_session_follow_each_other(mic: str | None) -> None:
    found = of_calendar(build_calendar(mic, date(2026, 11, 20)), FIRST, LAST)
    for session in range(len(found.days)):
        starts = found.starts(session)
        assert len(starts) == len(Slot) - 1
        assert all(before <= after for before, after in pairwise(starts))
        assert found.present(starts[0]) == session
        for slot, (start, following) in enumerate(pairwise(starts)):
            assert start == following or found.moment(start) == (session, slot)


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_time_never_leads_to_an_earlier_moment(one: float, other: float) -> None:
    first, later = (agenda("XNYS").moment(instant) for instant in sorted((one, other)))
    assert first <= later


def test_before_the_first_session_there_is_only_its_night() -> None:
    found = agenda("XNYS")
    assert found.moment(0.0) == (0, Slot.OVERNIGHT)
    assert (found.number(0), found.present(0.0)) == (-1, 0)


def test_whoever_has_no_exchange_has_the_same_hours_every_day() -> None:
    days = [day_number(date(2026, 11, day)) for day in (18, 19)]
    found = of_days(days, ZoneInfo("UTC"), time(9, 30), time(16), timedelta(minutes=15))
    assert [settled - close for settled, close in zip(found.settled, found.closes, strict=True)] == [900.0, 900.0]
    assert found.moment(datetime(2026, 11, 19, 9, 31, tzinfo=UTC).timestamp()) == (1, Slot.FIRST_HOUR)

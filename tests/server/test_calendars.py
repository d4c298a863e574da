from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import NOW

from fletching_schemas.errors import InvalidRequest
from fletching_server.almanac import Calendars, build_calendar
from fletching_server.calendars import day_number, from_day_number
from fletching_server.testing import ManualClock

TODAY = NOW.date()
SHANGHAI = build_calendar("XSHG", TODAY)
EVERY_DAY = build_calendar(None, TODAY)


def sessions(first: date, last: date) -> list[date]:
    return [from_day_number(int(day)) for day in SHANGHAI.between(day_number(first), day_number(last))]


@given(st.dates())
def test_day_numbers_count_from_1970_and_back(day: date) -> None:
    assert day_number(day) == (day - date(1970, 1, 1)).days
    assert from_day_number(day_number(day)) == day


def test_golden_week_has_no_session() -> None:
    assert sessions(date(2026, 9, 30), date(2026, 10, 9)) == [date(2026, 9, 30), date(2026, 10, 8), date(2026, 10, 9)]


def test_shanghai_begins_with_its_first_session() -> None:
    assert SHANGHAI.first == date(1990, 12, 19)
    assert SHANGHAI.zone == ZoneInfo("Asia/Shanghai")


def test_shanghai_is_known_until_the_end_of_2026_only() -> None:
    assert SHANGHAI.known_until == date(2026, 12, 31)


def test_beyond_what_is_known_weekdays_count_as_sessions() -> None:
    beyond = sessions(date(2027, 1, 1), date(2027, 1, 31))
    assert beyond == [
        date(2027, 1, 1) + timedelta(days=n) for n in range(31) if (date(2027, 1, 1) + timedelta(days=n)).weekday() < 5
    ]


def test_days_that_nobody_knows_settle_by_the_usual_hours_and_nobody_vouches_for_them() -> None:
    unknown = SHANGHAI.between(day_number(date(2027, 1, 1)), day_number(date(2027, 1, 8)))
    assert SHANGHAI.settled_through(datetime(2027, 1, 8, 8, 0, tzinfo=UTC)) == day_number(date(2027, 1, 8))
    assert not SHANGHAI.knows(unknown).any()
    assert SHANGHAI.knows(SHANGHAI.between(day_number(date(2026, 12, 1)), day_number(date(2026, 12, 31)))).all()


def test_shenzhen_and_beijing_keep_the_sessions_of_shanghai() -> None:
    for mic in ("XSHE", "BJSE"):
        other = build_calendar(mic, TODAY)
        assert np.array_equal(other.days, SHANGHAI.days)
        assert np.array_equal(other.settled, SHANGHAI.settled)
        assert other.mic == mic


def test_a_session_settles_an_hour_after_the_close() -> None:
    close = datetime(2026, 11, 20, 15, 0, tzinfo=ZoneInfo("Asia/Shanghai"))
    friday, thursday = day_number(date(2026, 11, 20)), day_number(date(2026, 11, 19))
    assert SHANGHAI.settled_through(close) == thursday
    assert SHANGHAI.settled_through(close + timedelta(minutes=60) - timedelta(microseconds=1)) == thursday
    assert SHANGHAI.settled_through(close + timedelta(minutes=60)) == friday
    assert SHANGHAI.settled_through(close + timedelta(days=2)) == friday


def test_new_york_settles_after_its_evening_prints_in_summer_and_in_winter() -> None:
    york = build_calendar("XNYS", TODAY)
    for day in (date(2026, 7, 15), date(2026, 11, 18)):
        settled = datetime(day.year, day.month, day.day, 20, 30, tzinfo=ZoneInfo("America/New_York"))
        assert york.settled_through(settled) == day_number(day)
        assert york.settled_through(settled - timedelta(microseconds=1)) < day_number(day)


def test_before_the_first_session_nothing_has_settled() -> None:
    assert SHANGHAI.settled_through(datetime(1980, 1, 1, tzinfo=UTC)) < int(SHANGHAI.days[0])


def test_today_is_the_date_at_the_exchange() -> None:
    assert SHANGHAI.today(datetime(2026, 11, 20, 15, 59, tzinfo=UTC)) == day_number(date(2026, 11, 20))
    assert SHANGHAI.today(datetime(2026, 11, 20, 16, 0, tzinfo=UTC)) == day_number(date(2026, 11, 21))


def test_sessions_that_open_on_the_evening_before_are_told() -> None:
    assert build_calendar("CMES", TODAY).overnight
    assert not SHANGHAI.overnight
    assert not EVERY_DAY.overnight


def test_without_a_calendar_every_day_is_a_session_that_settles_at_midnight_utc() -> None:
    saturday = date(2026, 11, 21)
    assert EVERY_DAY.snap(day_number(saturday), day_number(saturday)) == (day_number(saturday), day_number(saturday))
    assert EVERY_DAY.settled_through(datetime(2026, 11, 21, 23, 59, tzinfo=UTC)) == day_number(saturday) - 1
    assert EVERY_DAY.settled_through(datetime(2026, 11, 22, tzinfo=UTC)) == day_number(saturday)
    assert EVERY_DAY.name == "every day"


@given(st.dates(date(2025, 1, 1), date(2026, 12, 31)), st.dates(date(2025, 1, 1), date(2026, 12, 31)))
def test_snap_between_and_adjacent_agree_with_the_list_of_sessions(one: date, other: date) -> None:
    first, last = sorted((day_number(one), day_number(other)))
    inside = [day for day in SHANGHAI.days.tolist() if first <= day <= last]
    assert SHANGHAI.between(first, last).tolist() == inside
    assert SHANGHAI.snap(first, last) == ((inside[0], inside[-1]) if inside else None)
    assert SHANGHAI.adjacent(first, last) == (not [day for day in SHANGHAI.days.tolist() if first < day < last])


def test_an_unknown_mic_is_refused_with_examples() -> None:
    with pytest.raises(InvalidRequest, match=r"'NOPE'.*XSHG"):
        build_calendar("NOPE", TODAY)


def test_a_calendar_is_built_once_a_day() -> None:
    clock = ManualClock(NOW)
    calendars = Calendars(clock)
    held = calendars.get("XSHG")
    assert calendars.get("XSHG") is held
    clock.advance(days=1)
    assert calendars.get("XSHG") is not held

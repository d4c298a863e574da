"""Calendars built from layers: what the package, the settings, published lists and a reference index say about days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import weekdays

from fletching_schemas.errors import OutOfCalendar
from fletching_server.almanac import Calendars, Learned, Rules, build_calendar
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.testing import ManualClock

TODAY = date(2026, 11, 20)
LATER = date(2027, 2, 1)
JANUARY = weekdays(date(2027, 1, 1), date(2027, 1, 29))


def numbers(days: list[date]) -> frozenset[int]:
    return frozenset(map(day_number, days))


def labels(calendar: Calendar, day: date, minutes: int) -> list[str]:
    return [
        datetime.fromtimestamp(int(end) / 1e6, UTC).astimezone(calendar.zone).strftime("%H:%M")
        for end in calendar.bar_ends(day, minutes)
    ]


def test_late_changes_that_the_package_has_learned_are_right() -> None:
    shanghai = build_calendar("XSHG", TODAY)
    assert {shanghai.standing(day) for day in (date(2020, 1, 31), date(2021, 5, 4), date(2024, 2, 9))} == {"closed"}
    hong_kong = build_calendar("XHKG", TODAY)
    assert {hong_kong.standing(date(2024, 2, day)) for day in (9, 14, 15, 16)} == {"open"}


@pytest.mark.parametrize(
    ("mic", "days"),
    [
        ("XHKG", [date(2026, 2, 16), date(2026, 12, 24), date(2026, 12, 31)]),
        ("XNYS", [date(2026, 11, 27), date(2026, 12, 24)]),
        ("XSHG", []),
    ],
)
def test_half_days_are_told(mic: str, days: list[date]) -> None:
    calendar = build_calendar(mic, TODAY)
    assert calendar.half_days(day_number(date(2026, 1, 1)), day_number(date(2026, 12, 31))) == days


def test_a_half_day_settles_earlier() -> None:
    york = build_calendar("XNYS", TODAY)
    black_friday = datetime(2026, 11, 27, 13, 0, tzinfo=ZoneInfo("America/New_York")) + timedelta(hours=4, minutes=30)
    assert york.settled_through(black_friday) == day_number(date(2026, 11, 27))


def test_bars_are_labelled_by_their_end_and_counted_inside_the_segments_of_a_session() -> None:
    shanghai, hong_kong, york = (build_calendar(mic, TODAY) for mic in ("XSHG", "XHKG", "XNYS"))
    minutes = labels(shanghai, TODAY, 1)
    assert (len(minutes), minutes[0], minutes[119], minutes[120], minutes[-1]) == (240, "09:31", "11:30", "13:01", "15:00")
    fives = labels(shanghai, TODAY, 5)
    assert (len(fives), fives[0], fives[23], fives[24]) == (48, "09:35", "11:30", "13:05")
    assert labels(shanghai, TODAY, 60) == ["10:30", "11:30", "14:00", "15:00"]
    assert len(labels(hong_kong, TODAY, 1)) == 330
    assert labels(hong_kong, date(2026, 12, 24), 60) == ["10:30", "11:30", "12:00"]
    assert labels(york, TODAY, 60)[-2:] == ["15:30", "16:00"]
    assert labels(york, date(2026, 7, 15), 390) == labels(york, TODAY, 390) == ["16:00"]  # whatever summer time says
    assert labels(shanghai, date(2026, 10, 1), 1) == []


def test_beyond_the_package_weekdays_are_unknown_and_weekends_closed() -> None:
    shanghai = build_calendar("XSHG", LATER)
    assert shanghai.known_until == date(2027, 1, 1) - timedelta(days=1)
    assert [shanghai.standing(day) for day in (date(2027, 1, 4), date(2027, 1, 9), date(2026, 12, 31))] == [
        "unknown",
        "closed",
        "open",
    ]


def test_a_published_list_answers_up_to_its_last_day() -> None:
    listed = [day for day in JANUARY if day != date(2027, 1, 1)]
    shanghai = build_calendar("XSHG", LATER, learned=Learned(listed=numbers(listed)))
    assert [shanghai.standing(day) for day in (date(2027, 1, 1), date(2027, 1, 4), date(2027, 2, 1))] == [
        "closed",
        "open",
        "unknown",
    ]
    assert shanghai.known_until == date(2027, 1, 31)
    opened = shanghai.hours.opens[shanghai.days.searchsorted(day_number(date(2027, 1, 4)))]
    assert datetime.fromtimestamp(int(opened) / 1e6, UTC) == datetime(2027, 1, 4, 1, 30, tzinfo=UTC)  # the usual hours


def test_the_index_answers_for_days_that_it_has_seen() -> None:
    learned = Learned(
        traded=numbers([date(2027, 1, 4), date(2027, 1, 6)]),
        silent=numbers([date(2027, 1, 1), date(2027, 1, 5), date(2027, 1, 7)]),
    )
    shanghai = build_calendar("XSHG", LATER, learned=learned)
    assert [shanghai.standing(date(2027, 1, day)) for day in (1, 4, 5, 6, 7, 8)] == [
        "closed",
        "open",
        "closed",
        "open",
        "unknown",  # no later bar yet: the index may only be late
        "unknown",
    ]


def test_a_known_session_on_which_the_index_is_silent_is_disputed() -> None:
    learned = Learned(traded=numbers([date(2026, 11, 12)]), silent=numbers([date(2026, 11, 11), date(2026, 11, 13)]))
    shanghai = build_calendar("XSHG", TODAY, learned=learned)
    assert [shanghai.standing(date(2026, 11, day)) for day in (11, 12, 13)] == ["unknown", "open", "open"]
    assert shanghai.disputed == numbers([date(2026, 11, 11)])


def test_the_settings_have_the_last_word() -> None:
    rules = Rules(frozenset({date(2026, 11, 21), date(2027, 1, 4)}), frozenset({date(2026, 11, 19)}), settle_minutes=5)
    learned = Learned(traded=numbers([date(2026, 11, 19)]), listed=numbers([date(2027, 1, 5)]))
    shanghai = build_calendar("XSHG", TODAY, rules, learned)
    assert [shanghai.standing(day) for day in (date(2026, 11, 21), date(2026, 11, 19), date(2027, 1, 4))] == [
        "open",
        "closed",
        "open",
    ]
    assert shanghai.settled_through(datetime(2026, 11, 20, 7, 5, tzinfo=UTC)) == day_number(TODAY)


@given(st.sets(st.sampled_from(JANUARY)), st.sets(st.sampled_from(JANUARY)), st.sets(st.sampled_from(JANUARY)))
def test_no_layer_makes_a_day_two_things(listed: set[date], traded: set[date], silent: set[date]) -> None:
    learned = Learned(numbers(list(listed)), numbers(list(traded)), numbers(list(silent - traded)))
    shanghai = build_calendar("XSHG", LATER, learned=learned)
    assert (np.diff(shanghai.days) > 0).all()
    assert len(shanghai.days) == len(shanghai.settled) == len(shanghai.known) == len(shanghai.hours.opens)
    for day in JANUARY:
        if listed and day <= max(listed):
            expected = {"open", "unknown"} if day in listed else {"closed"}  # unknown: disputed by the index
            assert shanghai.standing(day) in expected
    assert all(from_day_number(int(day)).weekday() < 5 for day in shanghai.days)


def test_chinese_futures_open_on_the_evening_before_but_not_before_a_holiday() -> None:
    futures = build_calendar("XSGE", TODAY)
    opens = dict(zip(futures.days.tolist(), futures.hours.opens.tolist(), strict=True))

    def opened(day: date) -> datetime:
        return datetime.fromtimestamp(opens[day_number(day)] / 1e6, UTC).astimezone(ZoneInfo("Asia/Shanghai"))

    assert opened(date(2026, 11, 19)).isoformat()[:16] == "2026-11-18T21:00"
    assert opened(date(2026, 11, 23)).isoformat()[:16] == "2026-11-20T21:00"  # Monday's session opens on Friday night
    assert opened(date(2026, 10, 8)).isoformat()[:16] == "2026-10-08T09:00"  # after Golden Week
    assert futures.overnight
    assert not build_calendar("CCFX", TODAY).overnight


def test_teaching_rebuilds_only_where_it_is_news() -> None:
    calendars = Calendars(ManualClock(datetime(2027, 2, 1, 12, tzinfo=UTC)))
    held = calendars.get("XSHG")
    learned = Learned(listed=numbers(JANUARY))
    assert calendars.teach("XSHG", learned)
    taught = calendars.get("XSHG")
    assert taught is not held
    assert taught.known_until == date(2027, 1, 31)
    assert not calendars.teach("XSHG", learned)
    assert calendars.get("XSHG") is taught


@pytest.mark.parametrize(("mic", "today"), [("XSHG", date(1971, 1, 1)), ("XNYS", date(2600, 1, 1))])
def test_a_clock_far_from_the_calendar_is_told_as_what_it_is(mic: str, today: date) -> None:
    calendars = Calendars(ManualClock(datetime(today.year, 1, 1, tzinfo=UTC)))
    with pytest.raises(OutOfCalendar, match=f"the calendar {mic} has no sessions around {today}, which the clock says is today"):
        calendars.get(mic)

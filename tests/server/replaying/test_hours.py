"""Whose hours a trace keeps: the exchange in whose day people are at work."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from tests.conftest import weekdays
from tests.server.replaying.conftest import Row, made, row

from fletching_schemas.errors import InvalidRequest
from fletching_server.calendars import day_number
from fletching_server.replaying.hours import KNOWN, Hours, agenda_of

DAYS = weekdays(date(2026, 3, 2), date(2026, 4, 30))  # with the start of summer time in it


def working_days(zone: str, opens: time, closes: time) -> list[Row]:
    """Return reads of yesterday at the exchange's open, and of today after its close."""
    rows = []
    for yesterday, today in pairwise(DAYS):
        reads = ((opens, yesterday, -1.0), (opens, yesterday, 3.0), (closes, today, 0.5), (closes, today, 3.5))
        for clock, session, hours in reads:
            at = datetime.combine(today, clock, ZoneInfo(zone)) + timedelta(hours=hours)
            rows.append({**row(today, 0, session), "ts": at})
    return rows


@pytest.mark.parametrize("hours", [hours for hours in KNOWN if hours.name in {"UTC", "XSHG", "XNYS"}])
def test_the_hours_are_those_in_which_people_work(hours: Hours) -> None:
    found, agenda = agenda_of(made(working_days(hours.zone, hours.opens, hours.closes)))
    assert found.zone == hours.zone
    assert [agenda.is_session(day_number(day)) for day in DAYS] == [True] * len(DAYS)


def test_hours_can_be_named_and_others_are_refused_with_what_there_is() -> None:
    trace = made([row(DAYS[5], 9, DAYS[4])])
    assert agenda_of(trace, "XTKS")[0].name == "XTKS"
    with pytest.raises(InvalidRequest, match="XSHG"):
        agenda_of(trace, "XXXX")


def test_days_that_the_trace_does_not_name_are_no_sessions_and_a_week_follows_the_last() -> None:
    holiday = DAYS[3]
    named = [day for day in DAYS[:8] if day != holiday]
    _, agenda = agenda_of(made(row(DAYS[9], 9, day) for day in named), "UTC")
    assert not agenda.is_session(day_number(holiday))
    assert all(agenda.is_session(day_number(day)) for day in (*named, *DAYS[9:13]))
    assert not agenda.is_session(day_number(DAYS[9] + timedelta(days=1 + 5 - DAYS[9].weekday())))


@pytest.mark.parametrize(
    "rows", [[], [row(DAYS[0], 9, None)], [row(date(1971, 1, 4), 9, None)], [row(date(1950, 1, 4), 9, None)]]
)
def test_a_trace_that_says_nothing_of_sessions_has_an_agenda_all_the_same(rows: list[Row]) -> None:
    _, agenda = agenda_of(made(rows))
    assert agenda.days
    assert all(session < len(agenda.days) for session in (agenda.present(at["ts"].timestamp()) for at in rows))

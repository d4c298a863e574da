"""The days on which a desk works: dates, and instants in microseconds UTC. Days before the first are its history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.desk.profiles import Days
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number, from_day_number

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
MINUTE: Final = 60_000_000
_AHEAD: Final = timedelta(days=60)  # of the calendar: an exchange's is built one year ahead of this


@dataclass(frozen=True, eq=False)
class Sessions:
    """Every session by its index: days since 1970, local midnight, open and close; the desk works from ``first`` on."""

    days: Numbers
    midnights: Numbers
    opens: Numbers
    closes: Numbers
    first: int

    @property
    def worked(self) -> range:
        """The sessions of the run."""
        return range(self.first, len(self.days))

    def at(self, when: str) -> Numbers:
        """Return the instant of *when* on each session: ``"16:45"`` local time, or minutes from ``"close+45"``, ``"open-60"``."""
        for edge, instants in (("close", self.closes), ("open", self.opens)):
            if when.startswith(edge):
                return instants + int(when.removeprefix(edge) or 0) * MINUTE
        return self.midnights + _minutes(when) * MINUTE

    def starts_week(self, index: int) -> bool:
        """Return whether this is the first session of its week."""
        return _week(self.days[index]) != _week(self.days[index - 1])


def sessions_of(days: Days) -> Sessions:
    """Return the sessions that a profile names; of an exchange with its holidays and half days."""
    return _weekdays(days) if days.calendar == "weekdays" else _of_exchange(days)


def _weekdays(days: Days) -> Sessions:
    holidays = np.array(days.holidays, "datetime64[D]")
    first = np.busday_offset(days.first, 0, roll="forward", holidays=holidays)
    numbers = np.busday_offset(first, np.arange(-days.history, days.sessions), holidays=holidays).astype(np.int64)
    midnights = _midnights(numbers, ZoneInfo(days.zone))
    opens, closes = (midnights + _minutes(when) * MINUTE for when in (days.opens, days.closes))
    return Sessions(numbers, midnights, opens, closes, days.history)


def _of_exchange(days: Days) -> Sessions:
    calendar = build_calendar(days.calendar, days.first + _AHEAD)
    first = int(calendar.days.searchsorted(day_number(days.first)))
    part = slice(first - days.history, first + days.sessions)
    numbers, hours = calendar.days[part], calendar.hours
    return Sessions(numbers, _midnights(numbers, calendar.zone), hours.opens[part], hours.closes[part], days.history)


def _midnights(numbers: Numbers, zone: ZoneInfo) -> Numbers:
    """Return local midnights; clocks change on Sundays, so every hour of a session counts from its own."""
    return np.array([_midnight(from_day_number(int(number)), zone) for number in numbers])


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC).timestamp()) * 1_000_000


def _minutes(when: str) -> int:
    hours, minutes = when.split(":")
    return int(hours) * 60 + int(minutes)


def _week(number: int) -> int:
    return (int(number) + 3) // 7  # 1970-01-01 was a Thursday

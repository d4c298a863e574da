"""Whose sessions and hours a trace keeps. It names sessions and instants, and no exchange: the hours that fit best are taken.

A server knows the calendar of each dataset. A trace does not say it, so of the exchanges that are known, and of plain hours in
UTC, that one is chosen in whose day people are at work and sessions are read after their close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from fletching_schemas.errors import InvalidRequest
from fletching_server.agenda import Agenda, of_days
from fletching_server.calendars import day_number, from_day_number
from fletching_server.replaying.trace import Trace

_DAY: Final = 86_400
_BEFORE: Final = 2.5 * 3600
_AFTER: Final = 4 * 3600
_SETTLE: Final = timedelta(minutes=15)  # after the close a session's rows can be had, if not yet for good
_CLEARLY: Final = 0.02
_SATURDAY: Final = 5


@dataclass(frozen=True)
class Hours:
    """The hours of an exchange on its own clock."""

    name: str
    zone: str
    opens: time
    closes: time


KNOWN: Final = (
    Hours("UTC", "UTC", time(9, 30), time(16)),
    Hours("XSHG", "Asia/Shanghai", time(9, 30), time(15)),
    Hours("XHKG", "Asia/Hong_Kong", time(9, 30), time(16)),
    Hours("XTKS", "Asia/Tokyo", time(9), time(15, 30)),
    Hours("XNYS", "America/New_York", time(9, 30), time(16)),
    Hours("XLON", "Europe/London", time(8), time(16, 30)),
    Hours("XFRA", "Europe/Berlin", time(9), time(17, 30)),
)


def agenda_of(trace: Trace, name: str | None = None) -> tuple[Hours, Agenda]:
    """Return the hours that *trace* keeps, or those called *name*, and its sessions by them."""
    hours = named(name) if name else _fitting(trace)
    return hours, of_days(_sessions(trace, hours), ZoneInfo(hours.zone), hours.opens, hours.closes, _SETTLE)


def _fitting(trace: Trace) -> Hours:
    """Return the hours that fit best; plain ones, unless others are clearly better: people at work look alike one zone away."""
    fits = {hours: _fit(trace, hours) for hours in KNOWN}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] > fits[KNOWN[0]] + _CLEARLY else KNOWN[0]


def named(name: str) -> Hours:
    """Return the hours called *name*; ``InvalidRequest`` tells which there are."""
    for hours in KNOWN:
        if hours.name == name:
            return hours
    raise InvalidRequest(f"--calendar {name!r:.40} is not known; there are {', '.join(hours.name for hours in KNOWN)}")


def _sessions(trace: Trace, hours: Hours) -> list[int]:
    """Return the days that the trace names as sessions, and the weekdays of its requests that follow the last of them."""
    named_days = {int(day) for day in trace.days}
    last = max(named_days, default=0)
    asked = {
        day_number(datetime.fromtimestamp(at, ZoneInfo(hours.zone)).date()) for at in trace.ts[:: max(1, len(trace) // 20_000)]
    }
    asked |= {day_number(datetime.fromtimestamp(at, ZoneInfo(hours.zone)).date()) for at in (trace.ts[:1] + trace.ts[-1:])}
    later = {day for day in asked if day > last and from_day_number(day).weekday() < _SATURDAY}
    following = {max(named_days | later | {day_number(date(1970, 1, 2))}) + ahead for ahead in range(1, 8)}
    return sorted(named_days | later | {day for day in following if from_day_number(day).weekday() < _SATURDAY})


def _fit(trace: Trace, hours: Hours) -> float:
    """Return how well *hours* fit: the share of requests in the working day, times that of sessions read after their close."""
    if not len(trace):
        return 0.0
    rows = np.flatnonzero(trace.interactive) if trace.interactive.any() else np.arange(len(trace))
    rows = rows[:: max(1, len(rows) // 5000)]
    seconds, days = _local([trace.ts[row] for row in rows], ZoneInfo(hours.zone))
    opens, closes = (clock.hour * 3600 + clock.minute * 60 for clock in (hours.opens, hours.closes))
    at_work = (seconds >= opens - _BEFORE) & (seconds <= closes + _AFTER)
    same_day = np.array([trace.sessions[row] for row in rows]) == days
    early = same_day & (seconds < closes)
    future = np.array([trace.sessions[row] for row in rows]) > days
    return float(at_work.mean() * (1 - early.mean()) * (1 - future.mean()))


def _local(instants: Sequence[float], zone: ZoneInfo) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    """Return the seconds since local midnight, and the local day numbers."""
    offsets: dict[int, float] = {}
    seconds, days = np.empty(len(instants)), np.empty(len(instants))
    for place, at in enumerate(instants):
        hour = int(at // 3600)
        if hour not in offsets:
            shift = datetime.fromtimestamp(hour * 3600, UTC).astimezone(zone).utcoffset() or timedelta()
            offsets[hour] = shift.total_seconds()
        days[place], seconds[place] = divmod(at + offsets[hour], _DAY)
    return seconds, days

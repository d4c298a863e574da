"""Where calendars come from: layers of knowledge about an exchange's days, the first that answers counts.

    settings              days that somebody added or removed by hand
    weekends              closed, on exchanges that never open on them
    exchange_calendars    as far as the package knows; built with explicit bounds, as its defaults are frozen at import
    trade dates           a list that a source publishes (the dataset ``calendar``), up to its last date
    reference index       past days: a bar says open, no bar but a later bar says closed
    otherwise             unknown: weekdays count as sessions that nobody vouches for

A past session that the package or the list calls open, and for which the index was asked and has no bar although it has a
later one, is *disputed*: nothing is concluded from its silence. Without a calendar every day is a session of 24 hours, UTC.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

import exchange_calendars
import numpy as np

from fletching_schemas.errors import InvalidRequest, OutOfCalendar
from fletching_server.calendars import MICROS_A_DAY, Calendar, Days, Flags, Hours, day_number, from_day_number
from fletching_server.clock import Clock

_HORIZON: Final = timedelta(days=366)
_EVERY_DAY_FROM: Final = date(1900, 1, 1)
_FIRST: Final = {"XSHG": date(1990, 12, 19)}
_DEFAULT_FIRST: Final = date(1970, 1, 1)  # what the package says of earlier years is not reliable
_HOUR: Final = 3_600_000_000

# Exchanges that the package lacks and that keep another one's sessions.
FOLLOWS: Final = {"XSHE": "XSHG", "BJSE": "XSHG", "XNAS": "XNYS", "CCFX": "XSHG"} | dict.fromkeys(
    ("XSGE", "XINE", "XDCE", "XZCE", "GFEX"), "XSHG"
)
# Chinese commodity futures: from 09:00 on, and from 21:00 of the evening before, but not on the eve of a holiday.
_NIGHTS: Final = frozenset({"XSGE", "XINE", "XDCE", "XZCE", "GFEX"})
# After the close until rows stop changing: closing auctions, trading at the close, late prints, settlement prices. Our judgement.
_SETTLE_MINUTES: Final = {"XNYS": 270, "XNAS": 270, "CMES": 120, **dict.fromkeys(_NIGHTS, 120), "CCFX": 120}
_DEFAULT_SETTLE_MINUTES: Final = 60


@dataclass(frozen=True)
class Rules:
    """What the settings say about one exchange: days to add and remove, and after how many minutes a session has settled."""

    add: frozenset[date] = frozenset()
    remove: frozenset[date] = frozenset()
    settle_minutes: float | None = None


@dataclass(frozen=True)
class Learned:
    """What the store's own data says about one exchange's days, as day numbers.

    ``listed``: a published list of sessions, complete up to its last. ``traded``: days with a bar of the reference index;
    ``silent``: past days for which it was asked and has none.
    """

    listed: frozenset[int] = frozenset()
    traded: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()


_NO_RULES: Final = Rules()
_NOTHING: Final = Learned()


class Calendars:
    """The calendars of one engine, built on first use, and again when the day changes or something is learned."""

    def __init__(self, clock: Clock, rules: Mapping[str, Rules] | None = None) -> None:
        self._clock = clock
        self._rules = dict(rules or {})
        self._lock = threading.Lock()
        self._learned: dict[str, Learned] = {}
        self._built: dict[str | None, tuple[date, Calendar]] = {}

    def get(self, mic: str | None) -> Calendar:
        """Return the calendar of *mic* (None: every day) as known today; ``InvalidRequest`` for an unknown MIC."""
        today = self._clock.now().date()
        held = self._built.get(mic)
        if held and held[0] == today:
            return held[1]
        with self._lock:  # construction takes 20-300 ms and touches shared caches of the package
            held = self._built.get(mic)
            if not held or held[0] != today:
                name = mic or ""
                calendar = build_calendar(mic, today, self._rules.get(name, _NO_RULES), self._learned.get(name, _NOTHING))
                held = self._built[mic] = (today, calendar)
        return held[1]

    def teach(self, mic: str, learned: Learned) -> bool:
        """Take what the store's data says about *mic*; returns whether that is news."""
        with self._lock:
            if self._learned.get(mic, _NOTHING) == learned:
                return False
            self._learned[mic] = learned
            self._built.pop(mic, None)
        return True

    def known_until(self) -> dict[str, date]:
        """Return the last known day of every exchange in use."""
        return {mic: calendar.known_until for mic, (_, calendar) in list(self._built.items()) if mic is not None}


def build_calendar(mic: str | None, today: date, rules: Rules = _NO_RULES, learned: Learned = _NOTHING) -> Calendar:
    """Return the calendar of *mic* as it is known on *today*, one year ahead."""
    if mic is None:
        return _every_day(today)
    name = FOLLOWS.get(mic, mic)
    if name not in exchange_calendars.get_calendar_names():
        raise InvalidRequest(f"there is no calendar {mic!r}; use a MIC such as XSHG, XHKG, XNYS, or none for every day")
    package = _package(name, today)
    days = _layered(package, today, rules, learned)
    hours = _hours(package, days.sessions)
    if mic in _NIGHTS:
        hours = _with_nights(hours, days.sessions)
    minutes = rules.settle_minutes if rules.settle_minutes is not None else _SETTLE_MINUTES.get(mic, _DEFAULT_SETTLE_MINUTES)
    return Calendar(
        mic,
        package.zone,
        days.sessions,
        hours.closes + int(minutes * 60_000_000),
        hours,
        days.known,
        days.known_until,
        overnight=bool((hours.opens < _local_midnights(package.zone, days.sessions)).any()),
        disputed=days.disputed,
    )


def _every_day(today: date) -> Calendar:
    days = np.arange(day_number(_EVERY_DAY_FROM), day_number(today + _HORIZON) + 1)
    midnight = (days + 1) * MICROS_A_DAY
    hours = Hours(days * MICROS_A_DAY, midnight, midnight, midnight)
    return Calendar(None, ZoneInfo("UTC"), days, midnight, hours, np.ones(len(days), bool), today + _HORIZON)


@dataclass(frozen=True)
class _Package:
    """What exchange_calendars says: days and hours as plain arrays."""

    zone: ZoneInfo
    days: Days
    hours: Hours
    known_until: date


@lru_cache(maxsize=64)
def _package(name: str, today: date) -> _Package:
    try:
        earliest, known_until = _bounds(name, today + _HORIZON)
        package = exchange_calendars.get_calendar(name, start=earliest.isoformat(), end=known_until.isoformat())
    except ValueError as error:  # it refuses a day before its first, or beyond what it can count
        raise OutOfCalendar(
            f"the calendar {name} has no sessions around {today}, which the clock says is today; it begins on "
            f"{_FIRST.get(name, _DEFAULT_FIRST)}: set the clock"
        ) from error
    days = package.sessions.to_numpy(dtype="datetime64[D]").astype(np.int64)
    opens, closes = _instants(package.opens), _instants(package.closes)
    starts, ends = (np.where(np.isnat(edge), closes, edge) for edge in map(_instants, (package.break_starts, package.break_ends)))
    hours = Hours(*(edge.astype(np.int64) for edge in (opens, starts, ends, closes)))
    return _Package(ZoneInfo(str(package.tz)), days, hours, known_until)


def _instants(column: Any) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    instants: np.ndarray[Any, np.dtype[np.datetime64]] = column.dt.tz_convert(None).to_numpy().astype("datetime64[us]")
    return instants


def _bounds(name: str, horizon: date) -> tuple[date, date]:
    """Return the first and last day to ask the package for: it refuses dates beyond what it knows."""
    small = exchange_calendars.get_calendar(name, start="2020-01-02", end="2020-02-28")
    low, high = small.bound_min(), small.bound_max()
    start = _FIRST.get(name, _DEFAULT_FIRST)
    return (max(start, low.date()) if low is not None else start), (min(horizon, high.date()) if high is not None else horizon)


@dataclass(frozen=True)
class _Layers:
    sessions: Days
    known: Flags
    known_until: date
    disputed: frozenset[int] = field(default=frozenset())


def _layered(package: _Package, today: date, rules: Rules, learned: Learned) -> _Layers:
    """Return the sessions that the layers agree on, and which of them somebody vouches for."""
    through = day_number(package.known_until)
    beyond = _weekdays(through + 1, day_number(today + _HORIZON))
    listed_through = max(learned.listed, default=through)
    traded_through = max(learned.traded, default=through)
    added, removed = ({day_number(day) for day in days} for days in (rules.add, rules.remove))
    sessions, known = set(package.days.tolist()), set(package.days.tolist())
    for day in beyond.tolist():
        if day <= listed_through:
            verdict: bool | None = day in learned.listed
        elif day in learned.traded or (day <= traded_through and day in learned.silent):
            verdict = day in learned.traded
        else:
            verdict = None
        if verdict is not False:
            sessions.add(day)
        if verdict:
            known.add(day)
    last_bar = max(learned.traded, default=-1)
    disputed = {day for day in learned.silent & known if day < last_bar} - added
    sessions, known = (sessions | added) - removed, ((known | added) - disputed) - removed
    unknown = [day for day in beyond.tolist() if day in sessions and day not in known]
    ordered = np.array(sorted(sessions), np.int64)
    until = from_day_number(unknown[0] - 1) if unknown else today + _HORIZON
    return _Layers(ordered, np.isin(ordered, list(known)), until, frozenset(disputed & sessions))


def _hours(package: _Package, sessions: Days) -> Hours:
    """Return the hours of *sessions*: the package's own, or those that a session near by has on the clock in UTC."""
    places = package.days.searchsorted(sessions).clip(max=len(package.days) - 1)
    shift = (sessions - package.days[places]) * MICROS_A_DAY
    found = (package.hours.opens, package.hours.break_starts, package.hours.break_ends, package.hours.closes)
    return Hours(*(edge[places] + shift for edge in found))


def _with_nights(hours: Hours, sessions: Days) -> Hours:
    """Return *hours* opening at 21:00 of the evening before, or at 09:00 after a holiday; Chinese time is UTC+8."""
    gap = np.diff(sessions, prepend=sessions[0] - 30)
    plain = (gap == 1) | ((gap == 3) & ((sessions + 3) % 7 == 0))  # the day before, or the weekend before a Monday
    evening = (sessions - gap) * MICROS_A_DAY + 13 * _HOUR
    return Hours(np.where(plain, evening, sessions * MICROS_A_DAY + _HOUR), hours.break_starts, hours.break_ends, hours.closes)


def _local_midnights(zone: ZoneInfo, sessions: Days) -> Days:
    """Return midnight at the exchange for each session, to the hour: enough to tell an evening from a morning."""
    last = from_day_number(int(sessions[-1]))
    offset = zone.utcoffset(datetime(last.year, last.month, last.day, 12))  # noqa: DTZ001  # the zone is asked for it
    return sessions * MICROS_A_DAY - int((offset or timedelta()) / timedelta(microseconds=1))


def _weekdays(first: int, last: int) -> Days:
    days = np.arange(first, last + 1)
    return days[(days + 3) % 7 < 5]  # 1970-01-01 was a Thursday: (0 + 3) % 7 = 3, counted from Monday

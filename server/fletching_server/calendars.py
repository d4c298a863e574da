"""Sessions: which days an exchange was, is or will be open, and when a session has settled.

Facts come from ``exchange_calendars``, built with explicit bounds (its defaults are frozen at import) and anew each day.
Beyond what the package knows, weekdays count as *unknown* sessions: readable, never final. Where a dataset has no
calendar, every day is a session of 24 hours in UTC.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import exchange_calendars
import numpy as np

from fletching_schemas.errors import InvalidRequest
from fletching_server.clock import Clock

Days = np.ndarray[tuple[int], np.dtype[np.int64]]

_HORIZON: Final = timedelta(days=366)
_QUARTER_HOUR: Final = 900  # seconds
_EVERY_DAY_FROM: Final = date(1900, 1, 1)
_FIRST: Final = {"XSHG": date(1990, 12, 19)}
_DEFAULT_FIRST: Final = date(1990, 1, 1)
# Exchanges that the package lacks and that keep another one's sessions.
_FOLLOWS: Final = {"XSHE": "XSHG", "BJSE": "XSHG", "XNAS": "XNYS"}
# After the close until rows stop changing: closing auctions, trading at the close, late prints. Our judgement.
_SETTLE: Final = {"XNYS": timedelta(hours=4, minutes=30)}
_DEFAULT_SETTLE: Final = timedelta(hours=1)


def day_number(day: date) -> int:
    """Return days since 1970-01-01: how dates are counted inside the engine."""
    return day.toordinal() - 719163


def from_day_number(number: int) -> date:
    """Return the date that ``day_number`` counted."""
    return date.fromordinal(number + 719163)


@dataclass(frozen=True)
class Calendar:
    """The sessions of one exchange: sorted days, and the instant at which each has settled.

    ``days`` are integers since 1970-01-01 (``day_number``), ``settled`` the matching microseconds since then in UTC.
    ``known_until`` is the last day about which the source of the calendar says anything. ``overnight``: a session opens
    on the evening before its date, as futures' do.
    """

    mic: str | None
    zone: ZoneInfo
    days: Days
    settled: Days
    known_until: date
    overnight: bool = False

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """The days once more: for one look-up, bisecting Python integers takes a tenth of what NumPy takes."""
        return tuple(self.days.tolist())

    @cached_property
    def first(self) -> date:
        """The first session there is."""
        return from_day_number(int(self.days[0]))

    @cached_property
    def first_number(self) -> int:
        """The first session there is, as a day number."""
        return int(self.days[0])

    @property
    def name(self) -> str:
        """The MIC, or a word for "every day"."""
        return self.mic or "every day"

    @cached_property
    def known_until_number(self) -> int:
        """``known_until`` as a day number."""
        return day_number(self.known_until)

    def snap(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the first and last session between two day numbers, inclusive; None where there is none."""
        low, high = bisect_left(self._numbers, first), bisect_right(self._numbers, last)
        return (self._numbers[low], self._numbers[high - 1]) if low < high else None

    def between(self, first: int, last: int) -> Days:
        """Return the sessions between two day numbers, inclusive."""
        return self.days[self.days.searchsorted(first) : self.days.searchsorted(last, "right")]

    def adjacent(self, last: int, first: int) -> bool:
        """Return whether no session lies strictly between two day numbers."""
        return bisect_right(self._numbers, last) >= bisect_left(self._numbers, first)

    def settled_through(self, instant: datetime) -> int:
        """Return the day number of the last session that has settled at *instant*, known to the calendar."""
        count = int(self.settled.searchsorted(_micros(instant), "right"))
        last = int(self.days[count - 1]) if count else int(self.days[0]) - 1
        return min(last, self.known_until_number)

    def today(self, instant: datetime) -> int:
        """Return the day number of *instant*'s date at the exchange."""
        return _local_day(self.zone, int(instant.timestamp()) // _QUARTER_HOUR)


@lru_cache(maxsize=256)
def _local_day(zone: ZoneInfo, quarter_hours: int) -> int:
    """Return the local day of an instant; every zone's midnight lies on a quarter of an hour, and every read asks."""
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=quarter_hours * _QUARTER_HOUR)
    return day_number(instant.astimezone(zone).date())


def _micros(instant: datetime) -> int:
    return int((instant - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


class Calendars:
    """The calendars of one engine, built on first use and again when the day changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
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
                held = self._built[mic] = (today, build_calendar(mic, today))
        return held[1]


def build_calendar(mic: str | None, today: date) -> Calendar:
    """Return the calendar of *mic* as it is known on *today*, one year ahead."""
    if mic is None:
        days = np.arange(day_number(_EVERY_DAY_FROM), day_number(today + _HORIZON) + 1)
        return Calendar(None, ZoneInfo("UTC"), days, (days + 1) * 86_400_000_000, today + _HORIZON)
    name = _FOLLOWS.get(mic, mic)
    if name not in exchange_calendars.get_calendar_names():
        raise InvalidRequest(f"there is no calendar {mic!r}; use a MIC such as XSHG, XHKG, XNYS, or none for every day")
    return _from_package(mic, name, today)


def _from_package(mic: str, name: str, today: date) -> Calendar:
    earliest, known_until = _bounds(name, today + _HORIZON)
    package = exchange_calendars.get_calendar(name, start=earliest.isoformat(), end=known_until.isoformat())
    days = package.sessions.to_numpy(dtype="datetime64[D]").astype(np.int64)
    closes = package.closes.to_numpy(dtype="datetime64[us]").astype(np.int64)
    opens = package.opens.dt.tz_convert(package.tz).dt.tz_localize(None).to_numpy(dtype="datetime64[D]").astype(np.int64)
    settle = int(_SETTLE.get(name, _DEFAULT_SETTLE) / timedelta(microseconds=1))
    beyond = _weekdays(known_until + timedelta(days=1), today + _HORIZON)
    usual = int(closes[-1] - days[-1] * 86_400_000_000)
    return Calendar(
        mic,
        ZoneInfo(str(package.tz)),
        np.concatenate([days, beyond]),
        np.concatenate([closes, beyond * 86_400_000_000 + usual]) + settle,
        known_until,
        overnight=bool((opens < days).any()),
    )


def _bounds(name: str, horizon: date) -> tuple[date, date]:
    """Return the first and last day to ask the package for: it refuses dates beyond what it knows."""
    small = exchange_calendars.get_calendar(name, start="2020-01-02", end="2020-02-28")
    low, high = small.bound_min(), small.bound_max()
    start = _FIRST.get(name, _DEFAULT_FIRST)
    return (max(start, low.date()) if low is not None else start), (min(horizon, high.date()) if high is not None else horizon)


def _weekdays(first: date, last: date) -> Days:
    days = np.arange(day_number(first), day_number(last) + 1)
    return days[(days + 3) % 7 < 5]  # 1970-01-01 was a Thursday: (0 + 3) % 7 = 3, counted from Monday

"""Sessions: which days an exchange was, is or will be open, when a session opens, and when it has settled. Pure.

A day is *open*, *closed* or *unknown*. Where nobody knows yet, weekdays count as sessions of unknown standing: they can be
read and filled, but nothing about them is final and nothing is called empty. ``almanac`` builds these and keeps them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

import numpy as np

Days = np.ndarray[tuple[int], np.dtype[np.int64]]
Numbers = Days | np.ndarray[tuple[int], np.dtype[np.int32]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Standing = Literal["open", "closed", "unknown"]

MICROS_A_DAY: Final = 86_400_000_000
_QUARTER_HOUR: Final = 900  # seconds
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def day_number(day: date) -> int:
    """Return days since 1970-01-01: how dates are counted inside the engine."""
    return day.toordinal() - 719163


def from_day_number(number: int) -> date:
    """Return the date that ``day_number`` counted."""
    return date.fromordinal(number + 719163)


def micros(instant: datetime) -> int:
    """Return microseconds since 1970 in UTC."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, eq=False)
class Hours:
    """When each session trades, in microseconds since 1970, UTC; a session without a break has both its ends at the close."""

    opens: Days
    break_starts: Days
    break_ends: Days
    closes: Days


@dataclass(frozen=True, eq=False)
class Calendar:
    """The sessions of one exchange: sorted days, their hours, and the instant at which each has settled.

    ``days`` are integers since 1970-01-01 (``day_number``), ``settled`` the matching microseconds since then in UTC.
    ``known`` says which of them are vouched for; the others are weekdays of which nobody has said anything yet, or days
    that are *disputed*: the calendar says open, the reference index has no bar. ``known_until`` is the last day before the
    first weekday that nobody knows. ``overnight``: sessions open on the evening before their date, as futures' do.
    """

    mic: str | None
    zone: ZoneInfo
    days: Days
    settled: Days
    hours: Hours
    known: Flags
    known_until: date
    overnight: bool = False
    disputed: frozenset[int] = field(default=frozenset())

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """The days once more: for one look-up, bisecting Python integers takes a tenth of what NumPy takes."""
        return tuple(self.days.tolist())

    @cached_property
    def _settled(self) -> tuple[int, ...]:
        return tuple(self.settled.tolist())

    @cached_property
    def _opens(self) -> tuple[int, ...]:
        return tuple(self.hours.opens.tolist())

    @cached_property
    def first(self) -> date:
        """The first session there is."""
        return from_day_number(self.first_number)

    @cached_property
    def first_number(self) -> int:
        """The first session there is, as a day number."""
        return int(self.days[0])

    @property
    def known_until_number(self) -> int:
        """``known_until`` as a day number."""
        return day_number(self.known_until)

    @property
    def name(self) -> str:
        """The MIC, or a word for "every day"."""
        return self.mic or "every day"

    def standing(self, day: date) -> Standing:
        """Return whether the exchange was, is or will be open on *day*, as far as anybody knows."""
        number = day_number(day)
        place = bisect_left(self._numbers, number)
        if place < len(self._numbers) and self._numbers[place] == number:
            return "open" if self.known[place] else "unknown"
        return "closed" if self._numbers[0] <= number <= self._numbers[-1] else "unknown"

    @cached_property
    def _ordinals(self) -> Days:
        """How many sessions lie before each day, from the first session to the day after the last: a table, not a search."""
        return self.days.searchsorted(np.arange(self._numbers[0], self._numbers[-1] + 2))

    def ordinal(self, day: int) -> int:
        """Return how many sessions there are up to *day*."""
        return bisect_right(self._numbers, day)

    def at_or_after(self, days: Numbers) -> Days:
        """Return the ordinal of the first session at or after each day; one past the last where there is none."""
        return np.asarray(self._ordinals[(days - self._numbers[0]).clip(0, len(self._ordinals) - 1)])

    def at_or_before(self, days: Numbers) -> Days:
        """Return the ordinal of the last session at or before each day; -1 where there is none."""
        return np.asarray(self._ordinals[(days + 1 - self._numbers[0]).clip(0, len(self._ordinals) - 1)] - 1)

    def snap(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the first and last session between two day numbers, inclusive; None where there is none."""
        low, high = bisect_left(self._numbers, first), bisect_right(self._numbers, last)
        return (self._numbers[low], self._numbers[high - 1]) if low < high else None

    def between(self, first: int, last: int) -> Days:
        """Return the sessions between two day numbers, inclusive."""
        return self.days[self.days.searchsorted(first) : self.days.searchsorted(last, "right")]

    def knows(self, sessions: Days) -> Flags:
        """Return for each of *sessions* (days of this calendar) whether it is vouched for."""
        return self.known[self.days.searchsorted(sessions)]

    def closed(self, days: Numbers) -> Flags:
        """Return for each day number whether the exchange is known to have been closed; days outside of what there is count."""
        places = self.days.searchsorted(days).clip(max=len(self.days) - 1)
        return np.asarray(self.days[places] != days)

    def adjacent(self, last: int, first: int) -> bool:
        """Return whether no session lies strictly between two day numbers."""
        return bisect_right(self._numbers, last) >= bisect_left(self._numbers, first)

    def back(self, day: int, sessions: int) -> int:
        """Return the session that is *sessions* - 1 before the last one up to *day*: the first of the last so many."""
        return self._numbers[max(0, bisect_right(self._numbers, day) - sessions)]

    def settled_through(self, instant: datetime) -> int:
        """Return the day number of the last session that has settled at *instant*; where none has, the day before the first."""
        count = bisect_right(self._settled, micros(instant))
        return self._numbers[count - 1] if count else self._numbers[0] - 1

    def settled_at(self, instant: datetime) -> float:
        """Return when the last session that has settled at *instant* did so, in seconds since 1970."""
        count = bisect_right(self._settled, micros(instant))
        return self._settled[count - 1] / 1e6 if count else float("-inf")

    def opened_through(self, instant: datetime) -> int:
        """Return the day number of the last session that has opened at *instant*, the day before the first where none has."""
        count = bisect_right(self._opens, micros(instant))
        return self._numbers[count - 1] if count else self._numbers[0] - 1

    def opens_next(self, instant: datetime) -> float:
        """Return when the next session opens, in seconds since 1970."""
        count = bisect_right(self._opens, micros(instant))
        return self._opens[count] / 1e6 if count < len(self._opens) else float("inf")

    def today(self, instant: datetime) -> int:
        """Return the day number of *instant*'s date at the exchange."""
        return _local_day(self.zone, int(instant.timestamp()) // _QUARTER_HOUR)

    def half_days(self, first: int, last: int) -> list[date]:
        """Return the sessions between two day numbers that are shorter than the longest of the year around them."""
        hours = self.hours
        minutes = (hours.break_starts - hours.opens) + (hours.closes - hours.break_ends)
        low, high = self.days.searchsorted(first), self.days.searchsorted(last, "right")
        around = minutes[max(0, low - 250) : high + 250]
        usual = np.median(around) if len(around) else 0
        return [from_day_number(int(day)) for day in self.days[low:high][minutes[low:high] < usual]]

    def bar_ends(self, session: date, minutes: int) -> Days:
        """Return the label (END, microseconds UTC) of each bar of *minutes* in *session*; empty where it is no session.

        Bars are counted inside each segment of the session, so the last one before a break or the close may be shorter.
        """
        place = bisect_left(self._numbers, day_number(session))
        if place >= len(self._numbers) or self._numbers[place] != day_number(session):
            return np.empty(0, np.int64)
        edges = (self.hours.opens, self.hours.break_starts, self.hours.break_ends, self.hours.closes)
        opened, rest, resumed, closed = (int(edge[place]) for edge in edges)
        step = minutes * 60_000_000
        parts = [
            np.append(np.arange(low + step, high, step), high) for low, high in ((opened, rest), (resumed, closed)) if low < high
        ]
        return np.concatenate(parts)


@lru_cache(maxsize=256)
def _local_day(zone: ZoneInfo, quarter_hours: int) -> int:
    """Return the local day of an instant; every zone's midnight lies on a quarter of an hour, and every read asks."""
    instant = _EPOCH + timedelta(seconds=quarter_hours * _QUARTER_HOUR)
    return day_number(instant.astimezone(zone).date())

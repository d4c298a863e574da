"""The exchange's day as people live it: which session it is, which part of it, and what kind of day. Pure.

Habits follow the exchange and not the clock: the half hour before the open on the first session after a holiday is the same
moment in March and in October. Sessions are counted, so "yesterday's bars" is the offset -1 across any weekend.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from fletching_server.calendars import Calendar, day_number, from_day_number

_DAY: Final = 86_400.0
_BEFORE_OPEN: Final = 2.5 * 3600.0  # desks come in
_HOUR: Final = 3600.0
_AFTER_CLOSE: Final = 3 * 3600.0


class Slot(IntEnum):
    """A part of the exchange's day; ANY is the whole of it, CLOSED a date without a session."""

    ANY = -1
    OVERNIGHT = 0
    PRE_OPEN = 1
    FIRST_HOUR = 2
    MIDDAY = 3
    LAST_HOUR = 4
    POST_CLOSE = 5
    EVENING = 6
    CLOSED = 7

    @property
    def label(self) -> str:
        """The name, for people."""
        return self.name.lower().replace("_", "-")


class DayType(IntEnum):
    """What kind of day a session is: ALL, a weekday (0 is Monday), or one of the special ones."""

    ALL = -1
    AFTER_GAP = 7
    HALF_DAY = 8
    MONTH_END = 9
    EXPIRY = 10


class Moment(NamedTuple):
    """A session, by its number in the agenda, and a part of it."""

    session: int
    slot: Slot


@dataclass(frozen=True)
class Agenda:
    """Sessions by number, with the instants that cut their days, in seconds since 1970 (UTC).

    ``days`` are sorted day numbers, ``midnights`` when each date begins where the exchange is, ``settled`` when the rows of
    each session can be had, ``short`` the numbers of half days.
    """

    days: tuple[int, ...]
    midnights: tuple[float, ...]
    opens: tuple[float, ...]
    closes: tuple[float, ...]
    settled: tuple[float, ...]
    short: frozenset[int] = frozenset()

    def number(self, day: int) -> int:
        """Return the number of the session on *day*, or of the last one before it; -1 before the first."""
        return bisect_right(self.days, day) - 1

    def is_session(self, day: int) -> bool:
        """Return whether there is a session on *day*."""
        place = bisect_left(self.days, day)
        return place < len(self.days) and self.days[place] == day

    def present(self, at: float) -> int:
        """Return the number of the session on the exchange's date at the instant *at*, or of the last one before it."""
        return max(0, bisect_right(self.midnights, at) - 1)

    def moment(self, at: float) -> Moment:
        """Return the session and its part at the instant *at*."""
        session = self.present(at)
        return Moment(session, Slot(bisect_right(self._cuts(session), at) - 1) if at >= self.midnights[0] else Slot.OVERNIGHT)

    def starts(self, session: int) -> tuple[float, ...]:
        """Return when each slot of *session* begins, by slot; CLOSED is what follows its date until the next."""
        return self._cuts(session)

    def _cuts(self, session: int) -> tuple[float, ...]:
        found = self._cut_by_session.get(session)
        if found is None:
            found = self._cut_by_session[session] = self._cut(session)
        return found

    @cached_property
    def _cut_by_session(self) -> dict[int, tuple[float, ...]]:
        return {}

    def _cut(self, session: int) -> tuple[float, ...]:
        midnight, opens, closes = self.midnights[session], self.opens[session], self.closes[session]
        hour = min(_HOUR, (closes - opens) / 4)  # of a half day too, the first and the last hour leave something between them
        cuts = [midnight, opens - _BEFORE_OPEN, opens, opens + hour, closes - hour, closes, closes + _AFTER_CLOSE]
        ends = midnight + _DAY
        return (*(min(max(cut, midnight), ends) for cut in cuts), ends)

    def day_types(self, session: int) -> tuple[int, ...]:
        """Return what kinds of day *session* is, the most special first; every day is one of ALL."""
        found = self._types_by_session.get(session)
        if found is None:
            found = self._types_by_session[session] = self._types(session)
        return found

    @cached_property
    def _types_by_session(self) -> dict[int, tuple[int, ...]]:
        return {}

    def _types(self, session: int) -> tuple[int, ...]:
        day = from_day_number(self.days[session])
        special = self._special(session, day)
        return (*special, day.weekday(), int(DayType.ALL))

    def _special(self, session: int, day: date) -> tuple[int, ...]:
        if session in self.short:
            return (int(DayType.HALF_DAY),)
        if session and self.days[session] - self.days[session - 1] > (3 if day.weekday() == 0 else 1):
            return (int(DayType.AFTER_GAP),)
        if session + 1 < len(self.days) and from_day_number(self.days[session + 1]).month != day.month:
            return (int(DayType.MONTH_END),)
        if day.weekday() == 4 and 15 <= day.day <= 21:  # the third Friday, when listed derivatives expire
            return (int(DayType.EXPIRY),)
        return ()


def of_calendar(calendar: Calendar, first: date, last: date) -> Agenda:
    """Return the agenda of an exchange for the sessions from *first* to *last*."""
    low, high = day_number(first), day_number(last)
    places = [place for place, day in enumerate(calendar.days.tolist()) if low <= day <= high]
    days = tuple(int(calendar.days[place]) for place in places)
    short = {day_number(day) for day in calendar.half_days(low, high)}
    return Agenda(
        days,
        tuple(_midnight(day, calendar.zone) for day in days),
        tuple(calendar.hours.opens[place] / 1e6 for place in places),
        tuple(calendar.hours.closes[place] / 1e6 for place in places),
        tuple(calendar.settled[place] / 1e6 for place in places),
        frozenset(number for number, day in enumerate(days) if day in short),
    )


def of_days(days: Sequence[int], zone: ZoneInfo, opens: time, closes: time, settle: timedelta) -> Agenda:
    """Return an agenda with the same hours on each of *days*, for whoever has sessions and no exchange."""
    midnights = tuple(_midnight(day, zone) for day in days)
    after = [_seconds(clock) for clock in (opens, closes)]
    opened, closed = (tuple(midnight + seconds for midnight in midnights) for seconds in after)
    return Agenda(tuple(days), midnights, opened, closed, tuple(close + settle.total_seconds() for close in closed))


def _midnight(day: int, zone: ZoneInfo) -> float:
    return datetime.combine(from_day_number(day), time(), zone).timestamp()


def _seconds(clock: time) -> float:
    return clock.hour * 3600.0 + clock.minute * 60.0 + clock.second

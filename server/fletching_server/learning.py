"""What the warmer has learned: the habits of every exchange's readers, rebuilt from the access log at the start.

Reads arrive in batches from the access log's thread and wait here until the warmer takes them; so only one thread touches the
habits, and nobody who reads ever waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import structlog

from fletching_server.access import AccessEvent
from fletching_server.access_log import AccessLog
from fletching_server.agenda import Agenda, of_calendar
from fletching_server.almanac import Calendars
from fletching_server.calendars import Calendar, from_day_number
from fletching_server.clock import Clock
from fletching_server.habits import Habits, Wanted
from fletching_server.store import Store

log = structlog.get_logger(__name__)

LEARNED_DAYS: Final = 60  # of the log, at the start: a read of 40 sessions ago weighs a thirtieth
_BEFORE_DAYS: Final = 120  # the agenda begins so long before the first of them, for reads of the past
_AHEAD_DAYS: Final = 300
_LEAST_AHEAD: Final = 20  # sessions: with fewer to come a new agenda is made
_MOST_WAITING: Final = 200_000  # events
_AT_ONCE: Final = 500  # events, after which others may have the processor

Mic = str | None


class Urgent(NamedTuple):
    """What a read made likely at once, on which exchange, and when that was."""

    mic: Mic
    wanted: Wanted
    at: float


class Learning:
    """The habits by exchange; ``take`` is for one thread, ``hear`` for any."""

    def __init__(self, access: AccessLog, store: Store, calendars: Calendars, clock: Clock) -> None:
        self._access, self._store, self._calendars, self._clock = access, store, calendars, clock
        self._waiting: deque[AccessEvent] = deque(maxlen=_MOST_WAITING)
        self.habits: dict[Mic, Habits] = {}
        self._built_on: dict[Mic, Calendar] = {}
        self._learned = False

    def hear(self, events: Sequence[AccessEvent]) -> None:
        """Take down reads that ended; returns at once."""
        self._waiting.extend(events)

    def begin_anew(self) -> None:
        """Forget everything; the next look reads the log again, by the time that it is then."""
        self._learned = False

    def take(self, closing: threading.Event) -> list[Urgent]:
        """Learn from all that was heard, and return what it makes likely at once.

        The first time, and after a calendar has changed, the log is read again.
        """
        if not self._learned or self._outdated():
            self._rebuild(closing)
        found = []
        while self._waiting:
            event = self._waiting.popleft()
            found += [Urgent(mic, wanted, event.at) for mic, wanted in self._note(event)]
        return found

    def _outdated(self) -> bool:
        """Return whether some agenda is not that of its calendar any more, or time has left it."""
        return any(self._is_outdated(mic, habits.agenda) for mic, habits in self.habits.items())

    def _is_outdated(self, mic: Mic, agenda: Agenda) -> bool:
        now = self._clock.now().timestamp()
        left = len(agenda.days) - agenda.present(now)
        if left < _LEAST_AHEAD or now < agenda.midnights[0]:
            return True
        if self._built_on.get(mic) is self._calendars.get(mic):
            return False
        return self._agenda(mic, agenda) != agenda  # a calendar is built anew every day, mostly as it was

    def _agenda(self, mic: Mic, known: Agenda | None = None) -> Agenda:
        """Return the sessions of *mic* as they are known now; the same ones as *known* has, where that is given."""
        today = self._clock.now().date()
        first, last = today - timedelta(days=LEARNED_DAYS + _BEFORE_DAYS), today + timedelta(days=_AHEAD_DAYS)
        if known is not None:
            first, last = (from_day_number(day) for day in (known.days[0], known.days[-1]))
        calendar = self._built_on[mic] = self._calendars.get(mic)
        return of_calendar(calendar, first, last)

    def _rebuild(self, closing: threading.Event) -> None:
        """Read the log of the last weeks; what cannot be read was skipped by it, with a line. What fails is tried again."""
        self.habits = {}
        since = self._clock.now().date() - timedelta(days=LEARNED_DAYS)
        count, began = 0, self._clock.monotonic()
        for event in self._access.events(since):
            self._note(event, past=True)
            count += 1
            if count % _AT_ONCE == 0 and closing.wait(0.001):
                return
        self._learned = True
        if count:
            log.info("habits learned from the access log", reads=count, seconds=round(self._clock.monotonic() - began, 2))

    def _note(self, event: AccessEvent, *, past: bool = False) -> list[tuple[Mic, Wanted]]:
        """Learn from one read; from one of the *past* also what was predicted then, and came or not."""
        state = self._store.catalogue.state(event.dataset)
        if state is None:
            return []
        mic = state.dataset.calendar
        habits = self.habits.get(mic)
        if habits is None:
            habits = self.habits[mic] = Habits(self._agenda(mic))
        if past:
            session = habits.agenda.present(event.at)
            habits.came(session)
            habits.say(session)
        return [(mic, wanted) for wanted in habits.note(event, table=state.is_table)]

    def leading(self) -> Mic:
        """Return the exchange that is read most; None, where all that is read has no calendar, or nothing is."""
        return max(self.habits, key=lambda mic: (mic is not None, len(self.habits[mic].predictor), mic or ""), default=None)

    def members(self, group: str) -> tuple[str, ...]:
        """Return the symbols of *group*, which may take a look at the disk."""
        return self._access.members(group)

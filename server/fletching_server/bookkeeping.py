"""The warmer's books: predictions held against what came, allowances begun, the sums of a session closed when it is over.

One exchange leads, the one whose readers are known best: sessions of others begin and end in the middle of its day.
"""

from __future__ import annotations

from collections import Counter

from fletching_server.agenda import Slot
from fletching_server.allowance import Allowance
from fletching_server.clock import Clock
from fletching_server.hot import HotTier
from fletching_server.learning import Learning, Mic
from fletching_server.tracking import Tracking


class Bookkeeping:
    """The books of one warmer; ``keep`` brings them up to date."""

    def __init__(self, learning: Learning, tracking: Tracking, allowance: Allowance, hot: HotTier, clock: Clock) -> None:
        self._learning, self._tracking, self._allowance = learning, tracking, allowance
        self._hot, self._clock = hot, clock
        self._lead: Mic = None
        self._session: int | None = None  # the leader's present one, as a day number, when the books were kept last
        self._base = Counter[bool]()

    def keep(self) -> None:
        """Score what was predicted, begin new allowances, and close the sums of a session that is over."""
        at = self._clock.now().timestamp()
        for habits in self._learning.habits.values():
            session = habits.agenda.present(at)
            for chance, came in habits.came(session):
                self._tracking.predicted(chance, self._base_rate(), happened=came)
                self._base[came] += 1
            habits.say(session)
        self._tracking.expire(at)
        self._follow_the_lead(at)

    def _follow_the_lead(self, at: float) -> None:
        habits = self._learning.habits
        if self._lead not in habits or (self._lead is None and len(habits) > 1):
            self._lead, self._session = self._learning.leading(), None
        if not habits:
            return
        day, slot = self._led(at)
        if self._session is not None and self._session < day:
            self._allowance.learn(self._tracking.session_ended())
            self._hot.day_ended()
            self._lead = self._learning.leading()
            day, slot = self._led(at)
        self._session = day
        self._allowance.at(day, slot)

    def _led(self, at: float) -> tuple[int, Slot]:
        agenda = self._learning.habits[self._lead].agenda
        session, slot = agenda.moment(at)
        return agenda.days[session], slot

    def _base_rate(self) -> float:
        return (self._base[True] + 1) / (self._base[True] + self._base[False] + 2)

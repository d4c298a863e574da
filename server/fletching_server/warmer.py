"""The warmer: learns who reads what when, and has it ready before they ask, in the background and within bounds.

It looks at the moments that matter (``schedule``): when the rows of a session can be had, before people come in, before other
parts of the exchange's day, after a start, and every few minutes. In two steps: what is missing for the next session is fetched
to disk early; what is likely read today is brought into memory. Each item by the rule of ``worth``. Between items, and between
files, it lets people go first; in upstream's turns they do anyway. An upstream that fails rests, longer each time; nothing here
makes anybody wait, and it may be killed at any moment: what it knows is in the access log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import structlog

from fletching_schemas.errors import Error, SourceError
from fletching_server.agenda import Slot
from fletching_server.allowance import Allowance, Limits
from fletching_server.almanac import Calendars
from fletching_server.background import Background
from fletching_server.bookkeeping import Bookkeeping
from fletching_server.clock import Clock
from fletching_server.decisions import Decision, Offer, decided, name_of
from fletching_server.desk import Desk
from fletching_server.foresight import Foresight
from fletching_server.habits import RUNS, Habits, Wanted
from fletching_server.hot import HotTier
from fletching_server.judging import is_withheld
from fletching_server.learning import Learning, Mic, Urgent
from fletching_server.occasions import LOOK_SECONDS, occasions, rest_seconds
from fletching_server.reads import Reads
from fletching_server.resting import MOST_SECONDS, Resting
from fletching_server.settings import Settings
from fletching_server.stats import Stats
from fletching_server.store import Store
from fletching_server.tracking import Tracking
from fletching_server.warming import Task, Warming
from fletching_server.worth import KAPPA_NIGHT, Rule

log = structlog.get_logger(__name__)

FIRST_SECONDS: Final = 5.0  # a start belongs to readers
LULL_SECONDS: Final = 0.2
_SOON_SECONDS: Final = 0.25  # between looks at the clock: it may be set, the machine may sleep
_MOST_OFFERS: Final = 500  # per look; a plan for each takes up to some milliseconds
_MOST_URGENT: Final = 64  # of what reads make likely at once, per look: the newest
_URGENT_SECONDS: Final = 600.0  # what is likely at once is good for so long
_MOST_WAITING: Final = 4096  # of that, until the next look
_FOLDED_SECONDS: Final = 15.0  # at least, between looks because of commits: our own fills are some
_YIELD_SECONDS: Final = 0.02
_MOST_YIELDS: Final = 50  # a second: on a server that never rests the background would never have its turn
_JUMP_SECONDS: Final = 60.0


class Warmer:
    """The automatic warmer of one engine."""

    def __init__(
        self,
        learning: Learning,
        warming: Warming,
        tracking: Tracking,
        reads: Reads,
        hot: HotTier,
        store: Store,
        desk: Desk,
        calendars: Calendars,
        clock: Clock,
        stats: Stats,
        settings: Settings,
    ) -> None:
        self._learning, self._warming, self._tracking, self._reads = learning, warming, tracking, reads
        self._hot, self._store, self._desk, self._calendars = hot, store, desk, calendars
        self._clock, self._stats, self.on = clock, stats, settings.warm
        self._foresight = Foresight(hot, store, warming, learning, calendars, clock)
        self.rule = Rule(min_confidence=settings.min_confidence)
        self._allowance = Allowance(Limits(settings.warm_seconds, settings.warm_calls, int(settings.warm_bytes)))
        self._width, self._behind = settings.source_calls, min(settings.warm_calls_at_once, max(1, settings.source_calls - 1))
        self._held_out = settings.warm_held_out
        self._salt, self._logged = settings.store.name, settings.access_log
        self._deciding = threading.Lock()  # the habits are looked at by this thread, and by whoever wants an explanation
        self._resting = Resting(desk, clock)
        self._books = Bookkeeping(learning, tracking, self._allowance, hot, clock)
        self._failed: dict[str, float] = {}  # tasks that failed, and until when they are left alone
        self._next_look, self._offset = 0.0, self._clock_offset()
        self._urgents: list[Urgent] = []  # what is likely at once, and no look has acted on yet
        self._folded, self._folded_look = False, float("-inf")  # whether commits ask for a look, and when they had one last
        self.background = Background("warmer", self.work, FIRST_SECONDS, LULL_SECONDS)

    # Hearing and looking

    def hear(self, events: Any) -> None:
        """Take down reads that have ended, for the next look; returns at once."""
        self._tracking.heard(events)
        if self.on:
            self._learning.hear(events)
            self.background.wake()

    def committed(self, dataset: str) -> None:
        """Look again soon where files that were loaded for somebody may have been folded into others; returns at once."""
        if any(mark.memory for mark in self._tracking.marks.get(dataset, ())):
            self._folded = True

    def work(self) -> float:
        """Learn, look ahead where that is due, act; return after how many seconds to look again."""
        with self._deciding:
            self._mind_the_clock()
            urgent = self._heard()
            self._urgents = []
            due = self._is_due()
            if due:
                self._books.keep()
            decisions = [*self._decisions(self._urgent(urgent)), *(self._looked() if due else ())]
        for decision in decisions:
            if decision.is_withheld:
                self._withhold(decision.offer)
        finished = self._act([decision.offer for decision in decisions if not decision.against])
        if due and finished:
            self._next_look = self._clock.monotonic() + self._rest_seconds()
        return _SOON_SECONDS  # not until the next look: the clock may be set, or the machine may sleep

    def _is_due(self) -> bool:
        """Return whether it is time for a look; one that commits made due is taken now, and what they say from here on waits."""
        now = self._clock.monotonic()
        folded = self._folded and now >= self._folded_look + _FOLDED_SECONDS
        if folded:
            self._folded, self._folded_look = False, now  # before the look: a commit that comes meanwhile makes another one due
        return folded or now >= self._next_look

    def _heard(self) -> list[Urgent]:
        """Learn, and return what is likely at once and has not been acted on."""
        self._urgents = [*self._urgents, *self._learning.take(self.background.closing)][-_MOST_WAITING:]
        return self._urgents

    def _rest_seconds(self) -> float:
        now = self._clock.now().timestamp()
        rests = [rest_seconds(habits.agenda, now) for habits in self._learning.habits.values()]
        return min(rests, default=LOOK_SECONDS)

    def _mind_the_clock(self) -> None:
        offset = self._clock_offset()
        if abs(jump := offset - self._offset) > _JUMP_SECONDS:
            log.warning("the clock has jumped; the warmer looks again by the time that it tells", seconds=round(jump))
            self._next_look = 0.0
            self._learning.begin_anew()
        self._offset = offset

    def _clock_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    # What is expected

    def _expected(self) -> Iterator[tuple[Mic, Habits, Wanted, float, bool]]:
        """Yield what is expected by the looks that are due: what to load for today, what to fetch for the next session."""
        at = self._clock.now().timestamp()
        for mic, habits in self._learning.habits.items():
            for session, slots, memory, until in occasions(habits.agenda, at):
                if memory and slots[0] == Slot.ANY:
                    self._foresight.tell(mic, habits, session)
                for wanted in habits.expected(session, slots):
                    yield mic, habits, wanted, until, memory

    def _urgent(self, urgent: list[Urgent]) -> Iterator[tuple[Mic, Habits, Wanted, float, bool]]:
        now, known = self._clock.now().timestamp(), self._learning.habits
        fresh = (each for each in urgent if now - each.at < _URGENT_SECONDS and each.mic in known)
        latest = {(mic, wanted.key): (mic, wanted, at) for mic, wanted, at in fresh}
        likely = [each for each in latest.values() if not self.rule.hopeless(each[1].chance, each[1].weight)]
        for mic, wanted, at in likely[-_MOST_URGENT:]:
            yield mic, self._learning.habits[mic], wanted, at + _URGENT_SECONDS, True

    # Deciding

    def _looked(self, *, hopeless: bool = False) -> list[Decision]:
        """Return the decisions about all that is expected; *hopeless*: also about what is too unlikely to pay, whatever it is."""
        likely = [
            each for each in self._expected() if hopeless or not self._rule(each[4]).hopeless(each[2].chance, each[2].weight)
        ]
        return self._decisions(iter(likely))

    def _rule(self, memory: bool) -> Rule:
        """Return the rule; what is only fetched is fetched when nobody is there who could be in its way."""
        return self.rule if memory else replace(self.rule, kappa=min(self.rule.kappa, KAPPA_NIGHT))

    def _decisions(self, expected: Iterator[tuple[Mic, Habits, Wanted, float, bool]]) -> list[Decision]:
        ranked = sorted(expected, key=lambda each: (-each[2].chance * each[2].weight, each[2].key.dataset, each[2].key.bucket))
        offers: dict[tuple[str, bool], Offer] = {}
        for mic, habits, wanted, until, memory in ranked[: _MOST_OFFERS * 4]:
            if len(offers) >= _MOST_OFFERS:
                break
            offer = self._offer(mic, habits, wanted, until, memory=memory)
            if offer is not None:
                offers.setdefault((offer.task.name, memory), offer)  # the likeliest of equal ones
        return decided(
            offers.values(),
            self._rule,
            self._allowance,
            is_off=self._tracking.off,
            is_withheld=self._is_withheld,
            rests=lambda offer: self._resting.why(offer.task.request.dataset),
        )

    def _offer(self, mic: Mic, habits: Habits, wanted: Wanted, until: float, *, memory: bool) -> Offer | None:
        """Return what *wanted* would take; None where it is all there, cannot be had yet, or failed a moment ago."""
        calendar = self._calendars.get(mic)
        settled = calendar.settled_through(self._clock.now())
        request = habits.request(wanted, calendar, settled, self._learning.members)
        if request is None or self._store.catalogue.state(wanted.key.dataset) is None:
            return None
        name = name_of(wanted, request.end)
        if self._failed.get(name, 0.0) > self._clock.monotonic():
            return None
        try:
            estimate = self._warming.estimate(request)
        except Error:  # a symbol that is known no more, a list that cannot be had: a read will tell who asks
            return None
        if not (estimate.needs.calls or (memory and estimate.absent_bytes)):
            return None
        task = Task(name, wanted.arm, request, memory, until, wanted.chance, ring=wanted.arm == RUNS)
        because = habits.because(wanted)
        offer = Offer(wanted, task, estimate, because, self._width, self._behind, last=habits.last(wanted))
        return self._weighed(offer) if memory and not task.ring else offer

    def _weighed(self, offer: Offer) -> Offer:
        leaving = self._hot.would_leave(offer.bytes)
        fits = leaving.enough and offer.estimate.needs.bytes <= self._hot.main_bytes
        return replace(offer, loses=leaving.seconds, leaving=leaving.lineages, fits=fits)

    def _is_withheld(self, offer: Offer) -> bool:
        session = offer.wanted.moment.session
        return is_withheld(self._salt, offer.task.name, session, self._held_out)

    # Acting

    def _withhold(self, offer: Offer) -> None:
        key = offer.wanted.key
        candidate = offer.candidate
        self._tracking.withhold(
            offer.task.name, (key.dataset, key.bucket, offer.last), offer.wanted.arm, candidate.fill_seconds, candidate.saves
        )

    def _act(self, offers: list[Offer]) -> bool:
        """Do what was decided; return whether all of it was done, or tried."""
        for offer in offers:
            if self.background.closing.is_set():
                return False
            against = offer.calls and self._resting.why(offer.task.request.dataset)
            if against or self._allowance.refusal(offer.seconds, offer.calls, offer.bytes):
                continue
            self._let_people_go_first()
            if self._still_pays(offer):
                self._do(offer)
        return True

    def _still_pays(self, offer: Offer) -> bool:
        """Return whether *offer* is worth what would leave for it now, after what was loaded since it was decided on."""
        if not offer.task.memory or offer.task.ring:
            return True
        weighed = self._weighed(offer)
        return weighed.fits and self.rule.pays(weighed.candidate)

    def _do(self, offer: Offer) -> None:
        began = self._clock.monotonic()
        log.info("warming", **Decision(offer, self._rule(offer.task.memory)).told())
        try:
            done = self._warming.do(offer.task, self._let_people_go_first)
        except SourceError as error:
            self._note_failure(offer.task.request.dataset, error)
            calls, size = offer.calls, 0
        except Error as error:
            self._failed[offer.task.name] = self._clock.monotonic() + MOST_SECONDS
            log.warning("something expected could not be made ready", what=offer.task.name, why=str(error))
            calls, size = 0, 0
        else:
            calls, size = done.upstream_calls, done.loaded_bytes
            self._stats.add(warm_tasks=1, warm_calls=calls, warm_rows=done.rows, warm_bytes=size)
            if done.failed:
                self._note_failure(offer.task.request.dataset, next(iter(done.failed.values())))
            elif calls:
                self._resting.answered(offer.task.request.dataset)
        seconds = max(0.0, self._clock.monotonic() - began)
        self._stats.add(warm_seconds=seconds)
        self._allowance.spend(seconds, calls, size)

    def _note_failure(self, dataset: str, error: Error) -> None:
        if not self.background.closing.is_set():  # else it is not the upstream that fails
            self._stats.add(warm_failures=1)
            self._resting.failed(dataset, error)

    def _let_people_go_first(self) -> bool:
        """Wait while reads are being answered, but not for ever; return whether to stop."""
        for _ in range(_MOST_YIELDS):
            if not self._reads.busy or self.background.closing.wait(_YIELD_SECONDS):
                break
        return self.background.closing.is_set()

    # Telling

    def explain(self) -> dict[str, Any]:
        """Return what would be done now, and why, in words and numbers; nothing is done."""
        with self._deciding:
            urgent = self._heard()  # and kept: the next look acts on it
            self._books.keep()
            decisions = [*self._decisions(self._urgent(urgent)), *self._looked(hopeless=True)]
        left = self._allowance.left()
        head = [
            "the warmer is on" if self.on else "the warmer is off (setting warm), and learns nothing",
            *([] if self._logged else ["the access log is off (setting access_log): there is nothing to learn from"]),
            f"left to this slot {left.seconds:,.0f} s, to this day {left.calls:,} upstream calls and {left.bytes / 1e6:,.0f} MB",
            *self._resting.told(),
            *(f"{arm} is switched off" for arm in sorted(self._tracking.judge.off)),
        ]
        words = [decision.words() for decision in decisions] or ["nothing that is expected is missing"]
        return {
            "on": self.on,
            "at": self._clock.now().isoformat(),
            "known_keys": sum(len(habits.predictor) for habits in self._learning.habits.values()),
            "left": {"seconds": left.seconds, "calls": left.calls, "bytes": left.bytes},
            "decisions": [decision.told() for decision in decisions],
            "words": [*head, *words],
        }

    def facts(self) -> dict[str, Any]:
        """Return the figures for ``stats``."""
        left = self._allowance.left()
        known = sum(len(habits.predictor) for habits in list(self._learning.habits.values()))
        told = {"warm_on": int(self.on), "warm_known_keys": known, "warm_resting_upstreams": len(self._resting)}
        return {**told, "warm_left_seconds": left.seconds, "warm_left_calls": left.calls, **self._tracking.facts()}

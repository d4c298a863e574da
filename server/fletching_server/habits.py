"""What is known of who asks for what on one exchange, and what follows for the hours ahead. Pure: events and instants in.

A read that is expected is a relative key (dataset, group of symbols, offset in sessions) with the *shape* that such a read had
last: which symbols, how many sessions. So it rolls forward by itself: who reads the week up to yesterday every morning is
expected to read the week up to today tomorrow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fletching_schemas import ReadRequest
from fletching_server.access import ALL, AccessEvent
from fletching_server.agenda import Agenda, Moment, Slot
from fletching_server.calendars import Calendar, from_day_number
from fletching_server.calibration import Calibration, Calibrations, Standing
from fletching_server.coaccess import CoAccess
from fletching_server.predictor import Predictor, RelativeKey
from fletching_server.sweeps import RunDetector, ahead
from fletching_server.touches import key_of
from fletching_server.worth import WEIGHTS

HABITS, RUNS, TOGETHER = "habits", "runs", "together"  # who says that something is expected
_MOST_SHAPES: Final = 20_000
_MOST_SEEN: Final = 50_000  # keys of one session, beside those that were predicted: as many as there are habits
_RUN_CHANCE: Final = 0.9  # that a reader who has come session by session goes on
_PARTNERS: Final = 8  # that are looked at after each read


class Shape(NamedTuple):
    """How something was asked for last: symbols (none: all, or too many to be told), sessions (None: from the first there is).

    It *rolls* where its end follows the present: it named none, or another one than on a session before. The same range day
    after day is a study of that range, and says nothing about the next.
    """

    symbols: tuple[str, ...]
    sessions: int | None
    last: int | None
    seen: int
    rolls: bool


@dataclass(frozen=True)
class Wanted:
    """A read that is expected: its key, in which session and slots, how likely, how much that matters, and who says so."""

    key: RelativeKey
    moment: Moment
    slots: tuple[Slot, ...]
    chance: float
    weight: float
    arm: str


@dataclass
class Habits:
    """The habits of one exchange's readers."""

    agenda: Agenda
    predictor: Predictor = field(init=False)
    calibration: Calibrations = field(default_factory=Calibrations)
    together: CoAccess = field(default_factory=CoAccess)
    across: CoAccess = field(default_factory=CoAccess)  # sessions of a group, by who was new to it
    pairs: Calibration = field(default_factory=Calibration)  # what a chance of being asked for together has meant
    runs: RunDetector = field(default_factory=RunDetector)
    shapes: OrderedDict[tuple[str, str], Shape] = field(default_factory=OrderedDict)
    _said: dict[int, dict[RelativeKey, tuple[float, Standing]]] = field(default_factory=dict)
    _latest: int = -1  # the session that was predicted last
    _seen: dict[int, set[RelativeKey]] = field(default_factory=dict)
    _paired: list[tuple[int, RelativeKey, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.predictor = Predictor(self.agenda)

    # Learning

    def note(self, event: AccessEvent, *, table: bool = False) -> list[Wanted]:
        """Take one read, and return what it makes likely at once: what is asked for together, and what a run comes to next."""
        key = self.key_of(event, table=table)
        if key is None:
            return []
        moment, weight = self.agenda.moment(event.at), WEIGHTS.get(event.profile, 1.0)
        self._take_shape(event, moment.session, table=table)
        newly = not self.predictor.knows(event.principal, key)
        self.predictor.note(event.principal, moment, key, weight)
        self._see(moment.session, key)
        following = self.together.following(key) if self.together.note(event.principal, event.at, key) else []
        if newly and key.offset is not None:
            following += self._other_sessions(event, key)
        return [*self._running(event, key, moment), *self._paired_with(following, moment, weight)]

    def _see(self, session: int, key: RelativeKey) -> None:
        """Take down that *key* was asked for in *session*; where there are too many, only if it was predicted."""
        seen = self._seen.setdefault(session, set())
        if len(seen) < _MOST_SEEN or key in self._said.get(session, ()):
            seen.add(key)

    def _other_sessions(self, event: AccessEvent, key: RelativeKey) -> list[tuple[RelativeKey, float]]:
        """Return the sessions that others who were new to a group asked for next: this reader is new to this one."""
        shape = key._replace(bucket=ALL)
        if not self.across.note(f"{event.principal}/{key.bucket}", event.at, shape):
            return []
        return [(key._replace(offset=other.offset), chance) for other, chance in self.across.following(shape)]

    def _paired_with(self, following: Sequence[tuple[RelativeKey, float]], moment: Moment, weight: float) -> Iterator[Wanted]:
        for other, raw in following[:_PARTNERS]:
            seen = self._seen[moment.session]  # which is whole only below its bound: beyond it nobody could tell what came
            if other not in seen and len(seen) < _MOST_SEEN and len(self._paired) < _MOST_SHAPES:
                self._paired.append((moment.session, other, raw))
            yield Wanted(other, moment, (moment.slot,), self.pairs(raw), weight, TOGETHER)

    def key_of(self, event: AccessEvent, *, table: bool = False) -> RelativeKey | None:
        """Return what *event* asked for, told from its own session; None where it says nothing about other days."""
        return key_of(event, self.agenda, table=table)

    def _take_shape(self, event: AccessEvent, session: int, *, table: bool) -> None:
        name, sessions = (event.dataset, event.group), None
        if not table and event.first is not None and event.last is not None:
            before = self.agenda.number(event.first - 1)
            sessions = self.agenda.number(event.last) - before if before >= 0 else None
        rolls, old = event.open_end or table, self.shapes.get(name)
        if not rolls and old is not None:
            rolls = old.last != event.last if old.seen < session else old.rolls
        self.shapes[name] = Shape(event.symbols, sessions, event.last, session, rolls)
        self.shapes.move_to_end(name)
        if len(self.shapes) > _MOST_SHAPES:
            self.shapes.popitem(last=False)

    def _running(self, event: AccessEvent, key: RelativeKey, moment: Moment) -> Iterator[Wanted]:
        if key.offset is None or event.last is None:
            return
        steps = self.runs.note(event.principal, event.dataset, event.group, self.agenda.number(event.last), event.at)
        for step in range(1, ahead(steps) + 1):
            offset = key.offset + step
            if offset <= 0:
                yield Wanted(
                    key._replace(offset=offset), moment, (moment.slot,), _RUN_CHANCE, WEIGHTS.get(event.profile, 1.0), RUNS
                )

    # Expecting

    def expected(self, session: int, slots: Sequence[Slot]) -> Iterator[Wanted]:
        """Yield what is expected in *session* within *slots*, chances as calibrated."""
        moment = Moment(session, slots[0])
        for found in self.predictor.expected(session, slots):
            shape = self.shapes.get((found.key.dataset, found.key.bucket))
            if shape is not None and shape.rolls:
                chance = self.calibration(found.chance, found.standing)
                yield Wanted(found.key, moment, tuple(slots), chance, found.weight, HABITS)

    def because(self, wanted: Wanted) -> str:
        """Return, in words and counts, what speaks for *wanted*."""
        if wanted.arm != HABITS:
            return {RUNS: "read session by session", TOGETHER: "asked for together with what was just read"}[wanted.arm]
        told = self.predictor.because(wanted.key, wanted.moment.session, wanted.slots)
        words = "; ".join(str(one) for one in told[:3])
        return words + (f" and {len(told) - 3} more" if len(told) > 3 else "")

    def say(self, session: int) -> None:
        """Remember what is predicted for *session*, so that it can be held against what comes.

        Only the first time counts, and a session before the latest not at all: a log out of order around midnight would have it
        predicted once more after its reads were counted.
        """
        if session > self._latest:
            self._latest = session
            self._said[session] = {each.key: (each.chance, each.standing) for each in self.predictor.expected(session)}

    def came(self, now: int) -> list[tuple[float, bool]]:
        """Return, of every session before *now* that something was predicted for: the calibrated chance, and whether it came."""
        outcomes = []
        for session in [session for session in self._said if session < now]:
            seen = self._seen.get(session, set())
            outcomes += [(*predicted, key in seen) for key, predicted in self._said.pop(session).items()]
        over = [(raw, key in self._seen.get(session, ())) for session, key, raw in self._paired if session < now]
        self._paired = [each for each in self._paired if each[0] >= now]
        for session in [session for session in self._seen if session < now]:
            del self._seen[session]
        told = [(self.calibration(chance, standing), came) for chance, standing, came in outcomes]
        if outcomes:
            self.calibration.learn(outcomes)
        if over:
            self.pairs.learn(over)
        return told

    # From what is expected to a read

    def last(self, wanted: Wanted) -> int | None:
        """Return the last session of *wanted*, as a day number; None where it has none."""
        number = -1 if wanted.key.offset is None else wanted.moment.session + wanted.key.offset
        return self.agenda.days[number] if 0 <= number < len(self.agenda.days) else None

    def request(
        self, wanted: Wanted, calendar: Calendar, settled: int, members: Callable[[str], tuple[str, ...]]
    ) -> ReadRequest | None:
        """Return the read of *wanted*, up to the session *settled* at most (a day number); None where there is nothing to read.

        *members* tells the symbols of its group where the shape does not.
        """
        key, shape = wanted.key, self.shapes.get((wanted.key.dataset, wanted.key.bucket))
        symbols = tuple((shape.symbols if shape else ()) or members(key.bucket))
        if shape is None or (not symbols and key.bucket != ALL):
            return None
        named = symbols or None
        if key.offset is None:
            return ReadRequest(key.dataset, named)
        if (last := self.last(wanted)) is None:
            return None
        first = None if shape.sessions is None else calendar.back(last, shape.sessions)
        last = min(last, settled)
        if first is not None and first > last:
            return None
        return ReadRequest(key.dataset, named, None if first is None else from_day_number(first), from_day_number(last))

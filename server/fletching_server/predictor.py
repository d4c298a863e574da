"""Who will ask for what, and when: decayed counts of who asked in which part of which kind of day. Pure.

A *relative key* is (dataset, bucket, session offset), so habits roll forward by themselves: whoever reads yesterday's
bars every morning is expected to want today's tomorrow. A hit is "this principal touched this key in this slot on that
session", at most one a session; an exposure is a session of that kind since the principal was first seen. Both weigh half
after ``HALF_LIFE`` sessions. Kinds of day back off from special to weekday to all days (a Beta-Bernoulli estimate with the
coarser one as its prior), principals are combined as if they decided independently (noisy-OR), which errs in the middle and
is put right by ``calibration``.

All of it is one table, which ``REBUILD`` makes of the access log with one query. It is bounded: whoever asks for ever different
things costs others nothing but what is least sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fletching_server.agenda import Agenda, DayType, Moment, Slot
from fletching_server.calibration import Standing, standing_of

HALF_LIFE: Final = 8.0  # sessions
PRIOR_RATE: Final = 0.05  # of what was never seen, with the weight of PRIOR_COUNT sessions
PRIOR_COUNT: Final = 1.0
BACK_OFF: Final = 3.0  # sessions' weight of the coarser kind of day
NEWCOMERS: Final = "(newcomers)"  # stands for all who ask for a key for the first time: what is popular finds new readers
LEAST_EXPOSURE: Final = 0.8  # sessions before anything is predicted of a principal
LEAST_CHANCE: Final = 0.02
MOST_HABITS: Final = 50_000  # of one principal with one key: some 60 MB, and a look at all of them takes a tenth of a second
_KEPT: Final = 4 / 5  # of them, where they are too many: so a look at all is due once in 10,000 new ones at most
MOST_NEW: Final = 2_000  # keys new to a principal per session: a desk has hundreds; so no single one can crowd out the others
MOST_PRINCIPALS: Final = 10_000  # known beyond those who have habits, whose first session would otherwise stay for ever
_PRUNED_EVERY: Final = 5  # sessions: looking at all habits takes a tenth of a second
_FADED: Final = 0.1  # decayed hits below which a habit is forgotten: one use 27 sessions ago, which month-ends survive

# The predictor's hits from a table ``touches`` (principal, slot, daytype, dataset, bucket, session_offset, session), where each
# touch stands once per slot (its own and -1) and kind of day; $now is the number of the present session. ``touches.touches``
# makes that table of the access log.
REBUILD: Final = """
with seen as (select distinct principal, slot, daytype, dataset, bucket, session_offset, session from touches)
select principal, slot, daytype, dataset, bucket, session_offset,
       sum(power(0.5, ($now - session) / 8.0)) as hits, max(session) as updated
from seen group by all
"""


class RelativeKey(NamedTuple):
    """What somebody asks for, told from where the present session is; without sessions the offset is None."""

    dataset: str
    bucket: str
    offset: int | None


class Because(NamedTuple):
    """What one principal's past says: decayed hits in how many decayed sessions, in which slot, and the chance of it."""

    principal: str
    hits: float
    exposures: float
    slot: Slot
    chance: float

    def __str__(self) -> str:
        return f"{self.principal}: {self.hits:.1f} of {self.exposures:.1f} sessions, {self.slot.label}"


class Expected(NamedTuple):
    """A relative key, how likely anybody asks for it, how much that matters (by the askers' profiles), and its standing."""

    key: RelativeKey
    chance: float
    weight: float
    standing: Standing


@dataclass(slots=True)
class _Count:
    hits: float
    updated: int


@dataclass(slots=True)
class _Habit:
    """What one principal did with one key in one slot: counts by kind of day."""

    counts: dict[int, _Count] = field(default_factory=dict)
    weight: float = 1.0


_Habits = dict[RelativeKey, dict[str, _Habit]]


class Predictor:
    """The habits of everybody, by the sessions of one agenda."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._habits: dict[int, _Habits] = {int(slot): {} for slot in Slot}
        self._first: dict[str, int] = {}  # the session in which a principal was first seen
        self._exposed: dict[int, list[float]] = {}  # decayed sessions per kind of day, before each session
        self._pruned = 0
        self._size = 0  # habits, each counted once, whatever its slots
        self._new: dict[str, int] = {}  # keys that were new to a principal in the session ``_newest``
        self._newest = -1

    def note(self, principal: str, moment: Moment, key: RelativeKey, weight: float = 1.0) -> bool:
        """Count one touch; return whether it is the first of this key by this principal in this slot and session.

        Told late, after one of a later session, it is not counted: nobody knows any more whether it has been. Nor is what is new
        to a principal who has had ``MOST_NEW`` new keys in this session.
        """
        session = moment.session
        newly = not self.knows(principal, key)
        if newly and not self._admits(principal, session):
            return False
        self._see(principal, session)
        if not self._hit(int(moment.slot), principal, key, session, weight):
            return False
        if newly:
            self._see(NEWCOMERS, session)
            self._hit(int(Slot.ANY), NEWCOMERS, key, session, weight)
        self._hit(int(Slot.ANY), principal, key, session, weight)
        self._prune(session)
        if self._size > MOST_HABITS:
            self._shrink(session)
        return True

    def _admits(self, principal: str, session: int) -> bool:
        """Return whether *principal* may have one more new key in *session*, and count it."""
        if session > self._newest:
            self._new, self._newest = {}, session
        count = self._new[principal] = self._new.get(principal, 0) + 1
        return count <= MOST_NEW

    def _see(self, principal: str, session: int) -> None:
        first = self._first.get(principal)
        if first is None or session < first:
            self._first[principal] = session

    def knows(self, principal: str, key: RelativeKey) -> bool:
        """Return whether *principal* has asked for *key* before."""
        return principal in self._habits[int(Slot.ANY)].get(key, ())

    def _hit(self, slot: int, principal: str, key: RelativeKey, session: int, weight: float) -> bool:
        habits = self._habits[slot].setdefault(key, {})
        habit = habits.get(principal)
        if habit is None:
            habit = habits[principal] = _Habit()
            self._size += slot == int(Slot.ANY)
        habit.weight = weight
        known = habit.counts.get(int(DayType.ALL))
        if known is not None and known.updated >= session:
            return False
        for kind in self._agenda.day_types(session):
            _count(habit.counts, kind, session)
        return True

    def expected(self, session: int, slots: Sequence[Slot] = (Slot.ANY,)) -> Iterator[Expected]:
        """Yield what is likely asked for in *session* within *slots*, from what was seen before; in no order."""
        types = self._agenda.day_types(session)
        exposures = {principal: self._exposures(principal, types, session) for principal in self._first}
        found: dict[RelativeKey, list[float]] = {}
        for slot in slots:
            for key, habits in self._habits[slot].items():
                sums = found.get(key) or found.setdefault(key, [1.0, 0.0, 0.0])
                for principal, habit in habits.items():
                    chance = _chance(habit.counts, types, exposures[principal], session)
                    sums[0] *= 1.0 - chance
                    sums[1] += chance
                    sums[2] += chance * habit.weight
        for key, (none, total, weights) in found.items():
            if 1.0 - none > LEAST_CHANCE:
                yield Expected(key, 1.0 - none, weights / total, self._standing(key, session))

    def _standing(self, key: RelativeKey, session: int) -> Standing:
        habits = self._habits[int(Slot.ANY)].get(key, {})
        latest = max((habit.counts[int(DayType.ALL)].updated for habit in habits.values()), default=0)
        return standing_of(max(0, session - latest), key.offset, len(habits))

    def because(self, key: RelativeKey, session: int, slots: Sequence[Slot] = (Slot.ANY,)) -> list[Because]:
        """Return what speaks for *key*, the strongest first."""
        told = [
            self._because(principal, habit, session, slot)
            for slot in slots
            for principal, habit in self._habits[slot].get(key, {}).items()
        ]
        return sorted((one for one in told if one.chance > 0), key=lambda one: (-one.chance, one.principal))

    def _because(self, principal: str, habit: _Habit, session: int, slot: Slot) -> Because:
        types = self._agenda.day_types(session)
        exposures = self._exposures(principal, types, session)
        hits = _before(habit.counts[int(DayType.ALL)], session)
        return Because(principal, hits, exposures[-1], slot, _chance(habit.counts, types, exposures, session))

    def _exposures(self, principal: str, types: Sequence[int], session: int) -> list[float]:
        return [self._exposure(principal, kind, session) for kind in types]

    def _exposure(self, principal: str, kind: int, session: int) -> float:
        """Return the decayed number of sessions of one *kind*, before *session*, since *principal* was first seen."""
        first = self._first.get(principal, session)
        if first >= session:
            return 0.0
        exposed = self._exposed_before(kind)
        return float(exposed[session] - exposed[first] * _FADE ** (session - first))

    def _exposed_before(self, kind: int) -> list[float]:
        if (found := self._exposed.get(kind)) is None:
            found = self._exposed[kind] = [0.0]
            for session in range(len(self._agenda.days)):
                found.append((found[-1] + (kind in self._agenda.day_types(session))) * _FADE)
        return found

    def _prune(self, session: int) -> None:
        """Forget, now and then, what nobody has asked for in a long time."""
        if session < self._pruned + _PRUNED_EVERY:
            return
        self._pruned = session
        self._keep(lambda _key, _principal, habit: not _is_faded(habit, session))

    def _shrink(self, session: int) -> None:
        """Forget the habits with the least decayed hits, in all their slots; of equal ones those that are known longest."""
        ranked = [
            (_hits(habit, session), key, principal)
            for key, habits in self._habits[int(Slot.ANY)].items()
            for principal, habit in habits.items()
        ]
        ranked.sort(key=lambda each: each[0])
        gone = {(key, principal) for _, key, principal in ranked[: self._size - int(MOST_HABITS * _KEPT)]}
        self._keep(lambda key, principal, _habit: (key, principal) not in gone)

    def _keep(self, wanted: Callable[[RelativeKey, str, _Habit], bool]) -> None:
        """Keep the habits that are *wanted*, and of the principals without any only so many."""
        for slot, known in self._habits.items():
            kept = {
                key: {name: habit for name, habit in habits.items() if wanted(key, name, habit)} for key, habits in known.items()
            }
            self._habits[slot] = {key: habits for key, habits in kept.items() if habits}
        whole = self._habits[int(Slot.ANY)].values()
        self._size = sum(map(len, whole))
        if len(self._first) > MOST_PRINCIPALS:
            present = {principal for habits in whole for principal in habits}
            self._first = {principal: first for principal, first in self._first.items() if principal in present}

    # The table

    def rows(self, session: int) -> Iterator[dict[str, Any]]:
        """Yield the whole state as of *session*: one row per principal, slot, day type and key."""
        for slot, known in self._habits.items():
            for key, habits in known.items():
                for principal, habit in habits.items():
                    for kind, count in habit.counts.items():
                        yield {
                            "principal": principal,
                            "slot": slot,
                            "daytype": kind,
                            "dataset": key.dataset,
                            "bucket": key.bucket,
                            "session_offset": key.offset,
                            "hits": count.hits * _fade(session - count.updated),
                            "exposures": self._exposure(principal, kind, session),
                            "updated": count.updated,
                        }

    def restore(self, rows: Iterable[Mapping[str, Any]], session: int, first: Mapping[str, int]) -> None:
        """Take the state that ``rows`` gave as of *session*, or that ``REBUILD`` made; *first* is when each was first seen."""
        for row in rows:
            key = RelativeKey(row["dataset"], row["bucket"], row["session_offset"])
            habit = self._habits[row["slot"]].setdefault(key, {}).setdefault(row["principal"], _Habit())
            habit.counts[row["daytype"]] = _Count(row["hits"] / _fade(session - row["updated"]), row["updated"])
        self._first |= first
        self._size = sum(map(len, self._habits[int(Slot.ANY)].values()))

    def first_seen(self) -> dict[str, int]:
        """Return the session in which each principal was first seen."""
        return dict(self._first)

    def __len__(self) -> int:
        """Return how many relative keys are known."""
        return len(self._habits[int(Slot.ANY)])


_FADE: Final = 0.5 ** (1 / HALF_LIFE)
_FADES: Final = tuple(_FADE**sessions for sessions in range(512))


def _fade(sessions: int) -> float:
    return _FADES[sessions] if 0 <= sessions < len(_FADES) else float(_FADE**sessions)


def _count(counts: dict[int, _Count], kind: int, session: int) -> None:
    count = counts.get(kind)
    if count is None:
        counts[kind] = _Count(1.0, session)
    else:
        count.hits = count.hits * _fade(session - count.updated) + 1.0
        count.updated = session


def _chance(counts: Mapping[int, _Count], types: Sequence[int], exposures: Sequence[float], session: int) -> float:
    """Return the chance that one principal keeps up a habit, backed off from all days to the special kind."""
    if exposures[-1] < LEAST_EXPOSURE:
        return 0.0
    chance, weight = PRIOR_RATE, PRIOR_COUNT
    for place in range(len(types) - 1, -1, -1):
        count = counts.get(types[place])
        chance = ((_before(count, session) if count else 0.0) + weight * chance) / (exposures[place] + weight)
        weight = BACK_OFF
    return min(chance, 1.0)


def _before(count: _Count, session: int) -> float:
    """Return decayed hits before *session*; what was seen in it already is not what is predicted."""
    if count.updated < session:
        return count.hits * _fade(session - count.updated)
    return max(count.hits - 1.0, 0.0)


def _is_faded(habit: _Habit, session: int) -> bool:
    return _hits(habit, session) < _FADED


def _hits(habit: _Habit, session: int) -> float:
    count = habit.counts[int(DayType.ALL)]
    return count.hits * _fade(session - count.updated)

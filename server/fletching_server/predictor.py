"""Who will ask for what, and when: decayed counts of who asked in which part of which kind of day. Pure.

A *relative key* is (dataset, bucket, session offset), so habits roll forward by themselves: whoever reads yesterday's
bars every morning is expected to want today's tomorrow. A hit is "this principal touched this key in this slot on that
session", at most one a session; an exposure is a session of that kind since the principal was first seen. Both weigh half
after ``HALF_LIFE`` sessions. Kinds of day back off from special to weekday to all days (a Beta-Bernoulli estimate with the
coarser one as its prior), principals are combined as if they decided independently (noisy-OR), which errs in the middle and
is put right by ``calibration``.

All of it is one table, which ``REBUILD`` makes of the access log with one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fletching_server.agenda import Agenda, DayType, Moment, Slot

HALF_LIFE: Final = 8.0  # sessions
PRIOR_RATE: Final = 0.05  # of what was never seen, with the weight of PRIOR_COUNT sessions
PRIOR_COUNT: Final = 1.0
BACK_OFF: Final = 3.0  # sessions' weight of the coarser kind of day
LEAST_EXPOSURE: Final = 0.8  # sessions before anything is predicted of a principal
LEAST_CHANCE: Final = 0.02
_FADED: Final = 0.01  # decayed hits below which a key is forgotten

# The predictor's hits from a table ``touches`` (principal, slot, daytype, dataset, bucket, session_offset, session), where each
# touch stands once per slot (its own and -1) and kind of day; $now is the number of the present session.
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
    """A relative key, how likely anybody asks for it, and how much that matters (the weight of the askers' profiles)."""

    key: RelativeKey
    chance: float
    weight: float


@dataclass(slots=True)
class _Count:
    hits: float
    updated: int


@dataclass(slots=True)
class _Habit:
    """What one principal did with one key: counts by (slot, day type)."""

    weight: float = 1.0
    counts: dict[tuple[int, int], _Count] = field(default_factory=dict)
    updated: int = 0


class Predictor:
    """The habits of everybody, by the sessions of one agenda."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._habits: dict[RelativeKey, dict[str, _Habit]] = {}
        self._first: dict[str, int] = {}  # the session in which a principal was first seen
        self._exposed: dict[int, list[float]] = {}  # decayed sessions per kind of day, before each session
        self._pruned = 0

    def note(self, principal: str, moment: Moment, key: RelativeKey, weight: float = 1.0) -> bool:
        """Count one touch; return whether it is the first of this key by this principal in this slot and session."""
        session = moment.session
        self._first.setdefault(principal, session)
        habit = self._habits.setdefault(key, {}).setdefault(principal, _Habit())
        habit.weight, habit.updated = weight, max(habit.updated, session)
        types = self._agenda.day_types(session)
        known = habit.counts.get((moment.slot, types[-1]))
        if known is not None and known.updated >= session:
            return False
        for slot in (int(moment.slot), int(Slot.ANY)):
            for kind in types:
                _hit(habit.counts, (slot, kind), session)
        self._prune(session)
        return True

    def expected(self, session: int, slots: Sequence[Slot] = (Slot.ANY,)) -> Iterator[Expected]:
        """Yield what is likely asked for in *session* within *slots*, from what was seen before; in no order."""
        types = self._agenda.day_types(session)
        for key, habits in self._habits.items():
            none, weights, total = 1.0, 0.0, 0.0
            for principal, habit in habits.items():
                if session - habit.updated > _LONG:
                    continue
                chance = self._chance(principal, habit, session, types, slots)
                none *= 1.0 - chance
                weights += chance * habit.weight
                total += chance
            if 1.0 - none > LEAST_CHANCE:
                yield Expected(key, 1.0 - none, weights / total)

    def because(self, key: RelativeKey, session: int, slots: Sequence[Slot] = (Slot.ANY,)) -> list[Because]:
        """Return what speaks for *key*, the strongest first."""
        types = self._agenda.day_types(session)
        told = [
            self._because(principal, habit, session, types, slot)
            for principal, habit in self._habits.get(key, {}).items()
            for slot in slots
        ]
        return sorted((one for one in told if one.chance > 0), key=lambda one: (-one.chance, one.principal))

    def _because(self, principal: str, habit: _Habit, session: int, types: Sequence[int], slot: Slot) -> Because:
        count = habit.counts.get((int(slot), int(DayType.ALL)))
        hits = _faded(count, session) if count else 0.0
        chance = self._chance(principal, habit, session, types, (slot,))
        return Because(principal, hits, self._exposure(principal, int(DayType.ALL), session), slot, chance)

    def _chance(self, principal: str, habit: _Habit, session: int, types: Sequence[int], slots: Sequence[Slot]) -> float:
        exposures = [self._exposure(principal, kind, session) for kind in types]
        if exposures[-1] < LEAST_EXPOSURE:
            return 0.0
        none = 1.0
        for slot in slots:
            chance = PRIOR_RATE
            weight = PRIOR_COUNT
            for kind, exposure in zip(reversed(types), reversed(exposures), strict=True):  # from all days to the special one
                count = habit.counts.get((slot, kind))
                hits = _before(count, session) if count else 0.0
                chance = (hits + weight * chance) / (exposure + weight)
                weight = BACK_OFF
            none *= 1.0 - min(chance, 1.0)
        return 1.0 - none

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
        """Forget, once a session, what nobody has asked for in a long time."""
        if session <= self._pruned:
            return
        self._pruned = session
        for key, habits in list(self._habits.items()):
            for principal, habit in list(habits.items()):
                any_day = habit.counts[int(Slot.ANY), int(DayType.ALL)]
                if _faded(any_day, session) < _FADED:
                    del habits[principal]
            if not habits:
                del self._habits[key]

    # The table

    def rows(self, session: int) -> Iterator[dict[str, Any]]:
        """Yield the whole state as of *session*: one row per principal, slot, day type and key."""
        for key, habits in self._habits.items():
            for principal, habit in habits.items():
                for (slot, kind), count in habit.counts.items():
                    yield {
                        "principal": principal,
                        "slot": slot,
                        "daytype": kind,
                        "dataset": key.dataset,
                        "bucket": key.bucket,
                        "session_offset": key.offset,
                        "hits": _faded(count, session),
                        "exposures": self._exposure(principal, kind, session),
                        "updated": count.updated,
                    }

    def restore(self, rows: Iterable[Mapping[str, Any]], session: int, first: Mapping[str, int]) -> None:
        """Take the state that ``rows`` gave as of *session*, or that ``REBUILD`` made; *first* is when each was first seen."""
        for row in rows:
            key = RelativeKey(row["dataset"], row["bucket"], row["session_offset"])
            habit = self._habits.setdefault(key, {}).setdefault(row["principal"], _Habit())
            hits = row["hits"] / _FADE ** (session - row["updated"])
            habit.counts[row["slot"], row["daytype"]] = _Count(hits, row["updated"])
            habit.updated = max(habit.updated, row["updated"])
        self._first |= first

    def first_seen(self) -> dict[str, int]:
        """Return the session in which each principal was first seen."""
        return dict(self._first)

    def __len__(self) -> int:
        return len(self._habits)


_FADE: Final = 0.5 ** (1 / HALF_LIFE)
_LONG: Final = 60  # sessions without a touch: the chance is below anything that matters


def _hit(counts: dict[tuple[int, int], _Count], place: tuple[int, int], session: int) -> None:
    count = counts.get(place)
    if count is None:
        counts[place] = _Count(1.0, session)
    elif count.updated < session:
        count.hits = count.hits * _FADE ** (session - count.updated) + 1.0
        count.updated = session
    elif count.updated > session:  # told late: it weighs what it would have
        count.hits += _FADE ** (count.updated - session)


def _faded(count: _Count, session: int) -> float:
    return float(count.hits * _FADE ** (session - count.updated))


def _before(count: _Count, session: int) -> float:
    """Return decayed hits before *session*; what was seen in it already is not what is predicted."""
    if count.updated < session:
        return float(count.hits * _FADE ** (session - count.updated))
    return float(max(count.hits - 1.0, 0.0))

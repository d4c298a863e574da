"""What became of what was made ready: cells are marked while it is made, the first read that wants them meets the mark.

The one place where reads and the judge come together. It takes locks, never for I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from fletching_server.access import AccessEvent
from fletching_server.clock import Clock
from fletching_server.judging import Judge
from fletching_server.plan import Plan
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days
from fletching_server.worth import KAPPA

log = structlog.get_logger(__name__)

MOST_MARKS: Final = 4096  # of one dataset; the oldest are forgotten as if nobody had come
ARMS: Final = ("habits", "runs", "together", "explicit")

ToldBy = tuple[str, str, int | None]  # a read, by dataset, group, and the last session that it wants; None: of a table


@dataclass(eq=False)
class Mark:
    """Cells that are brought for a read that is expected: of these symbols (None: all), these sessions.

    ``name`` is what it is for, the same for both steps of one thing; ``arm`` who said so, ``memory`` whether it was loaded or
    only fetched. Who comes after ``until`` (seconds since 1970) was not expected. Until it is ``ready`` a read that meets it
    comes too early for it.
    """

    name: str
    arm: str
    dataset: str
    symbols: frozenset[str] | None
    days: Days
    memory: bool
    until: float
    ready: bool = False
    met_at: float | None = None

    def touches(self, plan: Plan) -> bool:
        """Return whether *plan* wants some of the cells."""
        wanted = plan.wanted
        near = wanted.first <= self.days.last and wanted.last >= self.days.first
        return near and (self.symbols is None or any(symbol in self.symbols for symbol in plan.symbols))

    def holds(self, file: StoredFile) -> bool:
        """Return whether *file* may have rows of the cells."""
        reach = file.reach
        near = reach.first <= self.days.last and reach.last >= self.days.first
        return near and (self.symbols is None or any(file.has(symbol) for symbol in self.symbols))


@dataclass
class _Reads:
    """Demand reads since the start: those that had to wait, and those that did not because of what was made ready."""

    waited: int = 0
    spared: int = 0
    seconds: float = 0.0  # of this session: waited, or spared by as many in the background


@dataclass
class Tracking:
    """The marks of one engine, and its judge. Safe from any thread; a read looks at nothing where there are no marks."""

    clock: Clock
    judge: Judge = field(default_factory=lambda: Judge(KAPPA))  # the price by which it was decided
    marks: dict[str, list[Mark]] = field(default_factory=dict)
    _withheld: dict[ToldBy, str] = field(default_factory=dict)
    _reads: _Reads = field(default_factory=_Reads)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # Making ready

    def begin(self, mark: Mark) -> None:
        """Put *mark* up: somebody works on it."""
        with self._lock:
            self._take(self.marks.get(mark.dataset, [])[: 1 - MOST_MARKS])
            self.marks[mark.dataset] = [*self.marks.get(mark.dataset, ()), mark]

    def done(self, mark: Mark, fill_seconds: float, saves: float) -> None:
        """Note that what *mark* is for is ready now; who wanted it meanwhile had to wait."""
        with self._lock:
            mark.ready = True
            self.judge.acted(mark.name, mark.arm, fill_seconds, saves)
            if mark.met_at is not None:
                self._reads.seconds += self.judge.used(mark.name, max(1e-6, self.clock.monotonic() - mark.met_at))

    def undo(self, mark: Mark) -> None:
        """Take *mark* away: there was nothing to do, or it could not be done."""
        with self._lock:
            self._take([mark])

    def withhold(self, name: str, told_by: ToldBy, arm: str, fill_seconds: float, saves: float) -> None:
        """Note that *name* is not made ready although it should be; *told_by* is the read that shows what that costs.

        Where something else is withheld from the same read, that read can tell the worth of one of them only: the first.
        """
        with self._lock:
            if self._withheld.setdefault(told_by, name) == name:
                self.judge.withhold(name, arm, fill_seconds, saves)

    def displaced(self, lineages: Sequence[str], arm: str) -> None:
        """Note that *lineages* left memory for something that was made ready."""
        with self._lock:
            for lineage in lineages:
                self.judge.displaced(lineage, arm)

    def off(self, arm: str) -> bool:
        """Return whether *arm* has been switched off, as it was worth nothing."""
        return arm in self.judge.off

    # Reads

    def met(self, plan: Plan, *, in_memory: bool, waited: bool) -> Sequence[Mark]:
        """Return the marks whose cells the read of *plan* found ready, and take down all that it meets.

        *in_memory*: all of its files were, *waited*: something was fetched for it.
        """
        if not (marks := self.marks.get(plan.dataset.name)):
            return ()
        met = [mark for mark in marks if mark.met_at is None and mark.touches(plan)]
        if not met:
            return ()
        with self._lock:
            return self._served(met, in_memory=in_memory, waited=waited)

    def _served(self, met: Sequence[Mark], *, in_memory: bool, waited: bool) -> list[Mark]:
        served = []
        for mark in met:
            mark.met_at = self.clock.monotonic()
            if mark.ready and (in_memory if mark.memory else not waited):
                self._reads.seconds += self.judge.used(mark.name)
                served.append(mark)
        self._reads.spared += bool(served)
        self._take([mark for mark in met if mark.ready])
        return served

    def heard(self, events: Sequence[AccessEvent]) -> None:
        """Count the reads that had to wait, and find among them what was withheld or displaced."""
        with self._lock:
            for event in events:
                cold = [f"{event.dataset}/{each.period}/{each.bucket}" for each in event.touched if each.tier == "cold"]
                if not cold and not event.upstream_calls:
                    continue
                self._reads.waited += 1
                self._reads.seconds += event.milliseconds / 1000
                for last in {event.last, None}:  # None: a table's, whose reads all mean the same rows
                    if (name := self._withheld.pop((event.dataset, event.group, last), None)) is not None:
                        self.judge.missed(name)
                for lineage in cold:
                    self.judge.missed(lineage)

    # Time

    def expire(self, now: float) -> None:
        """Take away the marks that nobody has met in time."""
        with self._lock:
            self._take([mark for marks in self.marks.values() for mark in marks if mark.until <= now])

    def session_ended(self) -> float:
        """Close the sums of a session, and return the seconds that it demanded; an arm that was worth nothing is switched off."""
        with self._lock:
            told = self.judge.session_ended()
            self._withheld.clear()
            demanded, self._reads.seconds = self._reads.seconds, 0.0
        for line in told:
            log.warning("warming judged itself", verdict=line)
        return demanded

    def predicted(self, chance: float, base: float, *, happened: bool) -> None:
        """Score one prediction."""
        with self._lock:
            self.judge.predicted(chance, base, happened=happened)

    def _take(self, gone: Sequence[Mark]) -> None:
        """Take marks down; what no mark is left of cannot be used any more, if it was not."""
        over = set(gone)
        for dataset in {mark.dataset for mark in over}:
            marks = [mark for mark in self.marks.get(dataset, ()) if mark not in over]
            if marks:
                self.marks[dataset] = marks
            else:
                self.marks.pop(dataset, None)
            for name in {mark.name for mark in over if mark.dataset == dataset} - {mark.name for mark in marks}:
                self.judge.gone(name)

    # Telling

    def facts(self) -> dict[str, Any]:
        """Return the figures for ``stats``; what there is nothing to tell of yet is left out."""
        with self._lock:
            told = self.judge.figures()
            waited, spared = self._reads.waited, self._reads.spared
            marks = sum(map(len, self.marks.values()))
        arms, off = told.pop("arms"), told.pop("off")
        found = {f"warm_{name}": value for name, value in told.items() if value is not None}
        found["warm_coverage"] = spared / (spared + waited) if spared + waited else None
        for arm in ARMS:
            figures = arms.get(arm, {})
            found |= {f"warm_{arm}_{name}": figures.get(name) for name in ("acted", "used", "precision", "uplift_seconds")}
            found[f"warm_{arm}_off"] = int(arm in off)
        return {name: value for name, value in found.items() if value is not None} | {"warm_marks": marks}

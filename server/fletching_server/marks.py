"""What lies where it lies because somebody is expected to ask: marked when it was brought, met by the first read that wants it.

A mark is on cells, not on files: files are folded into others within seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fletching_server.plan import Plan
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days

MOST_MARKS: Final = 4096  # of one dataset; the oldest are forgotten as if nobody had come


@dataclass(frozen=True, eq=False)
class Mark:
    """Cells that were brought for a read that is expected: these symbols (None: all), these sessions, and what it was for."""

    dataset: str
    symbols: frozenset[str] | None
    days: Days
    name: str
    until: float  # seconds since 1970: whoever comes later has not been expected

    def touches(self, plan: Plan) -> bool:
        """Return whether *plan* wants some of the cells."""
        wanted = plan.wanted
        return (
            wanted.first <= self.days.last
            and wanted.last >= self.days.first
            and (self.symbols is None or any(symbol in self.symbols for symbol in plan.symbols))
        )

    def holds(self, file: StoredFile) -> bool:
        """Return whether *file* may have rows of the cells."""
        reach = file.reach
        if reach.first > self.days.last or reach.last < self.days.first:
            return False
        return self.symbols is None or any(file.has(symbol) for symbol in self.symbols)


@dataclass
class Marks:
    """The marks that no read has met yet, safe from any thread; looking for them costs nothing where there are none."""

    on_met: Callable[[Mark], None] = lambda _mark: None
    _marks: dict[str, list[Mark]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, mark: Mark) -> list[Mark]:
        """Add *mark*, and return those that had to leave for it."""
        with self._lock:
            marks = [*self._marks.get(mark.dataset, ()), mark]
            self._marks[mark.dataset] = marks[-MOST_MARKS:]
            return marks[:-MOST_MARKS]

    def met(self, plan: Plan) -> Sequence[Mark]:
        """Return the marks that the read of *plan* meets, and take them away: the next read finds what this one used."""
        if not (marks := self._marks.get(plan.dataset.name)):
            return ()
        found = [mark for mark in marks if mark.touches(plan)]
        if found:
            self._take(plan.dataset.name, found)
            for mark in found:
                self.on_met(mark)
        return found

    def _take(self, dataset: str, gone: Sequence[Mark]) -> None:
        with self._lock:
            left = [mark for mark in self._marks.get(dataset, ()) if mark not in gone]
            if left:
                self._marks[dataset] = left
            else:
                self._marks.pop(dataset, None)

    def expired(self, now: float) -> list[Mark]:
        """Return the marks whose time is over, and take them away."""
        over = [mark for marks in list(self._marks.values()) for mark in marks if mark.until <= now]
        for mark in over:
            self._take(mark.dataset, [mark])
        return over

    def __len__(self) -> int:
        return sum(len(marks) for marks in list(self._marks.values()))

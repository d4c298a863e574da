"""The disk quota: where the store outgrows it, the partitions that are worth least per byte are forgotten, in the background.

Worth is value density: decayed uses x the seconds it takes to fetch a partition again / its bytes. What nobody could fetch
again stays, whatever it is worth: user tables, rows that the source has taken back or no longer reaches, sources that are not
configured here.

A victim is a whole partition, and it leaves by one commit together with the coverage of its cells, so the next read of them
fetches them again. Its bytes leave the disk after the last reader that has pinned them. The past of fetched rows leaves
first, then the journal is folded: no segment can leave before what it overrides has left.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import log2
from typing import Any, Final

import structlog
from pydantic import ByteSize

from fletching_schemas import Dataset
from fletching_schemas.errors import UnknownDataset
from fletching_server.almanac import Calendars
from fletching_server.changes import Forget
from fletching_server.clock import Clock
from fletching_server.compaction import Compaction
from fletching_server.desk import Desk
from fletching_server.failpoints import Removal
from fletching_server.gaps import present_session
from fletching_server.hot import HotTier
from fletching_server.settings import Settings
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Days
from fletching_server.stats import Stats
from fletching_server.store import Store
from fletching_server.uses import Key, Uses, key_of

FIRST_SECONDS: Final = 10.0  # a start belongs to readers
LULL_SECONDS: Final = 0.5  # a storm of commits is looked at once
REST_SECONDS: Final = 600.0  # without a commit; uses are written down now and then
PRESSED_SECONDS: Final = 1.0  # while reads hold on to what must leave

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A partition that may leave: its files, the logarithm of its decayed uses, and what fetching it again takes."""

    key: Key
    files: tuple[StoredFile, ...]
    weight: float
    refill_seconds: float

    @property
    def bytes(self) -> int:
        """What its files take on disk."""
        return sum(file.bytes for file in self.files)

    @property
    def density(self) -> float:
        """The logarithm of decayed uses x refill seconds / bytes: see ``uses`` for why a logarithm."""
        return self.weight + log2(self.refill_seconds / max(self.bytes, 1))


def victims(candidates: Iterable[Candidate], excess: int) -> list[Candidate]:
    """Return those that should leave so that *excess* bytes go: the lowest density first, older periods among equals."""
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.density, candidate.key)):
        if excess <= 0:
            break
        chosen.append(candidate)
        excess -= candidate.bytes
    return chosen


def refill_seconds(dataset: Dataset, symbols: int, call_seconds: float) -> float:
    """Return how long it takes to fetch rows of so many *symbols* again."""
    return call_seconds * -(-max(symbols, 1) // dataset.symbols_per_call)


class Quota:
    """Keeps the files of one store within ``disk`` bytes (0: any number); those that exceed it take it down to ``disk_low``."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        compaction: Compaction,
        desk: Desk,
        calendars: Calendars,
        uses: Uses,
        clock: Clock,
        stats: Stats,
        settings: Settings,
    ) -> None:
        self._store, self._hot, self._compaction, self._desk = store, hot, compaction, desk
        self._calendars, self._uses, self._clock, self._stats = calendars, uses, clock, stats
        self.most_bytes, self._low_bytes = int(settings.disk), int(settings.disk * settings.disk_low)
        self._one_at_a_time = threading.Lock()
        self._stuck_bytes = 0

    def work(self) -> float:
        """Bring the store under its quota, and return after how many seconds to look again."""
        over = self.settle()
        self._uses.save()
        return PRESSED_SECONDS if over > self._stuck_bytes else REST_SECONDS

    def settle(self) -> int:
        """Return how many bytes the store is over its quota, after making room: 0, unless reads or user tables hold more."""
        with self._one_at_a_time:
            self._uses.weights(key_of(file) for state in self._sourced() for file in _partitions(state))  # new ones are seen
            if self._over():
                for step in (self._drop_past, self._fold_journals, self._drop_past, self._evict, self._drop_past):
                    step()
                    if self._store.disk_bytes() <= self._low_bytes:
                        break
            return self._judged()

    def _over(self) -> int:
        return max(0, self._store.disk_bytes() - self.most_bytes) if self.most_bytes else 0

    def _drop_past(self) -> None:
        """Forget the past of what a source delivered: it costs nobody a call."""
        for name in [state.dataset.name for state in self._sourced()]:
            if self._store.catalogue.bytes(name, retired=True):
                with suppress(LookupError):  # deleted just now
                    self._store.vacuum(name, 0.0)

    def _fold_journals(self) -> None:
        for state in self._sourced():
            if all(file.kind == "partition" for file in state.files):
                continue
            try:
                self._compaction.compact(state.dataset.name)
            except UnknownDataset:
                continue
            except Exception:  # the disk may be full: partitions are evicted, and the next look tries again
                log.exception("folding the journal failed", dataset=state.dataset.name)

    def _evict(self) -> None:
        excess = self._store.disk_bytes() - self._low_bytes
        for victim in victims(self._candidates(), excess):
            self._forget(victim)

    def _forget(self, victim: Candidate) -> None:
        """Remove a partition together with the coverage of its cells, in one commit."""
        dataset, period, bucket = victim.key
        symbols = tuple(sorted({symbol for file in victim.files for symbol in file.symbols}))
        days = Days(min(file.reach.first for file in victim.files), max(file.reach.last for file in victim.files))
        try:
            calendar = self._calendars.get(self._store.state(dataset).dataset.calendar)
            self._store.commit(Forget(dataset, symbols, days, calendar.adjacent, victim.files), victim.files, Removal.EVICT)
        except LookupError:  # folded, mended or deleted meanwhile
            return
        self._hot.drop({file.key for file in victim.files})
        self._stats.add(evicted_files=len(victim.files), evicted_bytes=victim.bytes)
        log.info(
            "partition evicted from disk",
            dataset=dataset,
            period=period,
            bucket=bucket,
            bytes=victim.bytes,
            uses=round(self._uses.decayed(victim.weight), 6),
            refill_seconds=round(victim.refill_seconds, 3),
            density=round(victim.density, 3),
        )

    def _candidates(self) -> list[Candidate]:
        """Return the partitions that could be fetched again, but for those that a read is just waiting for."""
        found = [item for state in self._sourced() for item in self._replaceable(state)]
        found = [(state, files) for state, files in found if not any(map(self._uses.is_awaited, files))]
        weights = self._uses.weights([key_of(files[0]) for _, files in found])
        return [
            Candidate(key_of(files[0]), files, weights[key_of(files[0])], self._refill_seconds(state, files))
            for state, files in found
        ]

    def _refill_seconds(self, state: DatasetState, files: tuple[StoredFile, ...]) -> float:
        symbols = max(len(file.symbols) for file in files)
        return refill_seconds(state.dataset, symbols, self._uses.call_seconds(state.dataset.name))

    def _sourced(self) -> list[DatasetState]:
        return [state for state in self._store.catalogue.states() if not state.is_table]

    def _replaceable(self, state: DatasetState) -> Iterator[tuple[DatasetState, tuple[StoredFile, ...]]]:
        """Yield the partitions that the source would deliver again as they are."""
        dataset = state.dataset
        if self._desk.source(dataset.name) is None or dataset.accumulates or dataset.restatement == "keep":
            return
        reach = self._reach(dataset)
        by_key: dict[Key, list[StoredFile]] = defaultdict(list)
        for file in _partitions(state):
            by_key[key_of(file)].append(file)
        for files in by_key.values():
            if reach is None or all(file.reach.first >= reach for file in files):
                yield state, tuple(files)

    def _reach(self, dataset: Dataset) -> int | None:
        """Return the first session that the source still has; None: all of them."""
        if dataset.recent_sessions is None:
            return None
        calendar = self._calendars.get(dataset.calendar)
        return calendar.back(present_session(dataset, calendar, self._clock.now()), dataset.recent_sessions)

    def _judged(self) -> int:
        """Return how much there is too much, and tell, once, when nothing that is left may leave."""
        over = self._over()
        left = any(True for state in self._sourced() for _ in self._replaceable(state))
        stuck = over if over and not left else 0
        if stuck and not self._stuck_bytes:
            log.warning(self._told(), over_bytes=stuck, disk_bytes=self._store.disk_bytes())
        self._stuck_bytes = stuck
        return over

    def _told(self) -> str:
        size = ByteSize(self.most_bytes).human_readable(decimal=True, separator=" ").replace(".0 ", " ")
        return f"the disk quota of {size} is exceeded by user tables, their past, and rows that no source could deliver again"

    def facts(self) -> dict[str, Any]:
        """Return the quota in bytes, and how much of what exceeds it may not leave."""
        return {"disk_max_bytes": self.most_bytes, "disk_stuck_bytes": self._stuck_bytes}

    def warnings(self) -> list[str]:
        """Return what somebody should do something about."""
        return [f"{self._told()}: raise `disk`, or delete tables"] if self._stuck_bytes else []


def _partitions(state: DatasetState) -> list[StoredFile]:
    return [file for file in state.files if file.kind == "partition"]

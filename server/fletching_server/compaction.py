"""Folding the journal into partitions, in the background: the oldest segments first, one partition in memory at a time.

A fold takes a prefix of a dataset's segments, writes a new generation of every partition they touch, and swaps all of it
in one commit. A crash before that leaves files nobody refers to; the segments are still there.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import structlog
import xxhash

from fletching_schemas import Dataset
from fletching_server.almanac import Calendars
from fletching_server.calendars import from_day_number
from fletching_server.changes import Swap
from fletching_server.cold import ColdTier
from fletching_server.hot import HotTier
from fletching_server.image import Image, build_image
from fletching_server.pieces import merge_tables
from fletching_server.repair import Repairs
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Days
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store

FOLD_BYTES: Final = 256 << 20  # of segments in memory at once
FULL_BYTES: Final = 64 << 20  # this much in the journal is folded without waiting for a quiet moment

log = structlog.get_logger(__name__)

_Target = tuple[str, int]  # period and bucket
_Asked = dict[str, list[tuple[Days, int]]]


class Compaction:
    """Folds on demand."""

    def __init__(self, store: Store, hot: HotTier, cold: ColdTier, repairs: Repairs, calendars: Calendars, stats: Stats) -> None:
        self._store, self._hot, self._cold = store, hot, cold
        self._repairs, self._calendars, self._stats = repairs, calendars, stats
        self._one_at_a_time = threading.Lock()

    def compact(self, dataset: str) -> int:
        """Return how many segments of *dataset* were folded into partitions: all there were when this was called."""
        with self._one_at_a_time:
            folded = 0
            left = len(segments_of(self._store.state(dataset)))
            while left > 0:
                try:
                    step = self._fold(dataset)
                except DamagedFile as damage:
                    self._repairs.mend(damage)
                    step = 1
                if not step:
                    break
                folded, left = folded + step, left - step
            return folded

    def _fold(self, dataset: str) -> int:
        with self._store.pinned(dataset) as state:
            segments = _prefix(state)
            if not segments:
                return 0
            parts = self._split(state.dataset, segments)
            partitions = [file for file in state.files if file.kind == "partition"]
            old = [file for file in partitions if (file.period, file.bucket) in parts or _replaces_rows(segments, file)]
            targets = {**parts, **{(file.period, file.bucket): [] for file in old if (file.period, file.bucket) not in parts}}
            rewritten = (self._rewrite(state.dataset, target, tables, old, segments) for target, tables in targets.items())
            added = [item for item in rewritten if item]
            removed = (*segments, *old)
            adjacent = self._calendars.get(state.dataset.calendar).adjacent
            files = tuple(file for file, _ in added)
            gone = {file.id for file in old}
            kept = [file for file in state.files if file.kind == "partition" and file.id not in gone]
            self._store.declare(state, (*kept, *files), segments[-1].place)
            try:
                self._store.commit(Swap(dataset, files, removed, adjacent, segments[-1].rank))
            except LookupError:  # replaced, deleted or mended meanwhile
                for file in files:
                    self._store.discard(file)
                return 0
        warm = any(self._hot.holds(file.key) for file in removed)
        self._hot.drop({file.key for file in removed})
        if warm:
            for file, image in added:
                self._hot.offer(file.key, image)
        self._stats.add(folded_segments=len(segments))
        return len(segments)

    def _split(self, dataset: Dataset, segments: list[StoredFile]) -> dict[_Target, list[pa.Table]]:
        """Return the segments' rows by the partition they belong to, older commits first."""
        parts: dict[_Target, list[pa.Table]] = defaultdict(list)
        asked = _asked(segments)
        for segment in segments:
            for target, table in _by_target(dataset, _standing(dataset, self._image(dataset, segment), segment.rank, asked)):
                parts[target].append(table)
        return parts

    def _rewrite(
        self, dataset: Dataset, target: _Target, tables: list[pa.Table], old: list[StoredFile], segments: list[StoredFile]
    ) -> tuple[StoredFile, Image] | None:
        """Write the next generation of one partition: what stands of its rows, with *tables* over them; None without any."""
        present = (self._image(dataset, file) for file in old if (file.period, file.bucket) == target)
        base = [_standing(dataset, image, 0, _asked(segments)).table for image in present]
        image = build_image(dataset, merge_tables(dataset, [*base, *tables]))
        if not image.table.num_rows:
            return None
        period, bucket = target
        return self._store.publish(dataset, image, "partition", sync=True, period=period, bucket=bucket), image

    def _image(self, dataset: Dataset, file: StoredFile) -> Image:
        lease = self._hot.lease(file.key)
        if lease is None:
            return self._cold.whole(dataset, file)
        with lease:
            return lease.image


def segments_of(state: DatasetState) -> list[StoredFile]:
    """Return the journal of one dataset, in commit order."""
    return sorted((file for file in state.files if file.kind == "segment"), key=lambda file: file.rank)


def _prefix(state: DatasetState) -> list[StoredFile]:
    """Return the oldest segments that fit in memory together, at least one."""
    chosen: list[StoredFile] = []
    size = 0
    for segment in segments_of(state):
        size += segment.memory_bytes
        if chosen and size > FOLD_BYTES:
            break
        chosen.append(segment)
    return chosen


def _replaces_rows(segments: list[StoredFile], partition: StoredFile) -> bool:
    """Return whether a fill among *segments* asked for cells of which *partition* may hold rows."""
    return any(
        cells.first <= partition.last_day
        and cells.last >= partition.first_day
        and partition.share_of(segment.symbols if cells.symbols is None else cells.symbols)
        for segment in segments
        for cells in segment.asked
    )


def _asked(segments: list[StoredFile]) -> _Asked:
    """Return, per symbol, the sessions that fills asked for, with their commits."""
    asked: _Asked = defaultdict(list)
    for segment in segments:
        for symbol, days, rank in segment.asked_cells():
            asked[symbol].append((days, rank))
    return asked


def _standing(dataset: Dataset, image: Image, rank: int, asked: _Asked) -> Image:
    """Return the rows of *image* in cells that no later fill asked for: what that did not bring again is no more."""
    keep = np.ones(image.table.num_rows, dtype=bool)
    for symbol, (start, stop) in image.runs.items():
        days = image.sessions[start:stop]
        for cells, seq in asked.get(symbol, ()):
            if seq > rank and cells.first <= days[-1] and cells.last >= days[0]:
                keep[start + days.searchsorted(cells.first) : start + days.searchsorted(cells.last, "right")] = False
    if keep.all():
        return image
    rows = pl.DataFrame(pl.from_arrow(image.table)).filter(pl.Series(keep))
    return build_image(dataset, rows.to_arrow(compat_level=pl.CompatLevel.newest()).cast(image.table.schema))


def _by_target(dataset: Dataset, image: Image) -> Iterator[tuple[_Target, pa.Table]]:
    """Yield the rows of *image* by period and bucket; order within is kept."""
    days, places = np.unique(image.sessions, return_inverse=True)
    periods = np.array([dataset.period_of(from_day_number(int(day))) for day in days], dtype=object)
    buckets = {symbol: bucket_of(symbol, dataset.buckets) for symbol in image.symbols}
    rows_bucket = np.repeat([buckets[symbol] for symbol in image.symbols], np.diff(image.offsets))
    row_periods = periods[places]
    frame = pl.DataFrame(pl.from_arrow(image.table))
    for period in dict.fromkeys(periods):
        for bucket in sorted(set(buckets.values())):
            chosen = frame.filter(pl.Series((row_periods == period) & (rows_bucket == bucket)))
            if len(chosen):
                rows = chosen.to_arrow(compat_level=pl.CompatLevel.newest()).cast(dataset.schema)
                yield (str(period), bucket), rows


def bucket_of(symbol: str, buckets: int) -> int:
    """Return the bucket of *symbol*: xxh3 of its name, the same in every process and release."""
    return int(xxhash.xxh3_64_intdigest(symbol.encode()) % buckets)


class Compactor:
    """The thread that folds: at once where a journal is full, else in a quiet moment."""

    def __init__(self, store: Store, compaction: Compaction, most_segments: int, idle_seconds: float) -> None:
        self._store, self._compaction = store, compaction
        self._most_segments, self._idle_seconds = most_segments, idle_seconds
        self._commits: set[str] = set()
        self._woken = threading.Condition()
        self._closing = False
        store.catalogue.on_commit(self._committed)
        self._thread = threading.Thread(target=self._run, name="compactor", daemon=True)
        self._thread.start()

    def _committed(self, dataset: str) -> None:
        with self._woken:
            self._commits.add(dataset)
            self._woken.notify()

    def _run(self) -> None:
        waiting: set[str] = set()
        while True:
            with self._woken:
                quiet = not self._woken.wait_for(lambda: self._closing or self._commits, self._idle_seconds if waiting else None)
                if self._closing:
                    return
                waiting |= self._commits
                self._commits.clear()
            due = {name for name in waiting if quiet or self._is_full(name)}
            waiting -= due
            for name in due:
                self._fold(name)

    def _is_full(self, dataset: str) -> bool:
        state = self._store.catalogue.state(dataset)
        segments = segments_of(state) if state else []
        return len(segments) >= self._most_segments or sum(segment.memory_bytes for segment in segments) >= FULL_BYTES

    def _fold(self, dataset: str) -> None:
        if self._closing or self._store.catalogue.state(dataset) is None:
            return
        try:
            self._compaction.compact(dataset)
        except Exception:
            log.exception("compaction failed; it is tried again after the next commit", dataset=dataset)

    def close(self) -> None:
        """Stop after the fold under way."""
        with self._woken:
            self._closing = True
            self._woken.notify()
        self._thread.join()

"""The next generation of one period's partitions, written group by group: as many files at once as it has buckets."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from fletching_schemas import Dataset
from fletching_server import disk
from fletching_server.calendars import day_number
from fletching_server.failpoints import Purpose
from fletching_server.importing.runs import NEWEST
from fletching_server.parquet import ParquetFile
from fletching_server.snapshot import StoredFile
from fletching_server.store import Store, footer_facts, new_id
from fletching_server.tiers import bucket_of

_INLINE_BYTES: Final = 12  # what a view holds itself
_ENCODERS: Final = 2  # files of one period at a time


@dataclass
class _Facts:
    """What a file's record tells, as it grows."""

    rows: int = 0
    memory_bytes: int = 0
    first_day: int = 1 << 31
    last_day: int = -(1 << 31)
    symbols: dict[str, None] = field(default_factory=dict)

    def add(self, dataset: Dataset, frame: pl.DataFrame) -> None:
        sessions = frame[dataset.session]
        days = sessions if sessions.dtype == pl.Date else sessions.dt.date()
        self.rows += frame.height
        self.memory_bytes += arrow_bytes(frame)
        self.first_day = min(self.first_day, day_number(days.min()))  # type: ignore[arg-type]
        self.last_day = max(self.last_day, day_number(days.max()))  # type: ignore[arg-type]
        self.symbols |= dict.fromkeys(frame[dataset.symbol].rle().struct.field("value").to_list())


def arrow_bytes(frame: pl.DataFrame) -> int:
    """Return what *frame* takes as Arrow in memory: slots, bitmaps where there are nulls, and text beyond its slots."""
    total = 0
    for column in frame:
        total += -(-frame.height // 8) if column.null_count() else 0
        if column.dtype == pl.String:
            lengths = column.str.len_bytes()
            total += 16 * frame.height + int(lengths.filter(lengths > _INLINE_BYTES).sum())
        elif column.dtype == pl.Boolean:
            total += -(-frame.height // 8)
        else:
            total += frame.height * column.head(1).to_physical().to_numpy().dtype.itemsize
    return total


class _Partition:
    """One file on its way."""

    def __init__(self, store: Store, dataset: Dataset, period: str, bucket: int, opened: ExitStack) -> None:
        self._dataset, self._period, self._bucket = dataset, period, bucket
        self._id = new_id()
        self._path = f"data/{dataset.name}/{period}/{dataset.name}-{period}-{bucket}-{self._id}.parquet"
        self._file = opened.enter_context(disk.creating(store.root / self._path, sync=True, purpose=Purpose.IMPORT))
        self._parquet = opened.enter_context(ParquetFile(dataset, self._file))
        self._facts = _Facts()

    def add(self, frame: pl.DataFrame) -> None:
        self._parquet.add(frame.to_arrow(compat_level=NEWEST).cast(self._dataset.schema))
        self._facts.add(self._dataset, frame)

    def finish(self) -> None:
        facts = self._facts
        placed = {"kind": "partition", "period": self._period, "bucket": self._bucket, "through": ""}
        days = {"first_day": facts.first_day, "last_day": facts.last_day}
        self._parquet.tell(footer_facts(self._dataset, self._id, **placed, **days, asked=None))

    def record(self) -> StoredFile:
        """Return the file's record, once it has appeared."""
        facts = self._facts
        return StoredFile(
            self._id,
            self._dataset.name,
            "partition",
            self._period,
            self._bucket,
            self._path,
            self._file.digest,
            self._file.size,
            max(facts.memory_bytes, 1),
            facts.rows,
            facts.first_day,
            facts.last_day,
            tuple(facts.symbols),
        )


class PeriodWriter:
    """Takes the groups of one period in order; ``files`` are there after the block of ``writing``."""

    def __init__(self, store: Store, dataset: Dataset, period: str, opened: ExitStack) -> None:
        self._store, self._dataset, self._period, self._opened = store, dataset, period, opened
        self._partitions: dict[int, _Partition] = {}
        self._encoders = opened.enter_context(ThreadPoolExecutor(_ENCODERS))
        self.files: tuple[StoredFile, ...] = ()

    def add(self, frame: pl.DataFrame) -> None:
        """Append *frame*, each row to the file of its symbol's bucket."""
        taken = [self._encoders.submit(self._partition(bucket).add, part) for bucket, part in self._by_bucket(frame)]
        for future in taken:
            future.result()

    def _partition(self, bucket: int) -> _Partition:
        if bucket not in self._partitions:
            self._partitions[bucket] = _Partition(self._store, self._dataset, self._period, bucket, self._opened)
        return self._partitions[bucket]

    def _by_bucket(self, frame: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
        if self._dataset.buckets == 1:
            if frame.height:
                yield 0, frame
            return
        runs = frame[self._dataset.symbol].rle().struct.unnest()
        buckets = np.array([_bucket_of(symbol, self._dataset.buckets) for symbol in runs["value"]], np.int64)
        rows = np.repeat(buckets, runs["len"].to_numpy())
        for bucket in np.unique(buckets):
            yield int(bucket), frame.filter(pl.Series(rows == bucket))

    def finish(self) -> None:
        """Complete the files."""
        for partition in self._partitions.values():
            partition.finish()

    def close(self) -> None:
        """Take the records; the files have appeared."""
        self.files = tuple(partition.record() for _, partition in sorted(self._partitions.items()))


_bucket_of = lru_cache(maxsize=1 << 16)(bucket_of)


@contextmanager
def writing(store: Store, dataset: Dataset, period: str) -> Iterator[PeriodWriter]:
    """Yield what writes the partitions of *period*: synced, and there whole when the block ends, or not at all."""
    with ExitStack() as opened:
        writer = PeriodWriter(store, dataset, period, opened)
        yield writer
        writer.finish()
    writer.close()

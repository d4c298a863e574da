"""Writing partitions anew with the rows of segments in them, one partition in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server.calendars import from_day_number
from fletching_server.gathering import Gathering
from fletching_server.image import Image, build_image
from fletching_server.pieces import merge_tables
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.standing import AskedCells, asked_cells, standing
from fletching_server.store import Store
from fletching_server.tiers import bucket_of

_Target = tuple[str, int]  # period and bucket


class Folding:
    """Writes partitions; committing them is another's."""

    def __init__(self, store: Store, gathering: Gathering) -> None:
        self._store, self._gathering = store, gathering

    def fold(
        self, state: DatasetState, segments: Sequence[StoredFile], old: list[StoredFile]
    ) -> Iterator[tuple[StoredFile, Image]]:
        """Yield the next generation of every partition that *segments* touch, with its rows; *old* gets those before it."""
        asked = asked_cells(segments)
        parts = self._split(state.dataset, segments, asked)
        for file in state.files:
            target = (file.period, file.bucket)
            if file.kind == "partition" and (target in parts or _replaces_rows(segments, file)):
                old.append(file)
                parts.setdefault(target, [])
        before = {(file.period, file.bucket): file for file in old}
        for target in list(parts):
            yield from self._rewritten(state.dataset, target, parts.pop(target), before.get(target), asked)

    def _split(self, dataset: Dataset, segments: Sequence[StoredFile], asked: AskedCells) -> dict[_Target, list[pa.Table]]:
        """Return the segments' rows by the partition they belong to, older commits first."""
        parts: dict[_Target, list[pa.Table]] = defaultdict(list)
        for segment in segments:
            image = standing(dataset, self._gathering.whole(dataset, segment), segment.rank, asked)
            for target, table in _by_target(dataset, image):
                parts[target].append(table)
        return parts

    def _rewritten(
        self, dataset: Dataset, target: _Target, tables: list[pa.Table], before: StoredFile | None, asked: AskedCells
    ) -> Iterator[tuple[StoredFile, Image]]:
        """Yield the next generation of one partition: what counts of its rows, with *tables* over them; nothing without any."""
        base = [] if before is None else [standing(dataset, self._gathering.whole(dataset, before), 0, asked).table]
        image = build_image(dataset, merge_tables(dataset, [*base, *tables]))
        if image.table.num_rows:
            period, bucket = target
            yield self._store.publish(dataset, image, "partition", sync=True, period=period, bucket=bucket), image


def _replaces_rows(segments: Sequence[StoredFile], partition: StoredFile) -> bool:
    """Return whether a fill among *segments* asked for cells of which *partition* may hold rows."""
    return any(
        cells.first <= partition.last_day
        and cells.last >= partition.first_day
        and partition.share_of(segment.symbols if cells.symbols is None else cells.symbols)
        for segment in segments
        for cells in segment.asked
    )


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

"""From places in mapped images to rows: long runs as they lie, many short ones gathered once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import polars as pl
import pyarrow as pa

from fletching._forking import in_forked_child
from fletching._frames import framed
from fletching._images import MappedImage

LONG_ROWS: Final = 16_384  # a run of so many rows stays a piece of its own; shorter ones would make frames of many pieces
_BATCH_ROWS: Final = 131_072


@dataclass(frozen=True)
class Run:
    """Consecutive rows of an answer, in one image."""

    image: MappedImage
    start: int
    rows: int


@dataclass(frozen=True)
class Layer:
    """Some columns of an answer, and where all of its rows lie, in order."""

    names: tuple[str, ...]
    runs: tuple[Run, ...]

    def frame(self) -> pl.DataFrame:
        """Return the rows as a frame."""
        frames = [self._gathered(block) if len(block) > 1 else self._whole(block[0]) for block in blocks(self.runs)]
        return frames[0] if len(frames) == 1 else pl.concat(frames, rechunk=False)

    def tables(self, most_rows: int | None = None) -> Iterator[pa.Table]:
        """Yield the rows as tables; what has to be gathered is gathered up to *most_rows* at a time (None: all at once)."""
        for block in blocks(self.runs, most_rows):
            found = [run.image.table.select(self.names).slice(run.start, run.rows) for run in block]
            yield found[0] if len(found) == 1 else pa.concat_tables(found).combine_chunks()

    def _gathered(self, block: Sequence[Run]) -> pl.DataFrame:
        """Return short runs as one piece: gathered image by image, then put into their order."""
        by_image: dict[int, list[int]] = defaultdict(list)
        for place, run in enumerate(block):
            by_image[id(run.image)].append(place)
        found = [self._taken([block[place] for place in places]) for places in by_image.values()]
        if len(found) == 1:
            return found[0]
        grouped = [place for places in by_image.values() for place in places]
        starts = dict(zip(grouped, accumulate((block[place].rows for place in grouped), initial=0), strict=False))
        order = _ranges((starts[place], run.rows) for place, run in enumerate(block))
        return pl.concat(found, rechunk=True)[order]

    def _taken(self, runs: Sequence[Run]) -> pl.DataFrame:
        return self._columns(runs[0].image.frame)[_ranges((run.start, run.rows) for run in runs)]

    def _whole(self, run: Run) -> pl.DataFrame:
        return self._columns(run.image.frame).slice(run.start, run.rows)

    def _columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return *frame* with this layer's columns; ``select`` would ask the query engine, which takes ten times as long."""
        return pl.DataFrame([frame.get_column(name) for name in self.names])


def blocks(runs: Iterable[Run], most_rows: int | None = None) -> Iterator[list[Run]]:
    """Yield *runs* in order: long ones alone, short ones that follow each other together, up to *most_rows* rows."""
    short: list[Run] = []
    waiting = 0
    for run in runs:
        if short and (run.rows >= LONG_ROWS or (most_rows is not None and waiting >= most_rows)):
            yield short
            short, waiting = [], 0
        if run.rows >= LONG_ROWS:
            yield [run]
        else:
            short.append(run)
            waiting += run.rows
    if short:
        yield short


def as_frame(columns: Sequence[str], layers: Sequence[Layer]) -> pl.DataFrame:
    """Return all rows as a frame with *columns*, in that order."""
    if in_forked_child():  # gathering would wait for threads of Polars that are not there
        return framed(as_table(columns, layers))
    frames = [layer.frame() for layer in layers]
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="horizontal").select(columns)


def as_table(columns: Sequence[str], layers: Sequence[Layer]) -> pa.Table:
    """Return all rows as a table with *columns*, in that order."""
    return _beside(columns, [pa.concat_tables(list(layer.tables())) for layer in layers])


def as_batches(columns: Sequence[str], layers: Sequence[Layer]) -> Iterator[pa.RecordBatch]:
    """Yield all rows in batches; at most one batch is gathered at a time. The runs of all *layers* have the same rows."""
    for tables in zip(*(layer.tables(_BATCH_ROWS) for layer in layers), strict=True):
        yield from _beside(columns, tables).to_batches(max_chunksize=_BATCH_ROWS)


def _beside(columns: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    fields = {item.name: item for table in tables for item in table.schema}
    found = {name: table.column(name) for table in tables for name in table.column_names}
    schema = pa.schema([fields[name] for name in columns], tables[0].schema.metadata)
    return pa.Table.from_arrays([found[name] for name in columns], schema=schema)


def _ranges(spans: Iterable[tuple[int, int]]) -> pl.Series:
    """Return the numbers of all (start, length) *spans*, one after the other."""
    starts, lengths = zip(*spans, strict=True)
    first = pl.Series(starts, dtype=pl.UInt32)
    return pl.int_ranges(first, first + pl.Series(lengths, dtype=pl.UInt32), dtype=pl.UInt32, eager=True).explode()

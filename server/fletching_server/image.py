"""A stored file in memory: one Arrow table in key order, and where each symbol's rows lie.

The index makes a point read a slice: rows of a symbol between two sessions are found by two binary searches in the
column itself, and no byte is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server.batches import has_text
from fletching_server.sealed import Sealed, seal

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]] | np.ndarray[tuple[int], np.dtype[np.int32]]

_MICROS_A_DAY: Final = 86_400_000_000


@dataclass(frozen=True)
class Window:
    """Which rows of a symbol are wanted: sessions as day numbers, instants as microseconds since 1970, both inclusive."""

    first_day: int
    last_day: int
    first_instant: int | None = None
    last_instant: int | None = None


@dataclass(frozen=True)
class Image:
    """A table sorted by symbol and time, one chunk per column, with its symbol index.

    ``placing`` names its session and time columns (none: nothing is searched in it). Where it is ``sealed`` the table lies in
    memory that other processes may map.
    """

    table: pa.Table
    symbols: tuple[str, ...]
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
    sessions: Numbers
    times: Numbers
    nbytes: int
    runs: dict[str, tuple[int, int]] = field(repr=False)
    days: tuple[int, int]
    placing: tuple[str, str] | None = None
    sealed: Sealed | None = field(default=None, repr=False, compare=False)
    _projections: dict[tuple[str, ...], pa.Table] = field(default_factory=dict, repr=False, compare=False)
    _batches: dict[tuple[str, ...], pa.RecordBatch] = field(default_factory=dict, repr=False, compare=False)
    _row_bytes: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def first_day(self) -> int:
        """The first session in it, as a day number; the image must have rows."""
        return self.days[0]

    @property
    def last_day(self) -> int:
        """The last session in it, as a day number; the image must have rows."""
        return self.days[1]

    @cached_property
    def has_text(self) -> bool:
        """Whether a column refers to text that lies outside of its own slots: see ``batches.tight``."""
        return has_text(self.table)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return the table with *names* only, in that order, without copying; remembered, as streams ask it often."""
        key = tuple(names)
        if (known := self._projections.get(key)) is None:
            known = self._projections[key] = self.table.select(list(key))
        return known

    def batch(self, names: Sequence[str]) -> pa.RecordBatch:
        """Return the rows, of which there are some, as ``columns`` does: slices of a batch cost half of those of a table."""
        key = tuple(names)
        if (known := self._batches.get(key)) is None:
            known = self._batches[key] = self.columns(key).to_batches()[0]
        return known

    def row_bytes(self, names: Sequence[str]) -> float:
        """Return what a row of *names* takes, on average over the image; remembered, as counting buffers is slow."""
        key = tuple(names)
        if (known := self._row_bytes.get(key)) is None:
            known = self._row_bytes[key] = self.columns(key).nbytes / max(self.table.num_rows, 1)
        return known

    def find(self, symbol: str, window: Window) -> tuple[int, int]:
        """Return the row range (start, stop) of *symbol* in *window*; empty where it has none."""
        start, stop = self.runs.get(symbol, (0, 0))
        if start == stop:
            return start, start
        days = self.sessions[start:stop]
        low = int(days.searchsorted(window.first_day)) if days[0] < window.first_day else 0
        high = int(days.searchsorted(window.last_day, "right")) if days[-1] > window.last_day else stop - start
        if window.first_instant is not None:
            low = max(low, int(self.times[start:stop].searchsorted(window.first_instant)))
        if window.last_instant is not None:
            high = min(high, int(self.times[start:stop].searchsorted(window.last_instant, "right")))
        return start + low, start + max(low, high)


def build_image(dataset: Dataset, table: pa.Table, *, checked: bool = False) -> Image:
    """Return *table* as an image; it must have the dataset's key columns and be sorted, which is checked.

    *checked* says that it was: a stored file was an image when it was written, and its digest is that of then.
    """
    table = _owned(table.combine_chunks(), dataset.time).replace_schema_metadata(dataset.schema.metadata)
    sessions = session_days(table, dataset.session)
    times = instants(table, dataset.time)
    symbols, offsets = _runs(table.column(dataset.symbol))
    if not checked:
        _check_order(dataset, symbols, offsets, sessions, times)
    ends = offsets[1:].tolist()
    runs = dict(zip(symbols, zip(offsets[:-1].tolist(), ends, strict=True), strict=True))
    days = (int(sessions.min()), int(sessions.max())) if len(sessions) else (0, -1)
    size = max(table.get_total_buffer_size(), 1)
    return Image(table, symbols, offsets, sessions, times, size, runs, days, (dataset.session, dataset.time))


def shared(image: Image) -> Image:
    """Return *image* copied into sealed memory, with its index; as it is where the system refuses that."""
    if (sealed := seal(image.table)) is None:
        return image
    sessions, times = image.sessions, image.times
    if image.placing is not None:  # these look into the columns, and would hold on to the old ones
        session, time = image.placing
        sessions, times = session_days(sealed.table, session), instants(sealed.table, time)
    found = replace(image, table=sealed.table, sessions=sessions, times=times, nbytes=sealed.nbytes, sealed=sealed)
    return replace(found, _projections={}, _batches={}, _row_bytes={})


def unindexed_image(table: pa.Table) -> Image:
    """Return *table*, which owns its buffers, as an image that is held and counted, and in which nothing is searched."""
    nothing = np.zeros(0, np.int64)
    return Image(table, (), np.zeros(1, np.int64), nothing, nothing, max(table.get_total_buffer_size(), 1), {}, (0, -1))


def _owned(table: pa.Table, time: str) -> pa.Table:
    """Return *table* without the rest of a larger one that it was cut from: cost is bytes owned, not bytes visible."""
    column = table.column(time)  # of fixed width, so what it owns beyond its rows is the rest
    if column.get_total_buffer_size() <= 2 * column.nbytes:
        return table
    return pa.Table.from_arrays([copied(column.combine_chunks()) for column in table.columns], schema=table.schema)


def copied(column: pa.Array) -> pa.Array:
    """Return *column* in memory of its own, without the rest of what it was cut from."""
    if column.type == pa.string_view():  # copying views alone would keep all the text
        return column.cast(pa.string()).cast(column.type)
    return pa.concat_arrays([column, column.slice(0, 0)])


def _runs(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the symbols in order of appearance and the row at which each begins, with the row count at the end."""
    if not len(column):
        return (), np.zeros(1, dtype=np.int64)
    lengths = pl.from_arrow(column).rle().struct.unnest()  # type: ignore[union-attr]
    offsets = np.concatenate([[0], np.cumsum(lengths["len"].to_numpy(), dtype=np.int64)])
    return tuple(lengths["value"].to_list()), offsets


def _check_order(
    dataset: Dataset,
    symbols: tuple[str, ...],
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]],
    sessions: Numbers,
    times: Numbers,
) -> None:
    """A binary search in unsorted rows answers wrongly and silently, so this is checked once, when an image is built."""
    if list(symbols) != sorted(set(symbols)):
        raise ValueError(f"{dataset.name}: rows are not sorted by {dataset.symbol}")
    inside = np.ones(max(len(times) - 1, 0), dtype=bool)
    inside[offsets[1:-1] - 1] = False
    if (np.diff(times)[inside] < 0).any() or (np.diff(sessions)[inside] < 0).any():
        raise ValueError(f"{dataset.name}: rows of a symbol are not sorted by {dataset.time}")


def instants(table: pa.Table, time: str) -> Numbers:
    """Return the time column as integers without copying: days for dates, microseconds since 1970 for timestamps."""
    column = table.column(time).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column.view(pa.int32() if pa.types.is_date32(column.type) else pa.int64()).to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]


def session_days(table: pa.Table, session: str) -> Numbers:
    """Return the session of each row as a day number; where no column says it, the day in UTC."""
    numbers = instants(table, session)
    if pa.types.is_date32(table.schema.field(session).type):
        return numbers
    return (numbers // _MICROS_A_DAY).astype(np.int32)

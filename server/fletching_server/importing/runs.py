"""Sorted runs: the rows of one chunk by period, symbol and time, as a file of columns that can be mapped piece by piece.

The symbol's column is not in it: the index says which rows are whose. Rows of a tape are in the order of time already, so
a stable sort by symbol is all that most chunks need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server.calendars import from_day_number
from fletching_server.image import copied

INDEX: Final = pl.Schema({"period": pl.String, "symbol": pl.String, "start": pl.Int64, "rows": pl.Int64})
NEWEST: Final = pl.CompatLevel.newest()

Codes = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True)
class Run:
    """Sorted rows, without the symbol's column, and their *index*: which rows are of which period and symbol, in order."""

    rows: pl.DataFrame
    index: pl.DataFrame


def sorted_run(dataset: Dataset, frame: pl.DataFrame) -> Run:
    """Return *frame* (in the dataset's columns, others allowed) as a run; rows of equal key stay in their order."""
    periods, period_codes = _periods(dataset, frame[dataset.session])
    names = frame[dataset.symbol].unique().sort()
    symbol_codes = frame[dataset.symbol].cast(pl.Enum(names)).to_physical().to_numpy()
    codes = narrow(period_codes * np.int64(len(names)) + symbol_codes, len(periods) * len(names))
    inner = [name for name in dataset.sort_keys[1:] if name in frame.columns]
    rows = frame.drop(dataset.symbol)
    order = ordering(codes, rows.select(inner))
    if order is not None:
        rows, codes = rows[order], codes[order]
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])) if len(codes) else np.zeros(0, np.int64)
    places = codes[starts].astype(np.int64)
    index = pl.DataFrame(
        {
            "period": pl.Series(periods, dtype=pl.String).gather(places // max(len(names), 1)),
            "symbol": names.gather(places % max(len(names), 1)),
            "start": starts,
            "rows": np.diff(np.append(starts, len(codes))),
        },
        schema=INDEX,
    )
    return Run(rows, index)


def _periods(dataset: Dataset, sessions: pl.Series) -> tuple[list[str], Codes | np.int64]:
    """Return the periods of *sessions*, and the place among them of each row's."""
    days = sessions if sessions.dtype == pl.Date else sessions.dt.date()
    numbers = days.to_physical().to_numpy()
    if not len(numbers):
        return [], np.int64(0)
    first = int(numbers.min())
    named = [dataset.period_of(from_day_number(day)) for day in range(first, int(numbers.max()) + 1)]
    periods = list(dict.fromkeys(named))
    if len(periods) == 1:
        return periods, np.int64(0)
    place_of = {period: place for place, period in enumerate(periods)}
    return periods, np.array([place_of[name] for name in named], np.int64)[numbers - first]


def narrow(codes: Codes, count: int) -> Codes:
    """Return *codes*, all less than *count*, in the narrowest type: a stable sort of 16 bits counts instead of comparing."""
    return codes.astype(np.uint16 if count <= 1 << 16 else np.uint32 if count <= 1 << 32 else np.int64)


def ordering(codes: Codes, keys: pl.DataFrame) -> Codes | None:
    """Return the order of rows by *codes* and then *keys*, equal ones as they come; None where they are in order."""
    ascends = bool((codes[1:] >= codes[:-1]).all())
    order = None if ascends else np.argsort(codes, kind="stable")
    sorted_codes, sorted_keys = (codes, keys) if order is None else (codes[order], keys[order])
    if not _goes_back(sorted_codes, sorted_keys):
        return order
    if keys.width == 1 and (packed := _packed(sorted_codes, sorted_keys.to_series())) is not None:
        inner = np.argsort(packed, kind="stable")  # finds the ascending stretches, and merges these
    else:
        by = sorted_keys.with_columns(pl.Series("#code", sorted_codes))
        inner = by.select(pl.arg_sort_by("#code", *keys.columns, maintain_order=True)).to_series().to_numpy()
    return inner if order is None else order[inner]


def _goes_back(codes: Codes, keys: pl.DataFrame) -> bool:
    """Return whether a row's *keys* are less than those of the row before it, of the same code."""
    if len(codes) < 2 or not keys.width:
        return False
    less = pl.zeros(len(codes) - 1, pl.Boolean, eager=True)
    for column in reversed(keys.get_columns()):
        now, before = column.slice(1), column.slice(0, len(column) - 1)
        less = (now < before) | ((now == before) & less)
    return bool((less & pl.Series(codes[1:] == codes[:-1])).any())


def _packed(codes: Codes, key: pl.Series) -> Codes | None:
    """Return code and time in one number; None where they do not fit."""
    if not key.dtype.is_temporal():
        return None
    numbers = key.to_physical().to_numpy().astype(np.int64)
    lowest = int(numbers.min())
    bits = (int(numbers.max()) - lowest).bit_length()
    if bits + int(codes.max()).bit_length() > 62:
        return None
    return (codes.astype(np.int64) << np.int64(bits)) | (numbers - lowest)


def encoded(frame: pl.DataFrame, facts: dict[bytes, bytes] | None = None) -> pa.Buffer:
    """Return *frame* as an Arrow file that can be mapped, with *facts* in its schema."""
    table = frame.rechunk().to_arrow(compat_level=NEWEST).replace_schema_metadata(facts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def slice_of(path: Path, start: int, rows: int) -> pl.DataFrame:
    """Return so many rows of the file at *path*, copied: what stays mapped would be counted as memory, by whole large pages."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all().slice(start, rows)
        columns = [copied(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)) for column in table.columns]
        own = pa.Table.from_arrays(columns, schema=table.schema)
    return pl.DataFrame(pl.from_arrow(own))

"""Settled rows that a source delivers once more: which changed, with both values, and which came back as they were. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server.calendars import day_number
from fletching_server.spans import Days

MOST_RECORDED: Final = 10_000  # changes kept of one fill; a vendor that rewrites all history is told by the count


@dataclass(frozen=True)
class Restated:
    """One row that came back changed; None where it was not there, or is not any more. Values are JSON objects."""

    symbol: str
    session: int
    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Comparison:
    """What a second look at settled cells showed: the changed rows (at most ``MOST_RECORDED``) and how many there are."""

    changes: tuple[Restated, ...] = ()
    count: int = 0

    def changed(self, symbol: str, session: int) -> bool:
        """Return whether a row of that cell changed; a comparison that was cut short answers yes for every cell."""
        cut = self.count > len(self.changes)
        return cut or any(change.symbol == symbol and change.session == session for change in self.changes)


def compare(dataset: Dataset, before: pa.Table, after: pa.Table, settled: Mapping[str, Sequence[Days]]) -> Comparison:
    """Return how *after* differs from *before* in the *settled* sessions of each symbol."""
    held, fresh = (_within(dataset, table, settled) for table in (before, after))
    if held.equals(fresh):
        return Comparison()
    keys, names = list(dataset.keys), [name for name in dataset.schema.names if name not in dataset.keys]
    both = held.with_columns(pl.lit(value=True).alias("__held")).join(
        fresh.with_columns(pl.lit(value=True).alias("__fresh")), on=keys, how="full", coalesce=True, suffix="__after"
    )
    differs = [pl.col(name).ne_missing(pl.col(f"{name}__after")) for name in names]
    changed = both.filter(pl.any_horizontal(pl.col("__held").is_null(), pl.col("__fresh").is_null(), *differs)).sort(keys)
    return Comparison(tuple(_told(dataset, changed.head(MOST_RECORDED), names)), changed.height)


def _within(dataset: Dataset, table: pa.Table, settled: Mapping[str, Sequence[Days]]) -> pl.DataFrame:
    """Return the rows of *table* in settled cells, as Polars sees them."""
    frame = pl.DataFrame(pl.from_arrow(table))
    symbol, session = pl.col(dataset.symbol), pl.col(dataset.session).cast(pl.Date).to_physical()
    inside = [(symbol == name) & session.is_between(run.first, run.last) for name, runs in settled.items() for run in runs]
    return frame.filter(pl.any_horizontal(*inside)) if inside else frame.clear()


def _told(dataset: Dataset, changed: pl.DataFrame, names: Sequence[str]) -> Iterator[Restated]:
    session = dataset.session
    for row in changed.iter_rows(named=True):
        key = {name: row[name] for name in dataset.keys}
        before = {name: row[name] for name in names} if row["__held"] else None
        after = {name: row[f"{name}__after"] for name in names} if row["__fresh"] else None
        if before and after:  # only what differs: both values, side by side
            names_changed = [name for name in names if before[name] != after[name]]
            before, after = ({name: values[name] for name in names_changed} for values in (before, after))
        day = row[session] if session in key else row[session] or row[f"{session}__after"]
        told = (None if values is None else _json(values) for values in (before, after))
        yield Restated(row[dataset.symbol], _day(day), _json(key), *told)


def _day(moment: Any) -> int:
    return day_number(moment.date() if hasattr(moment, "date") else moment)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, default=str, ensure_ascii=False)


def kept(dataset: Dataset, before: pa.Table, after: pa.Table, settled: Mapping[str, Sequence[Days]]) -> pa.Table:
    """Return *after* with the settled cells as *before* has them, sorted by key."""
    fresh = pl.DataFrame(pl.from_arrow(after))
    inside = _within(dataset, after, settled).select(dataset.keys)
    rest = fresh.join(inside, on=list(dataset.keys), how="anti") if inside.height else fresh
    rows = pl.concat([rest, _within(dataset, before, settled)]).sort(dataset.sort_keys)
    return rows.to_arrow(compat_level=pl.CompatLevel.newest()).cast(dataset.schema)

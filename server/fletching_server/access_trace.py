"""A store's access log as a trace: what `fletching replay` plays back to judge policies on one's own reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas.errors import StoreError
from fletching_server.access_files import AccessFiles

TRACE: Final = pa.schema(
    [
        ("ts", pa.timestamp("us", tz="UTC")),
        ("principal", pa.string()),
        ("profile", pa.string()),
        ("dataset", pa.string()),
        ("bucket", pa.string()),
        ("session", pa.date32()),
        ("bytes", pa.int64()),
        ("request_id", pa.string()),
    ]
)
_COLUMNS: Final = ("at", "request_id", "principal", "profile", "dataset", "last", "touched")


def trace_of(store: Path) -> pa.Table:
    """Return a row per read and partition that it touched, by time, from the access log of the store in *store*.

    A replay asks whether a partition would have been in memory, so *bucket* is the partition's (and not the group of symbols
    that was asked for), and *session* the last day of its period, but not after the day of the read: the partition that still
    grows is another one with each day, as its rows are, and two reads on one day of different ranges touch the same one. Rows
    that lay in the journal have the bucket ``journal-N`` and the last wanted session. Reads alike that came too fast to be
    logged one by one are one row: in a replay they would be hits and nothing else.

    The store may be open, by whomever; what was noted in the last second is not there yet. Raises ``StoreError`` where there
    is no log.
    """
    files = AccessFiles(store / "access")
    if not files.days():
        raise StoreError(f"{store} has no access log: read from it with access_log on, or name another store")
    frames = [_rows(batch) for batch in _batches(files)]
    empty = pl.DataFrame(pl.from_arrow(TRACE.empty_table()))
    return pl.concat([empty, *frames]).sort("ts", maintain_order=True).to_arrow().cast(TRACE)


def _batches(files: AccessFiles) -> Iterator[pa.RecordBatch]:
    for day in files.days():
        yield from files.read(day, "events", _COLUMNS)


def _rows(batch: pa.RecordBatch) -> pl.DataFrame:
    events = pl.DataFrame(pl.from_arrow(batch)).filter(pl.col("touched").list.len() > 0)
    parts = events.explode("touched", empty_as_null=True, keep_nulls=True).unnest("touched")
    in_journal = pl.col("period") == ""
    day = pl.col("at").dt.date()
    ends = pl.when(in_journal).then("last").otherwise(_last_day(pl.col("period")))
    bucket = pl.col("bucket").cast(pl.String)
    return parts.select(
        ts="at",
        principal="principal",
        profile="profile",
        dataset="dataset",
        bucket=pl.when(in_journal).then(pl.lit("journal-") + bucket).otherwise(bucket),
        session=pl.min_horizontal(ends, day),
        bytes="bytes",
        request_id="request_id",
    )


def _last_day(period: pl.Expr) -> pl.Expr:
    """Return the last day of a period as partitions name it: a year, a month or a day."""
    length = period.str.len_chars()
    day = period.str.to_date("%Y-%m-%d", strict=False)
    month = (period + "-01").str.to_date("%Y-%m-%d", strict=False).dt.month_end()
    year = (period + "-12-31").str.to_date("%Y-%m-%d", strict=False)
    return pl.when(length == 4).then(year).when(length == 7).then(month).otherwise(day)

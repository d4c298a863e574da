"""Quotes in every form that an import reads, and the table that they must become."""

from __future__ import annotations

import gzip
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
from tests.conftest import read

from fletching_server import Engine
from fletching_server.importing import ImportReport, ImportRequest, plan_import, run_import

OPEN: Final = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
HEADER: Final = "symbol,ts,bid,ask,bid_size,ask_size"


def quotes(rows: int = 600, symbols: int = 7, days: int = 3) -> pl.DataFrame:
    """Return quotes in the order of time, of all symbols in turn, no key twice."""
    step = timedelta(seconds=1)
    place = pl.int_range(rows, eager=True)
    instants = [OPEN + timedelta(days=number * days // rows) + number * step for number in range(rows)]
    bid = (10 + place % 13 + (place % 4) / 4).cast(pl.Float64)
    return pl.DataFrame(
        {
            "symbol": [f"S{number % symbols:02}" for number in range(rows)],
            "ts": pl.Series(instants).cast(pl.Datetime("us", "UTC")),
            "bid": bid,
            "ask": bid + 0.25,
            "bid_size": place % 5 * 100,
            "ask_size": place % 3 * 100,
        }
    )


def lines(frame: pl.DataFrame) -> list[str]:
    """Return *frame* as lines of CSV, without a header."""
    return frame.write_csv(include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ").splitlines()


def write_csv(path: Path, frame: pl.DataFrame, *more: str) -> Path:
    """Write *frame* and *more* lines to *path*."""
    path.write_text("\n".join([HEADER, *lines(frame), *more]) + "\n")
    return path


def write_mapping(path: Path, *more: str) -> Path:
    """Write a mapping of quotes to *path*, with *more* lines."""
    schema = 'symbol = "string"\nts = "timestamp"\nbid = "float64"\nask = "float64"\nbid_size = "int64"\nask_size = "int64"'
    path.write_text("\n".join(['keys = ["symbol", "ts"]', 'time = "ts"', *more, "[schema]", schema]) + "\n")
    return path


def _zip(path: Path, frame: pl.DataFrame) -> None:
    half = frame.height // 2
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in (("a.csv", frame[:half]), ("b.csv", frame[half:])):
            archive.writestr(name, "\n".join([HEADER, *lines(part)]))


def _zst(path: Path, frame: pl.DataFrame) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write("\n".join([HEADER, *lines(frame)]).encode())


def _sqlite(path: Path, frame: pl.DataFrame) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE quotes ({HEADER})")
        text = frame.with_columns(pl.col("ts").dt.strftime("%Y-%m-%d %H:%M:%S%.6f"))
        database.executemany("INSERT INTO quotes VALUES (?, ?, ?, ?, ?, ?)", text.rows())


WRITERS: Final[dict[str, Callable[[Path, pl.DataFrame], Any]]] = {
    "q.csv": write_csv,
    "q.csv.gz": lambda path, frame: path.write_bytes(gzip.compress("\n".join([HEADER, *lines(frame)]).encode())),
    "q.csv.zst": _zst,
    "q.zip": _zip,
    "q.parquet": lambda path, frame: frame.write_parquet(path, row_group_size=100),
    "q.arrow": lambda path, frame: frame.write_ipc(path),
    "q.feather": lambda path, frame: frame.write_ipc(path, compression="lz4"),
    "stream.arrow": lambda path, frame: frame.write_ipc_stream(path),
    "q.sqlite": _sqlite,
    "semicolons.csv": lambda path, frame: path.write_text(
        frame.write_csv(separator=";", datetime_format="%Y-%m-%d %H:%M:%S%.6f")
    ),
    "epoch.csv": lambda path, frame: frame.with_columns(pl.col("ts").dt.epoch("us")).write_csv(path),
    "unnamed": write_csv,
}


def bulk(engine: Engine, *paths: Path, dataset: str = "quotes", memory_bytes: int = 32 << 20, **more: Any) -> ImportReport:
    """Import *paths* into *engine*."""
    plan = plan_import(engine, ImportRequest(paths, dataset, memory_bytes=memory_bytes, **more))
    return run_import(engine, plan, memory_bytes=memory_bytes)


def held(engine: Engine, dataset: str = "quotes") -> pl.DataFrame:
    """Return all rows of *dataset*."""
    return pl.DataFrame(pl.from_arrow(read(engine, dataset)))


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Return *frame* as a table of quotes holds it."""
    return frame.sort("symbol", "ts")

"""A log as a trace: one row per partition that a request touched, by time, checked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from fletching_schemas.errors import InvalidRequest
from fletching_server.calendars import Days
from fletching_server.policy import Item

NO_SESSION: Final = -(10**6)  # of what has no time
COLUMNS: Final = ("ts", "principal", "profile", "dataset", "bucket", "session", "bytes", "request_id")
PROFILES: Final = ("trading", "research", "backtesting")
_UNSAID: Final = "research"
_YEARS: Final = (1900, 2200)  # beyond them dates cannot be counted with
_MOST_BYTES: Final = 2**50  # of one partition: a trace of millions of rows then adds up to what 64 bits hold
_NEEDS: Final = (
    "every row needs a timestamp ts and whole bytes from 0 to 2^50, session is a date or null, and dates lie between "
    f"{_YEARS[0]} and {_YEARS[1]}"
)
_INTERACTIVE: Final = ("trading", "research")


@dataclass(frozen=True)
class Trace:
    """Columns of a trace, sorted by time: seconds since 1970 UTC, names, the session's day number, bytes, the request."""

    name: str
    ts: list[float]
    principals: list[str]
    profiles: list[str]
    datasets: list[str]
    buckets: list[str]
    sessions: list[int]
    bytes: list[int]
    requests: list[str]

    def __len__(self) -> int:
        return len(self.ts)

    @cached_property
    def keys(self) -> list[str]:
        """The partition of each row: ``dataset/bucket/session``."""
        known: dict[tuple[str, str, int], str] = {}
        rows = zip(self.datasets, self.buckets, self.sessions, strict=True)
        return [known.get(row) or known.setdefault(row, key_of(*row)) for row in rows]

    @cached_property
    def plans(self) -> dict[str, list[int]]:
        """The rows of each request that has several: a plan is known before its first byte is read."""
        rows: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(self.requests):
            rows[request].append(number)
        return {request: numbers for request, numbers in rows.items() if len(numbers) > 1 and request}

    @cached_property
    def days(self) -> Days:
        """The sessions that the trace names, sorted."""
        named = np.array(self.sessions, np.int64)
        found: Days = np.unique(named[named != NO_SESSION])
        return found

    @cached_property
    def interactive(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which rows somebody waits for: all but backtests."""
        return np.array([profile in _INTERACTIVE for profile in self.profiles], bool)


def key_of(dataset: str, bucket: str, session: int) -> str:
    """Return the name of a partition."""
    return f"{dataset}/{bucket}/{'-' if session == NO_SESSION else session}"


def item_of(key: str, size: int, refill_seconds: float) -> Item:
    """Return a partition as the policy knows it; in a trace it has one generation."""
    return Item(key, key, size, refill_seconds)


def read_trace(path: Path) -> Trace:
    """Return the trace in the Parquet file *path*; ``InvalidRequest`` says what is wrong with it, and in which row."""
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read as Parquet: {error}") from error
    return trace_of(frame, path.name)


def trace_of(frame: pl.DataFrame, name: str) -> Trace:
    """Return *frame* as a trace, sorted by time; rows of one instant stay in their order."""
    if missing := [column for column in COLUMNS if column not in frame.columns]:
        raise InvalidRequest(
            f"{name} is no trace: it lacks {', '.join(missing)}; a trace has {', '.join(COLUMNS)}, this has "
            f"{', '.join(frame.columns)[:200]}. For a file with one key per line say --format keys"
        )
    frame = _typed(frame.select(COLUMNS), name)
    _check(frame, name)
    frame = frame.sort("ts", maintain_order=True)
    columns = (
        frame[column].to_list() for column in ("principal", "profile", "dataset", "bucket", "session", "bytes", "request_id")
    )
    return Trace(name, (frame["ts"].cast(pl.Int64) / 1e6).to_list(), *columns)


def _typed(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return *frame* in the types of a trace; nobody's, no profile and no request are empty or the default."""
    profile = pl.col("profile").cast(pl.String)
    columns = {
        "ts": _instant(frame.schema["ts"]),
        "principal": pl.col("principal").cast(pl.String).fill_null(""),
        "profile": pl.when(profile.is_in(PROFILES)).then(profile).otherwise(pl.lit(_UNSAID)),
        "dataset": pl.col("dataset").cast(pl.String).fill_null(""),
        "bucket": pl.col("bucket").cast(pl.String).fill_null(""),
        "session": pl.col("session").cast(pl.Date).cast(pl.Int32).cast(pl.Int64).fill_null(NO_SESSION),
        "bytes": pl.col("bytes").cast(pl.Int64),
        "request_id": pl.col("request_id").cast(pl.String).fill_null(""),
    }
    return pl.DataFrame([_column(frame, column, typed, name) for column, typed in columns.items()])


def _instant(kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.Datetime) and kind.time_zone:
        return pl.col("ts").dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("us"))
    return pl.col("ts").cast(pl.Datetime("us")).dt.replace_time_zone(None)


def _column(frame: pl.DataFrame, column: str, typed: pl.Expr, name: str) -> pl.Series:
    """Return one column of *frame* as *typed*; ``InvalidRequest`` names the first row that cannot be."""
    try:
        return frame.select(typed.alias(column)).to_series()
    except pl.exceptions.PolarsError as error:
        found = frame[column]
        row = _first_wrong(frame.select(column), typed)
        said = f"row {row} has {column}={found[row]!r:.40}" if row is not None else f"{column} cannot be read"
        raise InvalidRequest(f"{name} is no trace: {said}, of the type {found.dtype!s:.60}; {_NEEDS}") from error


def _first_wrong(frame: pl.DataFrame, typed: pl.Expr) -> int | None:
    """Return the first row of *frame* for which *typed* fails, found by halves; None where it is no single row's fault."""
    first, rows = 0, frame.height
    while rows > 1:
        half = rows // 2
        first, rows = (first, half) if _fails(frame[first : first + half], typed) else (first + half, rows - half)
    return first if rows and _fails(frame[first : first + 1], typed) else None


def _fails(frame: pl.DataFrame, typed: pl.Expr) -> bool:
    try:
        frame.select(typed)
    except pl.exceptions.PolarsError:
        return True
    return False


def _check(frame: pl.DataFrame, name: str) -> None:
    session = pl.col("session")
    dated = pl.col("ts").dt.year().is_between(*_YEARS)
    named = (session == NO_SESSION) | session.cast(pl.Int32, strict=False).cast(pl.Date).dt.year().is_between(*_YEARS)
    right = dated & named & pl.col("bytes").is_between(0, _MOST_BYTES)
    wrong = frame.with_row_index("row").filter(~right.fill_null(value=False)).head(1)
    if wrong.height:
        row, ts, size, day = wrong.select("row", pl.col("ts").cast(pl.Int64), "bytes", "session").row(0)
        raise InvalidRequest(
            f"{name}: row {row} has ts={ts} (microseconds), bytes={size} and session={day} (days since 1970); {_NEEDS}"
        )

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
    instant = pl.col("ts").cast(pl.Datetime("us")).dt.replace_time_zone(None)
    if isinstance(kind := frame.schema["ts"], pl.Datetime) and kind.time_zone:
        instant = pl.col("ts").dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("us"))
    profile = pl.col("profile").cast(pl.String)
    try:
        return frame.select(
            instant,
            pl.col("principal").cast(pl.String).fill_null(""),
            pl.when(profile.is_in(PROFILES)).then(profile).otherwise(pl.lit(_UNSAID)).alias("profile"),
            pl.col("dataset", "bucket").cast(pl.String).fill_null(""),
            pl.col("session").cast(pl.Date).cast(pl.Int32).cast(pl.Int64).fill_null(NO_SESSION),
            pl.col("bytes").cast(pl.Int64),
            pl.col("request_id").cast(pl.String).fill_null(""),
        )
    except pl.exceptions.PolarsError as error:
        raise InvalidRequest(f"{name} is no trace: {error}") from error


def _check(frame: pl.DataFrame, name: str) -> None:
    session = pl.col("session")
    dated = pl.col("ts").dt.year().is_between(*_YEARS)
    named = (session == NO_SESSION) | session.cast(pl.Int32, strict=False).cast(pl.Date).dt.year().is_between(*_YEARS)
    right = dated & named & (pl.col("bytes") >= 0)
    wrong = frame.with_row_index("row").filter(~right.fill_null(value=False)).head(1)
    if wrong.height:
        row, ts, size, day = wrong.select("row", pl.col("ts").cast(pl.Int64), "bytes", "session").row(0)
        raise InvalidRequest(
            f"{name}: row {row} has ts={ts} (microseconds), bytes={size} and session={day} (days since 1970); every row needs "
            f"ts and bytes >= 0, and its dates lie between {_YEARS[0]} and {_YEARS[1]}"
        )

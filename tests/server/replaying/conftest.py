"""Traces made by hand: who read which session of what, at which hour."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import polars as pl
from tests.conftest import weekdays

from fletching_server.replaying import Trace, trace_of

MB: Final = 1_000_000
SESSIONS: Final = weekdays(date(2026, 9, 7), date(2026, 10, 30))
SCHEMA: Final = {
    "ts": pl.Datetime("us", "UTC"),
    "principal": pl.String,
    "profile": pl.String,
    "dataset": pl.String,
    "bucket": pl.String,
    "session": pl.Date,
    "bytes": pl.Int64,
    "request_id": pl.String,
}
Row = dict[str, Any]


def row(day: date, hour: float, session: date | None, bucket: str = "AAPL", **more: Any) -> Row:
    """Return a read on *day* at *hour* (UTC) of one partition of 100 MB by Ann."""
    at = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour)
    usual = {"principal": "ann", "profile": "research", "dataset": "bars", "bytes": 100 * MB, "request_id": ""}
    return {"ts": at, "bucket": bucket, "session": session, **usual, **more}


def frame_of(rows: Iterable[Row]) -> pl.DataFrame:
    """Return *rows* as they would lie in a file."""
    return pl.DataFrame(list(rows), schema=SCHEMA)


def made(rows: Iterable[Row]) -> Trace:
    """Return *rows* as a trace."""
    return trace_of(frame_of(rows), "made")

"""The trace of a desk: its frame, its file, and how much memory the targets give it."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from benchmarks.desk import disorder, machines, people
from benchmarks.desk.profiles import Profile
from benchmarks.desk.requests import Requests, Rows
from benchmarks.desk.sessions import Sessions, sessions_of
from benchmarks.desk.universe import Universe, universe_of

SHARE_OF_MEMORY: Final = 1.5  # times the bytes of a median day, as the targets say
BATCH: Final = "backtesting"
KEY: Final = ("dataset", "bucket", "session")


def simulate(profile: Profile, seed: int, sessions: int | None = None) -> pl.DataFrame:
    """Return the trace of *profile* for *seed*; the same for the same, whatever else a later version adds."""
    if sessions is not None:
        profile = replace(profile, days=replace(profile.days, sessions=sessions))
    days = sessions_of(profile.days)
    universe = universe_of(profile.universe, len(days.days), _chance(seed, "sizes"))
    asked = _asked(profile, (days, universe), seed)
    rows = asked.rows()
    if profile.no_pattern:
        chosen = disorder.interactive(rows.profile, asked.names("profile"))
        daily = profile.no_pattern == "daily"
        disorder.scatter(rows, chosen, universe, days, daily=daily, chance=_chance(seed, "scatter"))
    if profile.late:
        disorder.postpone(rows, profile.late, days, universe.datasets, _chance(seed, "late"))
    return _frame(rows, asked, days, universe)


def _chance(seed: int, component: str) -> np.random.Generator:
    """Return a stream of its own for each component, so that adding one leaves the others as they were."""
    return np.random.default_rng([seed, zlib.crc32(component.encode())])


def _asked(profile: Profile, world: tuple[Sessions, Universe], seed: int) -> Requests:
    """Return what all components of the desk ask for."""
    asked, count = Requests(), profile.researchers.count if profile.researchers else 1
    if profile.researchers:
        people.research(asked, profile.researchers, profile.regime, world, _chance(seed, "researchers"))
    if profile.dashboards:
        machines.dashboards(asked, profile.dashboards, profile.regime, world)
    if profile.factors:
        machines.factors(asked, profile.factors, world)
    if profile.weekly:
        machines.weekly(asked, profile.weekly, world)
    if profile.backtests:
        machines.backtests(asked, profile.backtests, world, _chance(seed, "backtests"))
    if profile.earnings:
        people.earnings(asked, profile.earnings, world, count, _chance(seed, "earnings"))
    if profile.pollution:
        machines.pollution(asked, profile.pollution, world, count, _chance(seed, "pollution"))
    return asked


def _frame(rows: Rows, asked: Requests, days: Sessions, universe: Universe) -> pl.DataFrame:
    order = rows.at.argsort(kind="stable")
    row = Rows(*(getattr(rows, name)[order] for name in Rows.__annotations__))
    starts = np.cumsum([0, *(len(universe.buckets(number)) for number in range(len(universe.datasets)))])
    buckets = [bucket for number in range(len(universe.datasets)) for bucket in universe.buckets(number)]
    return pl.DataFrame(
        {
            "ts": pl.Series(row.at).cast(pl.Datetime("us", "UTC")),
            "principal": _named(asked.names("principal"), row.principal),
            "profile": _named(asked.names("profile"), row.profile),
            "dataset": _named(universe.datasets, row.dataset),
            "bucket": _named(buckets, starts[row.dataset] + row.bucket),
            "session": _sessions(days, row.session),
            "bytes": universe.bytes(row.dataset, row.bucket, row.session),
            "request_id": _request_ids(row.request),
        }
    )


def _named(names: list[str], numbers: np.ndarray) -> pl.Series:
    return pl.Series(names, dtype=pl.String).gather(numbers)


def _sessions(days: Sessions, numbers: np.ndarray) -> pl.Series:
    dates = pl.Series(days.days.astype(np.int32)).cast(pl.Date)
    return dates.gather(pl.Series(np.where(numbers < 0, 0, numbers))).set(pl.Series(numbers < 0), None)


def _request_ids(numbers: np.ndarray) -> pl.Series:
    """Return ids that count requests in the order in which they are made."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[first.argsort()] = np.arange(len(first))
    return pl.Series(place[inverse]).cast(pl.String).str.zfill(7)


def write(frame: pl.DataFrame, path: Path, profile: Profile, seed: int) -> None:
    """Write the trace; its metadata say which desk this is, and what its upstream takes."""
    told = {"profile": profile.name, "seed": seed, "calendar": profile.days.calendar, "upstream": asdict(profile.upstream)}
    frame.write_parquet(path, compression="zstd", metadata={"fletching.desk": json.dumps(told, sort_keys=True)})


def daily_bytes(frame: pl.DataFrame) -> pl.DataFrame:
    """Return for each day the bytes of the different partitions that people and screens read."""
    asked = frame.filter(pl.col("profile") != BATCH).select(pl.col("ts").dt.date().alias("day"), *KEY, "bytes")
    return asked.unique().group_by("day").agg(pl.col("bytes").sum()).sort("day")


def memory(frame: pl.DataFrame) -> int:
    """Return the bytes of memory that the targets assume: 1.5 times a median day's different interactive partitions."""
    return int(SHARE_OF_MEMORY * float(daily_bytes(frame)["bytes"].median() or 0))  # type: ignore[arg-type]

"""What the background costs and brings: reads after thousands of small appends, and a year of daily updates, byte by byte.

The year is a simulation: the clock stands where it is put, and the background is asked every hour of it. The unit is the
size of the same rows written once, as one partition per period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.figures import Row, Spread, compared, interleaved, scaled, seconds
from benchmarks.universe import Universe, sessions
from fletching_schemas import Action, Dataset, FetchRequest, ReadRequest, WriteRequest
from fletching_server import Engine, open_engine
from fletching_server.calendars import day_number
from fletching_server.changes import Define, Fill
from fletching_server.image import build_image
from fletching_server.snapshot import Fact
from fletching_server.spans import FINAL, Days, Span
from fletching_server.testing import ManualClock
from fletching_server.tiers import WORTH, segments_of

APPENDS: Final = 5000
MOST_RATIO: Final = 1.2
SYMBOLS: Final = 5000
PER_FILL: Final = 500
HISTORY_DAYS: Final = 7
KEYS: Final = ("symbol", "trading_date")
MOST_WAIT: Final = 120.0


def run(effort: float = 1.0) -> list[Row]:
    """Return the ratios of reads, and the bytes of a year."""
    appends, share = max(50, round(APPENDS * min(effort, 1.0))), min(effort, 1.0)
    rows = [row for count in (1, 50) for row in _after_appends(count, appends, scaled(100, effort))]
    for what, period, per_write, part in (
        ("one write a day, yearly partitions", "year", SYMBOLS, 1.0),
        ("one write a day, monthly partitions", "month", SYMBOLS, 1.0),
        (f"a quarter, a fill per {PER_FILL} symbols a day, yearly partitions", "year", PER_FILL, 0.25),
    ):
        with TemporaryDirectory(prefix="fb-") as name:
            rows += _Year(Path(name), period, per_write, what).rows(part * share)
    return rows


# Reads after small appends


def _after_appends(symbols: int, count: int, rounds: int) -> list[Row]:
    """Return how a symbol is read whose rows came in *count* appends, beside the same rows written at once."""
    days = np.busday_offset("2005-01-03", np.arange(count), roll="forward").astype("datetime64[D]")
    rows = _bars([f"{number:06}.SZ" for number in range(1, symbols + 1)], days)
    with TemporaryDirectory(prefix="fb-") as name, ExitStack() as opened:
        small, once = (opened.enter_context(open_engine(Path(name) / part, compact_idle_seconds=0.5)) for part in ("a", "b"))
        started = time.perf_counter()
        for place in range(count):
            _write(small, rows.filter(pl.col("trading_date") == days[place]), "append")
        each = 1e3 * (time.perf_counter() - started) / count
        _write(once, rows, "append")
        settled = max(_settle(engine) for engine in (small, once))
        facts = {"ms per append": each, "seconds until it was quiet": settled, "files": float(_files(small))}
        return [
            _reads(f"{state} read of 1 of {symbols} symbols, {count:,} appends", state, small, once, rounds, facts)
            for state in ("hot", "cold")
        ]


def _reads(what: str, state: str, small: Engine, once: Engine, rounds: int, facts: dict[str, float]) -> Row:
    def read(engine: Engine) -> float:
        if state == "cold":
            engine.act(Action.EVICT, {})
        return 1e3 * seconds(lambda: engine.read(ReadRequest("daily", "000001.SZ")).table())

    contenders: dict[str, Callable[[], float]] = {"appended": lambda: read(small), "once": lambda: read(once)}
    ours, peer, ratio = compared(interleaved(contenders, rounds), "appended", "once")
    met = ratio.median <= MOST_RATIO
    return Row(what, "ms", ours, peer, ratio, f"<= {MOST_RATIO}", met, "the same partitions", facts, "written at once")


def _write(engine: Engine, rows: pl.DataFrame, mode: Any = "upsert", period: Any = "year") -> None:
    first = engine.store.catalogue.state("daily") is None
    shape: dict[str, Any] = {"keys": list(KEYS), "time": "trading_date", "partition": period} if first else {}
    engine.write(WriteRequest("daily", mode=mode, **shape), rows.to_arrow(compat_level=pl.CompatLevel.newest()))


def _settle(engine: Engine) -> float:
    """Return how long it took until nothing was left in the journal."""
    started = time.perf_counter()
    while segments_of(engine.store.state("daily")):
        if time.perf_counter() - started > MOST_WAIT:
            raise RuntimeError("the journal is not folded in a quiet moment")
        time.sleep(0.05)
    return time.perf_counter() - started


def _files(engine: Engine) -> int:
    return len(engine.store.state("daily").files)


def _bars(names: list[str], days: np.ndarray) -> pl.DataFrame:
    count, random = len(names) * len(days), np.random.default_rng(5)
    close = np.round(random.uniform(2, 200, count), 2)
    return pl.DataFrame(
        {
            "symbol": np.repeat(names, len(days)),
            "trading_date": np.tile(days, len(names)),
            "close": close,
            "volume": random.integers(1_000, 50_000_000, count),
        }
    )


# A year of daily updates


@dataclass
class _Books:
    """Bytes so far: of the rows, of what was written for what, and what lies on disk at the end of each month."""

    journal: int = 0
    live: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class _Year:
    """A market that is updated once a session, in writes of *per_write* symbols."""

    def __init__(self, folder: Path, period: str, per_write: int, what: str) -> None:
        self._folder, self._period, self._per_write, self._what = folder, period, per_write, what
        self._clock = ManualClock(datetime(2024, 1, 1, tzinfo=UTC))
        self._books, self._seen = _Books(), 0

    def rows(self, share: float) -> list[Row]:
        """Return write and space amplification over that *share* of a year."""
        universe = Universe(SYMBOLS, (2024,))
        days, rows = sessions(2024), universe.rows(2024)
        days = days[: max(20, round(len(days) * share))]
        before = _bytes_written()
        waiting: dict[str, Any] = {"compact_idle_seconds": 1e6, "vacuum_seconds": 1e9, "history_days": HISTORY_DAYS}
        with open_engine(self._folder / "year", [], self._clock, memory="256MiB", **waiting) as engine:
            started = time.perf_counter()
            by_day = {day[0]: part for day, part in rows.filter(pl.col("trading_date") <= days[-1]).group_by("trading_date")}
            for number, day in enumerate(days, 1):
                self._day(engine, date.fromisoformat(str(day)), by_day[date.fromisoformat(str(day))].sort("symbol"))
                if number % 20 == 0 or number == len(days):
                    self._look(engine, number * SYMBOLS)
            took, stats = time.perf_counter() - started, engine.stats.snapshot()
            written = _bytes_written() - before
        unit = self._unit(pl.concat(by_day.values()).sort(KEYS))
        return list(self._told(unit, len(days) * SYMBOLS, stats, written, took, len(days)))

    def _day(self, engine: Engine, day: date, rows: pl.DataFrame) -> None:
        """Write the session at its close, and let the background look every hour until the next morning."""
        self._clock.set(datetime(day.year, day.month, day.day, 8, tzinfo=UTC))
        if self._per_write == SYMBOLS:
            _write(engine, rows, period=self._period)
        else:
            for part in rows.iter_slices(self._per_write):
                _fill(engine, part, day)
        added = [file for file in engine.store.state("daily").files if file.kind == "segment"]
        self._books.journal += sum(file.bytes for file in added if file.seq > self._seen and not file.since)
        self._seen = engine.store.state("daily").generation
        for _ in range(20):
            while engine._parts.write_path.compaction.step("daily", quiet=True):  # noqa: SLF001  # in place of the thread, whose clock would be real
                pass
            self._clock.advance(hours=1)
        engine.store.vacuum("daily")

    def _look(self, engine: Engine, rows: int) -> None:
        live = sum(file.bytes for file in engine.store.state("daily").files)
        self._books.live.append(live / rows)
        self._books.whole.append(engine.store.disk_bytes() / rows)

    def _unit(self, rows: pl.DataFrame) -> float:
        """Return the size of all rows on disk, written once and folded."""
        with open_engine(self._folder / "once") as engine:
            _write(engine, rows, period=self._period)
            engine.act(Action.COMPACT, {"dataset": "daily"})
            return float(sum(file.bytes for file in engine.store.state("daily").files))

    def _told(self, unit: float, rows: int, stats: dict[str, float], written: int, took: float, days: int) -> Iterator[Row]:
        books, row_bytes = self._books, unit / rows
        files = {"journal": books.journal, "merges": stats["merged_bytes"], "folds": stats["folded_bytes"]}
        parts = {what: round(size / unit, 3) for what, size in files.items()}
        parts["catalogue"] = round(max(0.0, written - sum(files.values())) / unit, 3)
        parts |= {"MB a day": round(sum(files.values()) / days / 1e6, 2), "seconds of simulation": round(took, 1)}
        amplification, bound = sum(files.values()) / unit, _bound(self._period, self._per_write, days)
        yield Row(
            f"write amplification, {self._what}",
            "x",
            Spread.of([amplification]),
            target=f"<= {bound:.1f}",
            met=amplification <= bound,
            limit=f"a fold writes what the period has so far; without waiting at most {WORTH:.0f}x",
            parts=parts,
        )
        live, whole = ([size / row_bytes for size in sizes] for sizes in (books.live, books.whole))
        months = {
            f"month {n} {what}": round(x, 2)
            for what, found in (("live", live), ("history", whole))
            for n, x in enumerate(found, 1)
        }
        yield Row(
            f"space amplification, {self._what}",
            "x",
            Spread.of(live),
            Spread.of(whole),
            target=f"<= 2.0, with {HISTORY_DAYS} days of history <= {HISTORY_DAYS + 3}",
            met=max(live) <= 2 and max(whole) <= HISTORY_DAYS + 3,
            limit="history: a base a day, and the segments since the oldest",
            parts=months,
            peer_is="with its history",
        )


def _bound(period: str, per_write: int, days: int) -> float:
    """Return what docs/storage.md says: small files cost more than their rows, and are merged before they are folded."""
    sessions = {"year": days, "month": 23}[period]
    journal = 1.25 if per_write == SYMBOLS else 2.5
    return journal + (0 if per_write == SYMBOLS else journal) + (sessions + 1) / 2 * 1.1


def _fill(engine: Engine, rows: pl.DataFrame, day: date) -> None:
    """Commit *rows* as a source's answer for one session."""
    dataset = _defined(engine, rows)
    table = rows.to_arrow(compat_level=pl.CompatLevel.newest()).cast(dataset.schema)
    names = tuple(rows["symbol"])
    segment = engine.store.publish(
        dataset, build_image(dataset, table), "segment", sync=False, asked=FetchRequest("daily", names, day, day)
    )
    number = day_number(day)
    facts = tuple(Fact(name, Span(number, number, FINAL, "", 0.0), segment.id) for name in names)
    adjacent = engine.calendars.get(dataset.calendar).adjacent
    engine.store.commit(Fill("daily", segment.id, segment, facts, adjacent, "vendor", 0.0, Days(number, number), names))


def _defined(engine: Engine, rows: pl.DataFrame) -> Dataset:
    state = engine.store.catalogue.state("daily")
    if state is not None:
        return state.dataset
    schema = pa.schema(
        [
            pa.field(item.name, item.type, nullable=item.name not in KEYS)
            for item in rows.to_arrow(compat_level=pl.CompatLevel.newest()).schema
        ]
    )
    dataset = Dataset("daily", schema, KEYS, "trading_date", "XSHG", "year")
    engine.store.commit(Define(dataset, "vendor"))
    return dataset


def _bytes_written() -> int:
    """Return what this process has handed to the system to be written so far; 0 where that is not told."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))

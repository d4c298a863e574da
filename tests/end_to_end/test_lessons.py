"""Defects that other caches of market data were found to have, each as the right behaviour here, on both planes.

The numbers are those of the table of lessons; each test's sentence says what must hold.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.conftest import TableSource, bars, in_threads, weekdays
from tests.server.test_adjustment import factor

import fletching
from fletching import Cache
from fletching_schemas import canonical
from fletching_server import Engine, open_engine
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number, from_day_number
from fletching_server.service import Service
from fletching_server.testing import ManualClock

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # 20:00 in Shanghai, a Friday
A, B = "000001.SZ", "600519.SH"
SHANGHAI = build_calendar("XSHG", NOW.date())
HISTORY = [from_day_number(int(day)) for day in SHANGHAI.between(day_number(date(2017, 12, 1)), day_number(NOW.date()))]


class World:
    """A store, its sources and a clock, read over one plane; it can be restarted."""

    def __init__(self, folder: Path, plane: str) -> None:
        self.folder, self.plane = folder, plane
        self.clock = ManualClock(NOW)
        self.prices = TableSource(canonical("bars_1d", calendar="XSHG", factors="adj_factors"), bars([A, B], HISTORY), "prices")
        factors = canonical("adj_factors", range_pushdown=False, first_session=date(2017, 1, 1), fresh_seconds=86400.0)
        rows: Any = {(A, date(2026, 1, 15)): factor(A, date(2026, 1, 15), 2.0)}
        self.factors = TableSource(factors, rows, "factors")
        self._service: Service | None = None
        self.open()

    def open(self) -> None:
        self.engine: Engine = open_engine(self.folder, [self.prices, self.factors], self.clock, threads=1, query_memory="128MiB")
        if self.plane == "flight":
            self._service = Service(self.engine, "grpc://127.0.0.1:0")
            self.cache: Cache = fletching.connect(self._service.url)
        else:
            from fletching._embed import EmbeddedTransport  # noqa: PLC0415  # as fletching.open makes it

            self.cache = Cache(EmbeddedTransport(self.engine))

    def close(self) -> None:
        if self._service:
            self.cache.close()
            self._service.close()
            self._service = None
        assert self.engine.verify() == []
        self.engine.close()

    def again(self) -> None:
        self.close()
        self.open()

    def read(self, symbols: Any = A, start: Any = "2026-11-02", end: Any = "2026-11-13", **more: Any) -> Any:
        return self.cache.read("bars_1d", symbols, start, end, **more)

    @property
    def calls(self) -> int:
        return len(self.prices.requests)


@pytest.fixture(params=["embedded", "flight"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store", request.param)
    yield world
    world.close()


def test_q01_raw_and_adjusted_reads_never_mix(world: World) -> None:
    """An adjusted read after a raw one is adjusted, and the raw one after it is raw; they share their cells."""
    window = ("2026-01-05", "2026-01-30")
    raw = world.read(A, *window)
    adjusted = world.read(A, *window, adjust="qfq")
    assert (adjusted["close"] / raw["close"]).round(12).to_list() == [0.5] * 8 + [1.0] * 12
    assert world.read(A, *window).equals(raw)
    assert world.read(A, *window, adjust="qfq").equals(adjusted)
    assert world.calls == 1


def test_q02_an_unfinished_session_is_read_again(world: World) -> None:
    """Today's bar, read while it was made, is not what is served in the evening."""
    world.clock.set(datetime(2026, 11, 20, 4, 0, tzinfo=UTC))
    noon = world.read(A, "2026-11-20", "2026-11-20")
    world.prices.rows[A, date(2026, 11, 20)] |= {"close": 99.0, "high": 100.0}  # type: ignore[operator]
    world.clock.set(NOW)
    assert world.read(A, "2026-11-20", "2026-11-20")["close"].to_list() == [99.0] != noon["close"].to_list()
    for calls in (3, 3):  # looked at once more when the next session has settled, and then never again
        world.clock.set(datetime(2026, 11, 24, 12, 0, tzinfo=UTC))
        assert world.read(A, "2026-11-20", "2026-11-20").height == 1
        assert world.calls == calls


def test_q03_any_length_of_history_is_served(world: World) -> None:
    """A year that lies nine years back is there."""
    frame = world.read(A, "2018-01-01", "2018-12-31")
    assert frame.height == 243
    assert world.calls == 1


def test_q04_nothing_there_is_remembered_with_its_reason(world: World) -> None:
    """Three suspended sessions cost one call, not one per read."""
    for day in (4, 5, 6):
        del world.prices.rows[A, date(2026, 11, day)]
    for _ in range(3):
        _, info = world.read(info=True)
        assert [(gap.first.day, gap.last.day, gap.reason) for gap in info.gaps] == [(4, 6, "no_trade")]
    assert world.calls == 1


def test_q05_a_listing_inside_the_range_is_no_failure(world: World) -> None:
    """What exists is returned though the range begins long before the first bar."""
    for symbol, day in list(world.prices.rows):
        if symbol == A and day < date(2026, 11, 9):
            del world.prices.rows[symbol, day]
    frame, info = world.read(A, "2026-10-12", "2026-11-13", info=True)
    assert frame["trading_date"].to_list() == weekdays(date(2026, 11, 9), date(2026, 11, 13))
    assert {gap.reason for gap in info.gaps} == {"nothing_upstream"}
    world.read(A, "2026-10-12", "2026-11-13")
    assert world.calls == 1


def test_q06_golden_week_is_no_gap(world: World) -> None:
    """One upstream range across the holidays, extended on both sides by one each."""
    world.read(A, "2026-09-01", "2026-10-30")
    assert world.calls == 1
    world.read(A, "2026-08-03", "2026-11-13")
    assert {(r.start, r.end) for r in world.prices.requests[1:]} == {
        (date(2026, 11, 2), date(2026, 11, 13)),
        (date(2026, 8, 3), date(2026, 8, 31)),
    }
    assert world.calls == 3


def test_q07_each_symbols_status_is_told_and_no_error_is_swallowed(world: World) -> None:
    """A failing symbol fails a read that could not show it, and is named by one that can."""

    def answer(request: Any) -> Any:
        if B in request.symbols:
            raise ConnectionError("reset")
        return world.prices.table(request)

    world.prices.answer = answer
    with pytest.raises(fletching.SourceUnavailable, match="1 of 2 symbols failed"):
        world.read([A, B])
    frame, info = world.read([A, B], info=True)
    assert frame["symbol"].unique().to_list() == [A]
    assert (info.symbols[A].state, info.symbols[B].state, info.symbols[B].reason) == ("ok", "failed", "source_unavailable")


def test_q08_the_folder_that_was_given_is_used_and_survives_a_restart(world: World) -> None:
    """No variable of the environment is needed, and nothing is fetched twice."""
    frame = world.read()
    world.again()
    assert world.read().equals(frame)
    assert world.calls == 1
    assert (world.folder / "catalogue.sqlite").is_file()


def test_q09_equal_misses_are_one_call_and_all_are_answered(world: World) -> None:
    """Eight who ask for the same two ranges at once cost two calls, and each gets all rows."""
    world.read(A, "2026-11-06", "2026-11-06")
    answers = in_threads(8, lambda _number: world.read())
    assert all(isinstance(frame, pl.DataFrame) and frame.height == 10 for frame in answers)
    assert world.calls == 3


def test_q10_the_catalogue_is_indexed_constrained_and_in_wal_mode(world: World) -> None:
    """What is looked up by key has an index, and the journal is a write-ahead log."""
    world.read()
    with sqlite3.connect(world.folder / "catalogue.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        plan = database.execute("EXPLAIN QUERY PLAN SELECT * FROM coverage WHERE dataset = 'x' AND symbol = 'y'").fetchall()
        assert "coverage_by_symbol" in plan[0][-1]
        database.create_function("fingerprint", -1, lambda *_row: 0)  # which triggers call
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("INSERT INTO datasets SELECT * FROM datasets")
    database.close()


def test_q11_one_clock_in_utc_decides(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's time zone changes neither how fresh nor how old an entry is."""
    world.clock.set(datetime(2026, 11, 20, 4, 0, tzinfo=UTC))
    for zone in ("Asia/Shanghai", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        _, info = world.read(A, "2026-11-20", "2026-11-20", info=True)
        assert info.age_seconds is not None
        assert info.age_seconds < 300
    assert world.calls == 1
    world.clock.advance(hours=7)
    world.read(A, "2026-11-20", "2026-11-20")
    assert world.calls == 2


def test_q12_columns_order_and_types_do_not_depend_on_the_tier(world: World) -> None:
    """From the source, from memory and from disk a frame looks the same."""
    cold = world.read()
    hot = world.read()
    world.again()
    disk = world.read()
    assert cold.schema == hot.schema == disk.schema
    assert cold.equals(hot)
    assert cold.equals(disk)


def test_q13_a_partly_covered_range_is_partly_covered(world: World) -> None:
    """One row held does not make the range held."""
    world.read(A, "2026-11-04", "2026-11-04")
    assert world.read().height == 10


def test_q14_a_hit_is_counted_when_nobody_was_asked(world: World) -> None:
    """The first read is a miss though its rows are held when it ends."""
    world.read()
    assert world.cache.stats()["full_hits"] == 0
    world.read()
    assert world.cache.stats()["full_hits"] == 1


def test_q15_coverage_is_measured_in_sessions(world: World) -> None:
    """A full year of 242 sessions is 242 sessions of one run, and nothing of it is missing."""
    world.read(A, "2024-01-01", "2024-12-31")
    (row,) = world.cache.coverage("bars_1d", A, "2024-01-01", "2024-12-31").to_dicts()
    assert (row["state"], row["sessions"]) == ("final", 242)


def test_q16_an_upstream_failure_is_never_an_empty_frame(world: World) -> None:
    """It is an error, and it leaves no trace in what is known."""
    world.prices.error = ConnectionError("reset by peer")
    with pytest.raises(fletching.SourceUnavailable, match="reset by peer"):
        world.read()
    world.prices.error = None
    assert world.read().height == 10


def test_q17_the_same_request_means_the_same_whatever_came_before(world: World) -> None:
    """Open ends do not depend on what was asked last."""
    first = world.cache.read("bars_1d", A, "2026-11-02")
    world.read(A, "2018-01-01", "2018-03-31")
    assert world.cache.read("bars_1d", A, "2026-11-02").equals(first)


def test_q18_the_calendar_knows_better_than_intuition(tmp_path: Path) -> None:
    """Hong Kong traded on 2024-02-14..16 and half of 2024-02-09; nothing of that is an error."""
    open_days = [date(2024, 2, 9), *weekdays(date(2024, 2, 14), date(2024, 2, 16))]
    source = TableSource(canonical("bars_1d", calendar="XHKG"), bars(["00700.HK"], open_days))
    with fletching.open(tmp_path / "store", [source], clock=ManualClock(NOW)) as cache:
        frame, info = cache.read("bars_1d", "700.HK", "2024-02-09", "2024-02-16", info=True)
        assert frame["trading_date"].to_list() == open_days
        assert info.gaps == []
        half = cache.sessions("XHKG", "2024-02-09", "2024-02-09").row(0, named=True)
    assert (half["half_day"], half["close"].hour) == (True, 4)  # 12:00 in Hong Kong


def test_d1_an_unrelated_read_does_not_wait_for_a_flight(world: World) -> None:
    """While one symbol's call hangs, another symbol is answered."""
    world.prices.hanging = lambda request: A in request.symbols
    world.prices.block()

    def ask(number: int) -> Any:
        if number:
            world.prices.wait_for_calls(1)
            frame = world.read(B)
            world.prices.unblock()
            return frame
        return world.read(A)

    slow, quick = in_threads(2, ask)
    assert slow["symbol"].unique().to_list() == [A]
    assert quick["symbol"].unique().to_list() == [B]


def test_d5_files_keep_a_fixed_grid_whatever_ranges_are_asked(world: World) -> None:
    """Overlapping requests leave no overlapping files once they are folded."""
    for start, end in (("2026-10-12", "2026-11-06"), ("2026-11-02", "2026-11-13"), ("2025-12-01", "2026-01-30")):
        world.read(A, start, end)
    world.engine.act("compact", {"dataset": "bars_1d"})  # type: ignore[arg-type]
    periods = [file.period for file in world.engine.store.state("bars_1d").files]
    assert sorted(periods) == ["2025", "2026"]


def test_a_frozen_intraday_bar_is_told_by_its_age(world: World) -> None:
    """Who trades on rows of an open session sees how old they are."""
    world.clock.set(datetime(2026, 11, 20, 4, 0, tzinfo=UTC))
    world.read(A, "2026-11-20", "2026-11-20")
    world.clock.advance(seconds=120)
    _, info = world.read(A, "2026-11-20", "2026-11-20", info=True)
    assert info.age_seconds == 120
    assert json.loads(info.to_bytes())["age_seconds"] == 120
    assert world.read(A, "2026-11-20", "2026-11-20", max_age=60).height == 1
    assert world.calls == 2


def test_tomorrow_is_never_asked_and_never_empty(world: World) -> None:
    """Sessions to come are told as future, on a holiday nothing is due, and neither is remembered."""
    frame, info = world.read(A, "2026-11-20", "2026-11-27", info=True)
    assert frame.height == 1
    assert [(gap.first, gap.reason) for gap in info.gaps] == [(date(2026, 11, 23), "future")]
    world.clock.advance(days=3)
    world.prices.rows |= bars([A], [date(2026, 11, 23)])
    assert world.read(A, "2026-11-23", "2026-11-23").height == 1
    assert world.read(A, "2026-10-01", "2026-10-07").height == 0
    assert timedelta(0) < world.clock.now() - NOW

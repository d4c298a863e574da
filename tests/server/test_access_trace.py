"""The access log as a trace: a row per touched partition, by what a replay of the partition cache needs."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read, weekdays
from typer.testing import CliRunner

from fletching_schemas import Action, canonical
from fletching_schemas.errors import InvalidRequest, StoreError
from fletching_server import Engine
from fletching_server.access_trace import TRACE, trace_of
from fletching_server.cli import app
from fletching_server.testing import ManualClock


def by_month(open_store: Opener) -> Engine:
    dataset = canonical("bars_1d", calendar="XSHG", period="month")
    return open_store(TableSource(dataset, bars(SYMBOLS, weekdays(date(2026, 10, 12), date(2026, 11, 20)))))


def trace(engine: Engine) -> pa.Table:
    engine.access.flush()
    return trace_of(engine.store.root)


def test_each_partition_is_a_row_with_the_last_day_of_its_period_or_that_of_the_read(
    open_store: Opener, clock: ManualClock
) -> None:
    engine = by_month(open_store)
    read(engine, symbols=SYMBOLS, start="2026-10-12")
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    clock.advance(minutes=1)
    read(engine, symbols="000001.SZ", start="2026-10-13", profile="trading")
    clock.advance(minutes=1)
    read(engine, symbols=SYMBOLS[:2], start="2026-11-02", end="2026-11-03")
    found = trace(engine)
    assert found.schema == TRACE
    sizes = {file.period: file.memory_bytes for file in engine.store.state("bars_1d").files}
    first, *rows = found.to_pylist()
    assert (first["bucket"], first["session"]) == ("journal-0", date(2026, 11, 20))
    assert [(row["bucket"], row["session"], row["bytes"], row["profile"]) for row in rows] == [
        ("0", date(2026, 10, 31), sizes["2026-10"], "trading"),
        ("0", date(2026, 11, 20), sizes["2026-11"], "trading"),
        ("0", date(2026, 11, 20), sizes["2026-11"], "research"),
    ]
    assert len({row["request_id"] for row in rows}) == 2
    assert found["ts"].to_pylist() == sorted(found["ts"].to_pylist())


@pytest.mark.parametrize(("period", "session"), [("year", date(2024, 12, 31)), ("day", date(2024, 3, 20))])
def test_years_and_days_end_where_they_end(open_store: Opener, period: str, session: date) -> None:
    engine = open_store("sim")
    dataset = {"year": "bars_1d", "day": "bars_1m"}[period]
    read(engine, dataset, symbols="000001.SZ", start="2024-03-20", end="2024-03-20")
    engine.act(Action.COMPACT, {"dataset": dataset})
    read(engine, dataset, symbols="000001.SZ", start="2024-03-20", end="2024-03-20")
    assert trace(engine)["session"].to_pylist()[-1] == session


def test_the_command_writes_what_replay_reads(open_store: Opener, tmp_path: Path) -> None:
    engine = by_month(open_store)
    read(engine, symbols=SYMBOLS, start="2026-10-12")
    engine.access.flush()
    out = tmp_path / "trace.parquet"
    told = CliRunner().invoke(app, ["trace", "--store", str(engine.store.root), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert "1 touched partitions of 1 reads" in told.stdout.replace("\n", " ")
    assert pq.read_table(out).equals(trace_of(engine.store.root))
    assert CliRunner().invoke(app, ["replay", str(out), "--memory", "1MiB"]).exit_code == 0


def test_a_place_that_cannot_be_written_is_an_error_in_one_line(open_store: Opener, tmp_path: Path) -> None:
    engine = by_month(open_store)
    read(engine, symbols=SYMBOLS)
    engine.access.flush()
    for out in (tmp_path / "missing" / "trace.parquet", tmp_path):
        told = CliRunner().invoke(app, ["trace", "--store", str(engine.store.root), "--out", str(out)])
        assert isinstance(told.exception, InvalidRequest), told.output
        assert "cannot be written: " in str(told.exception)
        assert "\n" not in str(told.exception)


def test_a_store_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no access log"):
        trace_of(tmp_path)

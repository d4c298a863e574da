"""Imports by processes that are killed, watched by readers, held to their memory, and sent to a server."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.conftest import Background
from tests.server.importing.quotes import held, in_order, quotes, write_csv

import fletching
from fletching_schemas.errors import UnknownDataset
from fletching_server import open_engine
from fletching_server.importing import ImportRequest, plan_import, run_import

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Child, Processes

# Tells each step on a line of its own; the last line is the report.
IMPORT = """
import json, sys
from pathlib import Path
from fletching_server import importing, open_engine
store, path, memory = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def peak():  # not ru_maxrss: that is the parent's, where it was larger
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
with open_engine(store) as engine:
    plan = importing.plan_import(engine, importing.ImportRequest([path], "quotes", memory_bytes=memory))
    before = peak()
    tell = lambda now: print(now.stage, now.records, flush=True)
    report = importing.run_import(engine, plan, memory_bytes=memory, show=tell)
    print(json.dumps({**report.facts(), "before_kb": before, "peak_kb": peak()}), flush=True)
"""
COMMAND = ["-m", "fletching_server", "import"]


def report_of(child: Child) -> dict[str, Any]:
    """Return what *child* reported when it had ended."""
    line = child.line()
    while not line.startswith("{"):
        line = child.line()
    assert child.wait() == 0
    return dict(json.loads(line))


def rows_in(store: Path) -> pl.DataFrame | None:
    """Return the rows of the table in *store*, which must be sound; None: there is no such table."""
    with open_engine(store) as engine:
        assert engine.verify() == []
        try:
            return held(engine)
        except UnknownDataset:
            return None


def test_an_import_that_is_killed_at_any_moment_goes_on_where_it_was(processes: Processes, tmp_path: Path) -> None:
    frame, store, chosen = quotes(30_000, symbols=20), tmp_path / "store", random.Random(5)
    path = write_csv(tmp_path / "q.csv", frame)
    seen = 0
    for _ in range(3):
        child = processes.run(IMPORT, str(store), str(path), str(1 << 20))
        records = 0
        for _ in range(chosen.randint(3, 9)):
            stage, told = child.line().split()
            records = int(told) if stage == "reading" else records
        child.send("kill")
        child.wait()
        assert records >= seen, "what was staged counts at once"
        seen = records
        assert rows_in(store) is None, "nothing is visible before all is"
    report = report_of(processes.run(IMPORT, str(store), str(path), str(1 << 20)))
    assert report["resumed_chunks"] >= 6
    assert (report["read"], report["kept"]) == (30_000, 30_000)
    found = rows_in(store)
    assert found is not None
    assert_frame_equal(found, in_order(frame))
    assert not list(store.glob("import/*/chunks")), "what was staged is gone"


def test_killed_while_publishing_into_a_table_the_old_rows_stand(processes: Processes, tmp_path: Path) -> None:
    frame, store = quotes(12_000, symbols=20), tmp_path / "store"
    old = write_csv(tmp_path / "old.csv", frame[:4_000])
    report_of(processes.run(IMPORT, str(store), str(old), str(1 << 20)))
    path = write_csv(tmp_path / "q.csv", frame[2_000:])
    child = processes.run(IMPORT, str(store), str(path), str(1 << 20))
    while not child.line().startswith("publishing"):
        pass
    child.send("kill")
    child.wait()
    found = rows_in(store)
    assert found is not None
    assert found.height in {4_000, 12_000}
    report_of(processes.run(IMPORT, str(store), str(path), str(1 << 20)))
    found = rows_in(store)
    assert found is not None
    assert_frame_equal(found, in_order(frame))


def test_a_reader_sees_no_row_or_all(tmp_path: Path) -> None:
    frame = quotes(20_000, symbols=20, days=5)
    with open_engine(tmp_path / "store") as engine:
        seen: list[int] = []
        for part, before in ((frame[:10_000], 0), (frame[5_000:], 10_000)):
            path = write_csv(tmp_path / f"{before}.csv", part)
            plan = plan_import(engine, ImportRequest([path], "quotes", memory_bytes=1 << 20, partition=None if before else "day"))
            running = Background(lambda plan=plan: run_import(engine, plan, memory_bytes=1 << 20))  # type: ignore[misc]
            seen.clear()
            while running.running:
                try:
                    seen.append(held(engine).height)
                except UnknownDataset:
                    seen.append(0)
            report = running.result()
            assert set(seen) <= {before, before + part.height - report.replaced}
            assert before in seen
        assert_frame_equal(held(engine), in_order(frame))


def test_memory_follows_the_budget_not_the_input(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    rows = 2_000_000
    place = pl.int_range(rows, eager=True)
    frame = pl.DataFrame(
        {
            "symbol": ("S" + (place % 500).cast(pl.String)),
            "ts": (place * 1000 + 1_772_445_600_000_000).cast(pl.Datetime("us", "UTC")),
            **dict.fromkeys(("bid", "ask", "bid_size", "ask_size"), place % 1000 / 8),
        }
    )
    frame.write_parquet(path, row_group_size=100_000)
    size_kb = frame.estimated_size() // 1024
    report = report_of(processes.run(IMPORT, str(tmp_path / "store"), str(path), str(32 << 20)))
    assert report["kept"] == rows
    grown_kb = report["peak_kb"] - report["before_kb"]
    assert grown_kb < size_kb, f"grew by {grown_kb:,} KB for {size_kb:,} KB of rows"


def test_rows_are_sent_to_a_server_and_may_be_sent_again(processes: Processes, tmp_path: Path) -> None:
    frame, store = quotes(5_000), tmp_path / "store"
    path = write_csv(tmp_path / "q.csv", frame, "S01,never,1,2,3,4")
    server = processes.serve(store)
    url = server.url()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for _ in range(2):
        child = processes.command([*COMMAND, str(path), "--dataset", "quotes", "--url", url], environment)
        assert child.line() == "5,000 rows of 1 files are in quotes"
        assert child.wait() == 0
    assert "rejected" in child.errors()
    with fletching.connect(url) as cache:
        assert_frame_equal(cache.read("quotes"), in_order(frame))
    refused = processes.command([*COMMAND, str(path), "--dataset", "quotes", "--store", str(store)])
    assert refused.wait() == 1
    assert "--url instead of --store" in refused.errors()


@pytest.mark.parametrize("memory_bytes", [1 << 20, 512 << 20])
def test_real_ticks_are_what_the_files_source_reads(tmp_path: Path, memory_bytes: int) -> None:
    lean = Path(__file__).resolve().parents[3] / "shared" / "data" / "lean"
    if not lean.is_dir():
        pytest.skip(f"the real market data is not at {lean}")
    (tmp_path / "lean.toml").write_text(f'mapping = "lean"\nroot = "{lean}"\n')
    with fletching.open(tmp_path / "store", [f"files:{tmp_path / 'lean.toml'}"]) as cache:
        served = cache.read("trades", "BAC.US", "2013-10-07", "2013-10-07")
    path = lean / "equity" / "usa" / "tick" / "bac" / "20131007_trade.zip"
    with open_engine(tmp_path / "imported") as engine:
        request = ImportRequest([path], "trades", "lean", memory_bytes=memory_bytes)
        report = run_import(engine, plan_import(engine, request), memory_bytes=memory_bytes)
        assert (report.kept, report.rejected) == (88_172, 0)
        assert_frame_equal(held(engine, "trades"), served)

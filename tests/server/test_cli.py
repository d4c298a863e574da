"""The command line as a shell user meets it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import fletching
from fletching_schemas.errors import InvalidRequest
from fletching_server.cli import app, main

Run = Callable[..., Result]
MARCH = ("--start", "2024-03-01", "--end", "2024-03-29")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sim(tmp_path: Path) -> str:
    config = tmp_path / "sim.toml"
    config.write_text("symbols = 12\n")
    return f"sim:{config}"


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_demo_shows_every_tier_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"TMPDIR": scratch, "COLUMNS": "100"}
        command = [sys.executable, "-m", "fletching_server", "demo", "--symbols", "20"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
        assert list(Path(scratch).iterdir()) == []
    # Each row is | read | rows | MB | from | calls | ms |, and its cells are divided by box characters.
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    reads = [row for row in rows if row[3]]
    assert [row[3] for row in reads] == ["source", "hot", "hot+source", "hot", "source", "cold", "hot", "hot+cold", "cold"]
    assert [int(row[4]) for row in reads[5:]] == [0, 0, 0, 0]
    assert reads[0][1] == reads[5][1] != "0"


def test_rows_are_printed_as_csv_json_or_a_table(run: Run, store: Path, sim: str) -> None:
    asked = ("read", "bars_1d", "000001.SZ", *MARCH, "--columns", "symbol,trading_date,close", "--store", store, "--source", sim)
    csv = run(*asked, "--format", "csv")
    assert csv.exit_code == 0
    assert csv.stdout.splitlines()[0] == "symbol,trading_date,close"
    lines = run(*asked, "--format", "json").stdout.splitlines()
    assert len(lines) == len(csv.stdout.splitlines()) - 1 > 10
    assert json.loads(lines[0])["symbol"] == "000001.SZ"
    assert "shape: (" in run(*asked).stdout
    assert "upstream calls 0" in run(*asked).stderr


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_rows_are_written_to_a_file(run: Run, store: Path, sim: str, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    assert run("read", "bars_1d", "000001", *MARCH, "--store", store, "--source", sim, "--out", out).exit_code == 0
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".arrow": pl.read_ipc}
    assert readers[suffix](out).height > 10


def test_coverage_tells_what_is_held_and_what_is_missing(run: Run, store: Path, sim: str) -> None:
    run("read", "bars_1d", "000001.SZ", *MARCH, "--store", store, "--source", sim)
    shown = run(
        "coverage", "bars_1d", "000001.SZ", "--start", "2024-02-01", "--end", "2024-03-29", "--store", store, "--source", sim
    )
    assert re.search(r"000001.SZ 2024-02-01 2024-02-29 +\d+ missing", shown.stdout)
    assert re.search(r"000001.SZ 2024-03-01 2024-03-29 +21 final", shown.stdout)


def test_stats_are_a_table_or_json(run: Run, store: Path, sim: str) -> None:
    counters = json.loads(run("stats", "--json", "--store", store, "--source", sim).stdout)
    assert counters["reads"] == 0
    assert "bars_1d" in run("stats", "--store", store, "--source", sim).stdout
    assert "nothing had to leave memory" in run("stats", "--evictions", "--store", store, "--source", sim).stdout


def test_verify_ends_with_0_for_a_sound_store_and_with_1_for_a_damaged_one(run: Run, store: Path, sim: str) -> None:
    run("read", "bars_1d", *MARCH, "--store", store, "--source", sim)
    sound = run("verify", store)
    assert sound.exit_code == 0
    assert "0 problems" in sound.stdout
    [file] = store.rglob("*.parquet")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    damaged = run("verify", store)
    assert damaged.exit_code == 1
    assert "checksum" in damaged.stdout
    assert file.exists(), "verify changes nothing"


def test_doctor_names_versions_calendars_room_and_sources(run: Run, store: Path, sim: str) -> None:
    run("read", "bars_1d", *MARCH, "--store", store, "--source", sim)
    shown = run("doctor", "--store", store, "--source", sim, "--source", "nonsense")
    assert shown.exit_code == 1, "an unknown source is a finding"
    for word in ("pyarrow", "calendar XSHG", "room for", "bars_1d", "nonsense"):
        assert word in shown.stdout


def test_files_are_imported_into_a_table_and_may_be_imported_again(run: Run, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    days = pl.date_range(date(2024, 1, 1), date(2024, 1, 10), eager=True)
    for name in ("a", "b"):
        pl.DataFrame({"name": [name] * 10, "day": days, "x": range(10)}).write_csv(folder / f"{name}.csv")
    store.mkdir()
    command = ("import", folder, "--dataset", "mine", "--keys", "name,day", "--store", store)
    assert "20 rows of 2 files are in mine" in run(*command).stdout
    assert run(*command).exit_code == 0
    rows = run("read", "mine", "--store", store, "--format", "json").stdout.splitlines()
    assert len(rows) == 20


def test_a_trace_of_keys_is_replayed(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("1\n2\n1\n*\n3\n1\n2\n")
    told = json.loads(run("replay", trace, "--format", "keys", "--memory", "2", "--json").stdout)
    assert (told["requests"], told["hits"], told["evictions"]) == (6, 2, 2)


def test_a_trace_of_keys_is_told_beside_lru_and_the_optimum(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("1\n2\n3\n" * 20)
    told = json.loads(run("replay", trace, "--format", "keys", "--memory", "2", "--policy", "lru", "--json").stdout)
    assert (told["hit_ratio"], told["lru_hit_ratio"], told["score"]) == (0, 0, 0)
    assert told["optimum_hit_ratio"] > 0.4


def mornings(path: Path) -> Path:
    """Write a trace of somebody who reads yesterday's session each morning, twice, and a backtest beside it."""
    days = [date(2024, 1, 1) + timedelta(days=day) for day in range(40)]
    sessions = [day for day in days if day.weekday() < 5]
    reads = [
        {
            "ts": datetime.combine(day, time(9, minute), UTC),
            "principal": who,
            "profile": profile,
            "dataset": "bars_1m",
            "bucket": "XYZ",
            "session": before,
            "bytes": 10_000_000,
            "request_id": f"{day}/{minute}",
        }
        for before, day in pairwise(sessions)
        for minute, who, profile in ((0, "ana", "research"), (1, "ana", "research"), (30, "job", "backtesting"))
    ]
    pl.DataFrame(reads, schema_overrides={"ts": pl.Datetime("us", "UTC")}).write_parquet(path)
    return path


def test_a_trace_of_requests_is_replayed(run: Run, tmp_path: Path) -> None:
    trace = mornings(tmp_path / "trace.parquet")
    rows = pl.read_parquet(trace).height
    for warm in ("off", "on", "p>=0.7"):
        told = json.loads(run("replay", trace, "--memory", "1GB", "--disk", "10GB", "--warm", warm, "--json").stdout)
        overall, research = told["overall"], told["profiles"]["research"]
        assert overall["requests"] == rows == sum(overall[tier] for tier in ("hot", "cold", "upstream"))
        assert (research["hot"] == research["requests"] // 2) == (warm == "off")
    shown = run("replay", trace, "--memory", "1GB").stdout
    assert "interactive" in shown
    assert "precision" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--warm", "p>=2"], "--warm"),
        (["--memory", "much"], "--memory"),
        (["--calendar", "XXXX"], "--calendar"),
        (["--warm", "x"], "0.7"),
    ],
)
def test_a_replay_that_cannot_be_says_why(run: Run, tmp_path: Path, arguments: list[str], told: str) -> None:
    failed = run("replay", mornings(tmp_path / "trace.parquet"), *arguments)
    assert isinstance(failed.exception, InvalidRequest)
    assert told in str(failed.exception)


def test_the_access_log_of_a_store_is_replayed(run: Run, tmp_path: Path) -> None:
    with fletching.open(tmp_path / "store", sources=["sim"]) as cache:
        for _ in range(3):
            cache.read("bars_1d", "000001.SZ", "2024-01-02", "2024-01-31")
    told = json.loads(run("replay", tmp_path / "store", "--json").stdout)
    assert told["overall"]["requests"] >= 1


def test_an_error_is_one_line_and_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fletching", "read", "bars_1d", "--url", "grpc://127.0.0.1:1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("ServerUnreachable: nobody answers at grpc://127.0.0.1:1")


@pytest.mark.parametrize("command", ["demo", "serve", "read", "import", "coverage", "stats", "verify", "doctor", "replay"])
def test_every_command_has_help(run: Run, command: str) -> None:
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert "Usage" in shown.stdout

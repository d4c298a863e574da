"""Bulk import: 9,317,913 quotes from CSV and from Parquet into a durable, sorted, deduplicated table.

The floor is what it takes to read the file with pyarrow and to write it as Parquet again: not sorted, not deduplicated, not
synced, all of it in memory. The other peer is SQLite, filled row by row in batches. Each measurement is a process of its own,
which times itself once everything is imported: ``python -m benchmarks.imports WAY FILE FOLDER``.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from benchmarks.figures import Row, Spread, compared, interleaved, seconds
from benchmarks.processes import peak_bytes

ROWS: Final = 9_317_913
SYMBOLS: Final = 2000
SQLITE_ROWS: Final = (
    2_000_000  # of which the time of all is reckoned, to its favour: its tree slows down as it grows (all rows: 81 s)
)
BATCH_ROWS: Final = 10_000
LEAN: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "lean"
TARGET: Final = 3.0
SQLITE_TARGET: Final = 20.0
MEMORY_TARGET: Final = 1e9
FLOOR: Final = "pyarrow read + pq.write_table, unsorted"
SQLITE: Final = f"SQLite, executemany of {BATCH_ROWS:,} rows a commit, key (symbol, ts); {SQLITE_ROWS:,} rows measured, scaled up"


def run(effort: float = 1.0) -> list[Row]:
    """Return seconds per import with their ratio to the floor, the peak of memory, and how much faster than SQLite it is."""
    rounds = max(3, round(5 * effort))
    rows = max(200_000, min(ROWS, round(ROWS * min(1.0, 2 * effort))))
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        quotes = _quotes(folder, rows)
        found = [row for kind, path in quotes.items() for row in _against_floor(kind, path, folder, rounds)]
        found.append(_against_sqlite(quotes["CSV"], folder, rounds, rows))
        return [*found, *_real(folder, rounds)]


def _quotes(folder: Path, rows: int) -> dict[str, Path]:
    """Write one session of quotes as a feed would: in the order of time, a few symbols with most of them."""
    random = np.random.default_rng(7)
    share = random.pareto(1.2, SYMBOLS) + 0.05
    code = random.choice(SYMBOLS, rows, p=share / share.sum())
    opened = int(datetime.fromisoformat("2026-03-02T14:30:00+00:00").timestamp() * 1e6)
    middle = 20 + code % 300 + np.round(random.standard_normal(rows) * 0.2, 2)
    spread = random.integers(1, 5, rows) * 0.01
    instants = opened + np.sort(random.integers(0, 23_400 * 10**6, rows))
    frame = pl.DataFrame(
        {
            "symbol": pl.Series([f"S{place:04}" for place in range(SYMBOLS)]).gather(code),
            "ts": pl.Series(instants).cast(pl.Datetime("us", "UTC")),
            "bid": np.round(middle - spread / 2, 2),
            "ask": np.round(middle + spread / 2, 2),
            "bid_size": random.integers(1, 50, rows) * 100,
            "ask_size": random.integers(1, 50, rows) * 100,
        }
    )
    paths = {"CSV": folder / "quotes.csv", "Parquet": folder / "quotes.parquet"}
    frame.write_csv(paths["CSV"], datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
    frame.write_parquet(paths["Parquet"])
    return paths


def _against_floor(kind: str, path: Path, folder: Path, rounds: int) -> list[Row]:
    peaks: list[float] = []
    contenders = {
        "ours": lambda: _measured("ours", path, folder, peaks),
        "floor": lambda: _measured("floor", path, folder),
    }
    ours, floor, ratio = compared(interleaved(contenders, rounds, warm_up=1), "ours", "floor")
    limit = "parsing and encoding on two cores; rows are written twice, as runs and as Parquet"
    timed = Row(
        f"{kind} to a table", "s", ours, floor, ratio, f"at most {TARGET:g}", ratio.median <= TARGET, limit, peer_is=FLOOR
    )
    memory = Spread.of([peak / 1e6 for peak in peaks])
    most = Row(f"{kind}: peak memory", "MB", memory, target="under 1 GB", met=memory.p95 < MEMORY_TARGET / 1e6)
    return [timed, most]


def _against_sqlite(path: Path, folder: Path, rounds: int, rows: int) -> Row:
    part = min(SQLITE_ROWS, rows)
    contenders = {
        "ours": lambda: _measured("ours", path, folder),
        "sqlite": lambda: _measured("sqlite", path, folder) * rows / part,
    }
    ours, peer, ratio = compared(interleaved(contenders, min(rounds, 3), warm_up=0), "sqlite", "ours")
    faster = f"{SQLITE_TARGET:g} or more"
    return Row(
        "CSV to a table, against SQLite",
        "s",
        peer,
        ours,
        ratio,
        faster,
        ratio.median >= SQLITE_TARGET,
        "",
        {},
        SQLITE,
        "peer / ours",
    )


def _real(folder: Path, rounds: int) -> list[Row]:
    """Return the same for real ticks, where they are: zipped CSV without a header, prices as whole numbers, New York time."""
    if not LEAN.is_dir():
        return []
    contenders = {way: partial(_measured, f"{way}-lean", LEAN, folder) for way in ("ours", "floor")}
    ours, floor, ratio = compared(interleaved(contenders, rounds, warm_up=1), "ours", "floor")
    limit = "prices divided, local times to UTC, rows numbered: the floor leaves the text's numbers as they are"
    return [Row("2.75 M real quotes in zips", "s", ours, floor, ratio, limit=limit, peer_is=FLOOR)]


def _measured(way: str, path: Path, folder: Path, peaks: list[float] | None = None) -> float:
    """Return the seconds that *way* took in a process of its own, and note what memory it had at its peak."""
    with TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "benchmarks.imports", way, str(path), place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
    if peaks is not None:
        peaks.append(told["peak_bytes"])
    return float(told["seconds"])


# In the process that is measured


def _ours(path: Path, folder: Path, dataset: str = "quotes", mapping: str | None = None) -> Callable[[], Any]:
    from fletching_server import importing, open_engine  # noqa: PLC0415  # the peers' processes do without

    def work() -> None:
        with open_engine(folder / "store") as engine:
            plan = importing.plan_import(engine, importing.ImportRequest([path], dataset, mapping))
            report = importing.run_import(engine, plan)
            if report.rejected or report.kept + report.different + report.duplicates != report.read:
                raise RuntimeError(f"rows are missing: {report}")

    return work


def _floor(path: Path, folder: Path) -> Callable[[], Any]:
    read = pa_csv.read_csv if path.suffix == ".csv" else pq.read_table
    return lambda: pq.write_table(read(path), folder / "floor.parquet")


def _lean_floor(root: Path, folder: Path) -> Callable[[], Any]:
    names = pa_csv.ReadOptions(column_names=["ts", "bid", "bid_size", "ask", "ask_size", "exchange", "condition", "suspicious"])

    def work() -> None:
        for path in sorted((root / "equity" / "usa" / "tick").rglob("*_quote.zip")):
            with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
                pq.write_table(pa_csv.read_csv(member, names), folder / f"{path.parent.name}-{path.stem}.parquet")

    return work


def _sqlite(path: Path, folder: Path) -> Callable[[], Any]:
    def work() -> None:
        database = sqlite3.connect(folder / "quotes.sqlite")
        columns = "symbol TEXT, ts TEXT, bid REAL, ask REAL, bid_size INTEGER, ask_size INTEGER, PRIMARY KEY (symbol, ts)"
        database.execute(f"CREATE TABLE quotes ({columns}) WITHOUT ROWID")
        with path.open(newline="") as file:
            rows = islice(csv.reader(file), 1, SQLITE_ROWS + 1)
            while batch := list(islice(rows, BATCH_ROWS)):
                with database:
                    database.executemany("INSERT OR REPLACE INTO quotes VALUES (?, ?, ?, ?, ?, ?)", batch)
        database.close()

    return work


WAYS: Final[dict[str, Callable[[Path, Path], Callable[[], Any]]]] = {
    "ours": _ours,
    "floor": _floor,
    "sqlite": _sqlite,
    "ours-lean": partial(_ours, dataset="quotes_l1", mapping="lean"),
    "floor-lean": _lean_floor,
}


def main(arguments: Sequence[str]) -> None:
    """Do one thing, and print how long it took and what memory it had at its peak."""
    way, path, folder = arguments
    took = seconds(WAYS[way](Path(path), Path(folder)))
    print(json.dumps({"seconds": took, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1:])

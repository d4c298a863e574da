"""What eight processes take that sweep parameters over one universe, read from a server, and from the Parquet files themselves.

Memory is counted proportionally (a page that n processes map counts 1/n in each), in the workers and the server together, while
all of them hold what they read and have touched every value of it. "Beyond the start" is without what the same processes take
when they have imported everything, are connected, and have read nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import polars as pl
from examples import sweep

import fletching
from benchmarks.contenders import ROOT
from benchmarks.figures import Row, Spread
from benchmarks.processes import available_bytes, proportional_bytes
from benchmarks.servers import Addresses, fletching_server
from benchmarks.universe import SESSIONS, TABLE, Universe, fill, span

WORKERS: Final = 8
FACTORS: Final = 12  # columns of numbers beside those of a bar: 164 bytes a row
SYMBOLS: Final = 5000  # so 2 GB in ten years
MOST_BYTES: Final = 18 << 30  # what one sweep may take of the machine
MEMORY: Final = "3GiB"
TARGET: Final = 1.15
_STEP_SECONDS: Final = 600.0
_LIMIT: Final = "one image per partition in memory; the rest is Python and its libraries, and what Polars computes with"


def run(effort: float = 1.0) -> list[Row]:
    """Return what the workers take in copies of the universe, by each way of starting them."""
    universe = Universe(symbols=max(250, round(SYMBOLS * min(1.0, effort))), factors=FACTORS)
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        universe, plane, one_copy = _stored(folder, universe)
        return [row for method in ("spawn", "fork") for row in _rows(method, folder, universe, plane, one_copy)]


def _stored(folder: Path, universe: Universe) -> tuple[Universe, str, int]:
    """Write the universe; where each worker would take a copy of its own, one so small that all of them fit."""
    with fletching_server(folder, memory=MEMORY) as server, fletching.connect(server.tcp) as cache:
        fill(cache, Universe(50, universe.years[-1:], FACTORS))
        _, info = cache.read(TABLE, None, *span(universe.years[-1]), ["close"], info=True)
        cache.delete(TABLE)
        if info.plane != "local":
            universe = Universe(min(universe.symbols, _symbols_within(WORKERS + 3, universe)), universe.years, FACTORS)
        fill(cache, universe)
        return universe, info.plane, int(cache.stats()["hot_bytes"])


def _symbols_within(copies: int, universe: Universe) -> int:
    """Return of how many symbols so many copies fit into what may be taken."""
    row = 16 + 4 + 8 * (6 + universe.factors)
    return int(min(MOST_BYTES, 0.7 * available_bytes()) / (copies * row * SESSIONS * len(universe.years)))


def _rows(method: str, folder: Path, universe: Universe, plane: str, one_copy: int) -> list[Row]:
    years = list(universe.years)
    with fletching_server(folder, memory=MEMORY) as server:  # a new one, that holds nothing yet
        served = _measured(method, {"url": server.tcp, "years": years}, server)
    some = max(1, min(len(years), int(min(MOST_BYTES, 0.7 * available_bytes()) / ((WORKERS + 4) * one_copy / len(years)))))
    files = _measured(method, {"files": [_file(folder, year) for year in years[:some]]})
    theirs = one_copy * some / len(years)
    what = f"{WORKERS} workers by {method} sweep {one_copy / 1e9:.2g} GB, {plane}"
    peer = f"polars {pl.__version__}, each worker reads {some} of {len(years)} years of the Parquet by itself"
    parts = {"one_copy_mb": one_copy / 1e6, **{f"{name}_mb": taken / 1e6 for name, taken in served.items()}}
    net = (served["held"] - served["start"]) / one_copy, (files["held"] - files["start"]) / theirs
    gross = served["held"] / one_copy, files["held"] / theirs
    return [
        _row(f"{what}: memory beyond the start", net, parts, peer),
        _row(f"{what}: all memory", gross, parts, peer),
    ]


def _row(what: str, copies: tuple[float, float], parts: dict[str, float], peer: str) -> Row:
    ours, theirs = copies
    spreads = [Spread.of([value]) for value in (ours, theirs, ours / theirs)]
    return Row(what, "copies", *spreads, f"<= {TARGET}", ours <= TARGET, _LIMIT, parts, peer)


def _file(folder: Path, year: int) -> str:
    (path,) = (folder / "store" / "data" / TABLE / str(year)).glob("*.parquet")
    return str(path)


def _measured(method: str, given: dict[str, Any], server: Addresses | None = None) -> dict[str, int]:
    """Return the bytes that all take at the start, and when the workers hold the universe."""
    # A process of its own starts them: one that has worked with Polars must not fork.
    asked = json.dumps({**given, "method": method, "server": [server.pid] if server else []})
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}  # the workers are the parallel part
    command = [sys.executable, "-m", "benchmarks.workers", asked]
    told = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, check=True).stdout
    found: dict[str, int] = json.loads(told)
    return found


# What runs in the children


def _coordinate(given: Mapping[str, Any]) -> dict[str, int]:
    context = multiprocessing.get_context(given["method"])
    together = context.Barrier(WORKERS + 1, timeout=_STEP_SECONDS)
    workers = [context.Process(target=_work, args=(number, given, together), daemon=True) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    pids = [*given["server"], *(worker.pid for worker in workers if worker.pid)]
    together.wait()  # all are ready
    start = proportional_bytes(pids)
    together.wait()  # they begin
    together.wait()  # they have swept
    held, by_server = proportional_bytes(pids), proportional_bytes(given["server"])
    together.wait()  # they may go
    for worker in workers:
        worker.join()
    return {"start": start, "held": held, "held_by_server": by_server}


def _work(number: int, given: Mapping[str, Any], together: Any) -> None:
    cache = fletching.connect(given["url"]) if "url" in given else None
    together.wait()
    together.wait()
    if cache:
        sweep.frames.extend(cache.read(TABLE, None, *span(year)) for year in given["years"])
    else:
        sweep.frames.extend(pl.read_parquet(path) for path in given["files"])
    for frame in sweep.frames:
        _touch(frame)
    sweep.score_of(sweep.PAIRS[number % len(sweep.PAIRS)])
    together.wait()
    together.wait()


def _touch(frame: pl.DataFrame) -> None:
    """Look at every value."""
    frame.select(pl.col("symbol").str.len_bytes().sum(), pl.col("trading_date").max(), pl.col(pl.Float64, pl.Int64).sum())


if __name__ == "__main__":
    print(json.dumps(_coordinate(json.loads(sys.argv[1]))))

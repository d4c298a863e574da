"""Sweep the parameters of a strategy in many processes that read one universe, which a server on this machine holds in memory.

    python examples/sweep.py --workers 8 --symbols 500 --years 5 --method fork

Each pair of moving averages is scored by one of the workers. All of them read all bars, and on Linux those bars lie in memory
once: a worker maps what the server holds. No network, no configuration; the bars are made up, and nothing stays behind.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

import fletching

TABLE = "universe"
SESSIONS = 244
PAIRS = list(product((5, 10, 20), (50, 100)))  # a fast and a slow average, in sessions

frames: list[pl.DataFrame] = []  # in each worker: the universe, a frame per year


def main(workers: int, symbols: int, years: int, method: str) -> None:
    span = range(2025 - years, 2025)
    with tempfile.TemporaryDirectory() as store, server(store) as url, fletching.connect(url) as cache:
        for year in span:
            cache.write(TABLE, bars(symbols, year), keys=["symbol", "trading_date"], time="trading_date")
        started = time.perf_counter()
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(workers, context, initializer=open_universe, initargs=(url, span)) as pool:
            for (fast, slow), score in zip(PAIRS, pool.map(score_of, PAIRS), strict=True):
                print(f"{fast:>3} over {slow:>3}: {score:+.4%} a day")
            # Read while the workers are still there: a page that several of them map counts its share in each.
            held = sum(proportional_megabytes(pid) for pid in pool._processes)  # noqa: SLF001  # the pool has no other way
        print(f"{workers} workers, {symbols * SESSIONS * years:,} bars: {time.perf_counter() - started:.2f} s, {held:,.0f} MB")


# What a worker does


def open_universe(url: str, years: range) -> None:
    """Read each year by itself: a partition that is read whole is mapped as it lies, several in one read are strung together."""
    cache = fletching.connect(url)
    frames.extend(cache.read(TABLE, None, f"{year}-01-01", f"{year}-12-31") for year in years)


def score_of(pair: tuple[int, int]) -> float:
    """Return the mean return per day of holding what has its fast average above its slow one; each year on its own."""
    made, days = 0.0, 0
    for frame in frames:
        for part in by_symbols(frame):
            returns = returned(part, *pair)
            made, days = made + returns.sum(), days + len(returns)
    return made / days


def returned(bars: pl.DataFrame, fast: int, slow: int) -> pl.Series:
    close = pl.col("close")
    held = (close.rolling_mean(fast) > close.rolling_mean(slow)).shift(1)
    return bars.select(close.pct_change().filter(held).over("symbol", mapping_strategy="explode")).to_series()


def by_symbols(frame: pl.DataFrame, count: int = 50) -> Iterator[pl.DataFrame]:
    """Yield slices of *count* symbols each: they share the frame's memory, and what is computed of them stays small."""
    lengths = frame["symbol"].rle().struct.field("len").to_list()
    start = 0
    for first in range(0, len(lengths), count):
        rows = sum(lengths[first : first + count])
        yield frame[start : start + rows]
        start += rows


# What they work on


def bars(symbols: int, year: int) -> pa.Table:
    """Return made-up bars of one year. Not with Polars: its threads would not survive the fork of this process."""
    random, rows = np.random.default_rng(year), symbols * SESSIONS
    days = np.busday_offset(f"{year}-01-01", np.arange(SESSIONS), roll="forward").astype("datetime64[D]")
    close = 50 * np.exp(np.cumsum(random.normal(0, 0.02, (symbols, SESSIONS)), axis=1)).ravel()
    columns = {name: close * random.uniform(0.98, 1.02, rows) for name in ("open", "high", "low")}
    names = np.repeat([f"{number:06}.SZ" for number in range(1, symbols + 1)], SESSIONS)
    volume = random.integers(1_000, 1_000_000, rows)
    return pa.table({"symbol": names, "trading_date": np.tile(days, symbols), **columns, "close": close, "volume": volume})


@contextmanager
def server(store: str) -> Iterator[str]:
    """Run a server on *store*, and end it in the end."""
    command = [sys.executable, "-m", "fletching_server", "serve", "--listen", "grpc://127.0.0.1:0", "--store", store]
    with subprocess.Popen(
        [*command, "--memory", "4GiB"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield (process.stdout.readline() if process.stdout else "").removeprefix("listening on ").strip()
        finally:
            process.send_signal(signal.SIGTERM)


def proportional_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--symbols", type=int, default=200)
    parser.add_argument("--years", type=int, default=3)
    parser.add_argument("--method", choices=["spawn", "fork"], default="spawn")
    main(**vars(parser.parse_args()))

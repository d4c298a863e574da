"""What opening a store takes: as it grows with the same journal, and as the journal grows in the same store."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import polars as pl

import fletching
from benchmarks.figures import Row, Spread, interleaved, scaled, seconds
from fletching_schemas import Action

TABLE: Final = "daily"
FIRST: Final = date(1990, 1, 1)
FILES: Final = (10, 1_000, 10_000)
JOURNALS: Final = (10, 100, 1_000)
SETTINGS: Final = {"memory": "256MiB", "compact_segments": 10**6, "compact_idle_seconds": 3600.0}
ROUNDS: Final = 12
BY_FILES: Final = "the catalogue's rows are read, and the names of the files listed; of the files none is opened"
BY_JOURNAL: Final = "each file of the journal is read and its checksum compared"


def run(effort: float = 1.0) -> list[Row]:
    """Return milliseconds to open and close stores of several sizes, in turns."""
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        largest = FILES if effort >= 1 else FILES[:2]
        stores = {f"{count:,} partitions of 5 symbols, 10 segments": (count, 5, 10) for count in largest}
        stores["250 partitions of 2,000 symbols, 10 segments"] = (250, 2_000, 10)
        stores |= {f"10 partitions of 5 symbols, {count:,} segments": (10, 5, count) for count in JOURNALS[1:]}
        for number, shape in enumerate(stores.values()):
            _build(folder / str(number), *shape)
        contenders = {what: partial(_opened, folder / str(number)) for number, what in enumerate(stores)}
        samples = interleaved(contenders, scaled(ROUNDS, effort), warm_up=1)
        return [Row(what, "ms", Spread.of(samples[what]), limit=_limit(shape)) for what, shape in stores.items()]


def _limit(shape: tuple[int, int, int]) -> str:
    return BY_JOURNAL if shape[2] > shape[0] else BY_FILES


def _opened(store: Path) -> float:
    return 1e3 * seconds(lambda: fletching.open(store, **SETTINGS).close())


def _build(store: Path, partitions: int, symbols: int, segments: int) -> None:
    """Write a day per partition, fold, and leave *segments* more writes in the journal."""
    with fletching.open(store, **SETTINGS) as cache:
        step = max(1, 500_000 // symbols)
        for start in range(0, partitions, step):
            rows = _rows(range(start, min(start + step, partitions)), symbols)
            cache.write(TABLE, rows, keys=["symbol", "trading_date"], time="trading_date", partition="day")
        cache._transport.act(Action.COMPACT, {"dataset": TABLE})  # noqa: SLF001  # compaction is no verb of the client
        for number in range(segments):
            cache.write(TABLE, _rows([number % partitions], symbols), keys=["symbol", "trading_date"], time="trading_date")


def _rows(days: range | list[int], symbols: int) -> pl.DataFrame:
    names = [f"{number:06}.SZ" for number in range(1, symbols + 1)]
    dates = [FIRST + timedelta(days=day) for day in days]
    return pl.DataFrame(
        {
            "symbol": pl.Series(names * len(dates)),
            "trading_date": pl.Series(np.repeat(np.array(dates, dtype="datetime64[D]"), symbols)),
            "close": np.random.default_rng(dates[0].toordinal()).uniform(2, 200, symbols * len(dates)),
        }
    )

"""A made-up market of daily bars as a user table: what every contender holds, one partition per year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl

import fletching
from fletching_schemas import Action

TABLE = "daily"
SESSIONS = 244  # of a year, as an A-share year has


@dataclass(frozen=True)
class Universe:
    """*symbols* traded in each of *years*, with *factors* more columns of numbers beside the six of a bar."""

    symbols: int = 5000
    years: Sequence[int] = tuple(range(2015, 2025))
    factors: int = 0

    def names(self) -> list[str]:
        """Return the symbols, sorted."""
        return [f"{number:06}.SZ" for number in range(1, self.symbols + 1)]

    def rows(self, year: int) -> pl.DataFrame:
        """Return all bars of *year*, sorted by symbol and session; the same at every call."""
        random, count = np.random.default_rng(year), self.symbols * SESSIONS
        close = np.round(random.uniform(2, 200, count), 2)
        numbers = {name: np.round(close * random.uniform(0.97, 1.03, count), 2) for name in ("open", "high", "low")}
        volume = random.integers(1_000, 50_000_000, count)
        more = {f"factor_{number:02}": random.normal(size=count) for number in range(self.factors)}
        return pl.DataFrame(
            {
                "symbol": pl.Series(np.repeat(self.names(), SESSIONS)),
                "trading_date": pl.Series(np.tile(sessions(year), self.symbols)),
                **numbers,
                "close": close,
                "volume": volume,
                "amount": close * volume,
                **more,
            }
        )


def sessions(year: int) -> np.ndarray:
    """Return the sessions of *year*: its first weekdays."""
    return np.busday_offset(f"{year}-01-01", np.arange(SESSIONS), roll="forward").astype("datetime64[D]")


def span(first: int, last: int | None = None) -> tuple[date, date]:
    """Return the first and the last day from year *first* to year *last*."""
    return date(first, 1, 1), date(last or first, 12, 31)


def fill(cache: fletching.Cache, universe: Universe, table: str = TABLE) -> None:
    """Write a year at a time, fold each into its partition, and read all of them, so that they are hot."""
    for year in universe.years:
        cache.write(table, universe.rows(year), keys=["symbol", "trading_date"], time="trading_date", partition="year")
        cache._transport.act(Action.COMPACT, {"dataset": table})  # noqa: SLF001  # compaction is no verb of the client
    for _ in range(2):
        found = [cache.read(table, None, *span(year), ["close"], info=True)[1] for year in universe.years]
    wrong = [info for info in found if (info.partitions, info.tier, info.rows) != (1, "hot", universe.symbols * SESSIONS)]
    if wrong:
        raise RuntimeError(f"not one hot partition per year: {wrong[0]}")

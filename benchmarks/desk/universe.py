"""What can be read, by number: a dataset, a bucket of it, a session; and how many bytes each partition has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.desk import profiles
from benchmarks.desk.sessions import Numbers

TICKS: Final = "ticks"
BARS: Final = "bars_1m"
NO_SESSION: Final = -1
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, eq=False)
class Universe:
    """Datasets by number: ticks, bars, then the reference tables. A symbol's number is its rank by size and popularity."""

    profile: profiles.Universe
    tick_bytes: np.ndarray[tuple[int, int], np.dtype[np.int64]]  # by symbol and session

    @property
    def datasets(self) -> list[str]:
        """The names of the datasets."""
        return [TICKS, BARS, *(table.name for table in self.profile.tables)]

    def buckets(self, dataset: int) -> list[str]:
        """Return the names of a dataset's buckets."""
        if dataset == 0:
            return [f"S{symbol:04}" for symbol in range(self.profile.symbols)]
        return [f"sector-{sector:02}" for sector in range(self.profile.sectors)] if dataset == 1 else ["*"]

    def sector(self, symbols: Numbers) -> Numbers:
        """Return the sectors of symbols: dealt out, so that each has large and small ones."""
        return symbols % self.profile.sectors

    def bytes(self, datasets: Numbers, buckets: Numbers, sessions: Numbers) -> Numbers:
        """Return the bytes of partitions."""
        tables = [0, self.profile.bars_megabytes, *(table.megabytes for table in self.profile.tables)]
        sizes = (np.array(tables) * _MEGABYTE).astype(np.int64)[datasets]
        ticks = datasets == 0
        sizes[ticks] = self.tick_bytes[buckets[ticks], sessions[ticks]]
        return sizes


def universe_of(profile: profiles.Universe, sessions: int, chance: np.random.Generator) -> Universe:
    """Return the universe of *sessions*, history included."""
    usual = profile.largest_megabytes * (np.arange(profile.symbols) + 1.0) ** -profile.size_exponent
    sizes = usual[:, None] * chance.lognormal(0, profile.size_spread, (profile.symbols, sessions))
    return Universe(profile, (sizes.clip(*profile.size_limits) * _MEGABYTE).astype(np.int64))


def popular(symbols: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return with which chance each symbol is drawn: Zipf's law over their ranks."""
    weights = (np.arange(symbols) + 1.0) ** -exponent
    return np.asarray(weights / weights.sum())

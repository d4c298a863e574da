"""Upstream calls beside the fewest that could do: what a rate-limited vendor sees of a team that reads and reads again.

The source takes one symbol per call, as eastmoney does; time is a clock that stands where it is put.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import fletching
from benchmarks.figures import Row, Spread
from fletching_server import Engine, open_engine
from fletching_server.service import Service
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock

SYMBOLS: Final = 1000
FIRST: Final = date(2025, 11, 10)
FRIDAY: Final = datetime(2026, 11, 6, 12, 0, tzinfo=UTC)  # 20:00 in Shanghai: the week has settled
CLIENTS: Final = 3


def run(effort: float = 1.0) -> list[Row]:
    """Return the calls of each step, and their ratio to the fewest possible."""
    count = max(10, round(SYMBOLS * min(effort, 1.0)))
    with TemporaryDirectory(prefix="fb-") as name:
        return _Story(Path(name), count).rows()


class _Story:
    """One store from its first read on, step by step."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._clock = ManualClock(FRIDAY)
        self._symbols = SimSource(symbols=count).symbols("bars_1d")
        self._engine = self._open("store")

    def _open(self, store: str) -> Engine:
        source = SimSource(symbols=self._count, symbols_per_call=1)
        return open_engine(self._folder / store, [source], self._clock, compact_idle_seconds=3600)

    def _step(self, what: str, fewest: int, act: Callable[[], object], limit: str = "") -> Row:
        before = self._engine.stats.snapshot()["upstream_calls"]
        act()
        calls = self._engine.stats.snapshot()["upstream_calls"] - before
        ratio = Spread.of([calls / fewest]) if fewest else None
        ours, peer = Spread.of([calls]), Spread.of([float(fewest)])
        return Row(f"{what}, {self._count:,} symbols", "calls", ours, peer, ratio, "1.0 (or 0)", calls == fewest, limit)

    def _read(self, first: date, last: date) -> None:
        with Service(self._engine, "grpc://127.0.0.1:0") as service, fletching.connect(service.url) as cache:
            cache.read("bars_1d", None, first, last)

    def rows(self) -> list[Row]:
        count, today = self._count, FRIDAY.date()
        rows = [self._step("cold, one year", count, lambda: self._read(FIRST, today))]
        rows.append(self._step("the same again", 0, lambda: self._read(FIRST, today)))
        self._clock.advance(days=7)
        later = today + timedelta(days=7)
        told = "with the last session of before, once more: its second look rides along"
        rows.append(self._step("extended by 5 sessions", count, lambda: self._read(FIRST, later), told))
        self._engine.close()
        self._engine = self._open("store")
        rows.append(self._step("after a restart", 0, lambda: self._read(FIRST, later)))
        rows.append(self._step("across Golden Week, cold", count, self._golden_week))
        rows.append(self._step(f"{CLIENTS} clients at once, cold", count, self._together))
        self._engine.close()
        return rows

    def _golden_week(self) -> None:
        self._read(date(2025, 9, 15), date(2025, 10, 24))

    def _together(self) -> None:
        door = threading.Barrier(CLIENTS)
        with Service(self._engine, "grpc://127.0.0.1:0") as service:

            def ask() -> None:
                with fletching.connect(service.url) as cache:
                    door.wait()
                    cache.read("bars_1d", None, date(2024, 1, 1), date(2024, 12, 31))

            threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

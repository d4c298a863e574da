"""How long it takes to know what is missing: a market of 20 years of daily cells, of which every hundredth is not held."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from benchmarks.figures import Row, Spread, scaled, seconds
from fletching_schemas import Action, ReadRequest, canonical
from fletching_server import open_engine
from fletching_server.almanac import build_calendar
from fletching_server.calendars import day_number
from fletching_server.gaps import World
from fletching_server.plan import resolve
from fletching_server.snapshot import DatasetState
from fletching_server.sources.sim import SimSource
from fletching_server.spans import FINAL, Facts, Span

SYMBOLS: Final = 5000
FIRST, LAST = date(2006, 1, 4), date(2025, 12, 31)
NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def run(effort: float = 1.0) -> list[Row]:
    """Return the milliseconds of a plan over the whole market, and of the coverage of one symbol."""
    return [_plan(scaled(200, effort)), _coverage(scaled(200, effort))]


def _plan(rounds: int) -> Row:
    calendar = build_calendar("XSHG", NOW.date())
    state = DatasetState(canonical("bars_1d", calendar="XSHG"), "vendor", coverage=_coverage_with_holes(calendar.days))
    request, world = ReadRequest("bars_1d", tuple(state.coverage), FIRST, LAST), World(calendar, NOW, None, fillable=True)
    samples = [1e3 * seconds(lambda: resolve(request, state, world)) for _ in range(rounds)]
    spread, runs = Spread.of(samples), resolve(request, state, world).gaps
    parts = {"runs missing": float(sum(map(len, runs.values()))), "first plan of a picture, ms": samples[0]}
    what = f"plan of {SYMBOLS:,} symbols x 20 years, 1 % missing"
    return Row(what, "ms", spread, target="p95 < 10", met=spread.p95 < 10, limit="arrays of 240,000 facts", parts=parts)


def _coverage_with_holes(days: np.ndarray) -> dict[str, Facts]:
    """Return facts of every symbol with a random hundredth of its sessions left out: 240,000 runs, the hardest case."""
    days = days[(days >= day_number(FIRST)) & (days <= day_number(LAST))]
    chance, fetched = np.random.default_rng(7), NOW.timestamp() - 86400
    facts = {}
    for number in range(SYMBOLS):
        holes = np.sort(chance.choice(len(days), len(days) // 100, replace=False))
        starts, stops = np.append(0, holes + 1), np.append(holes, len(days)) - 1
        runs = [(int(days[a]), int(days[b])) for a, b in zip(starts, stops, strict=True) if a <= b]
        facts[f"{number:06}.SZ"] = Facts(Span(first, last, FINAL, "", fetched) for first, last in runs)
    return facts


def _coverage(rounds: int) -> Row:
    with TemporaryDirectory(prefix="fb-") as name, open_engine(Path(name), [SimSource(symbols=50)]) as engine:
        engine.read(ReadRequest("bars_1d", None, date(2016, 1, 1), date(2025, 12, 31))).close()
        symbol = engine.store.state("bars_1d").symbols[0]
        body = {"dataset": "bars_1d", "symbols": [symbol], "start": "2016-01-01", "end": "2025-12-31"}
        spread = Spread.of([1e3 * seconds(lambda: engine.act(Action.COVERAGE, body)) for _ in range(rounds)])
    return Row("coverage of one symbol, 10 years", "ms", spread, target="p95 < 1", met=spread.p95 < 1)

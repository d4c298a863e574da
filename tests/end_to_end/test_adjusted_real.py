"""Adjusted closes of real US shares, against LEAN's own factors: an independent parse of the zips and factor files."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

import fletching
from fletching_server.service import Service
from fletching_server.sources.files import FilesSource

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "lean"
TICKERS = ("aapl", "fb", "googl", "ibm", "qqq", "spy", "uso", "wm")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="LEAN's market data of ../shared/data/lean is not here")


def lean_closes(ticker: str) -> dict[date, float]:
    """Return each day's close times price factor times split factor, as LEAN defines them."""
    folder = SHARED / "equity" / "usa"
    rows = list(csv.reader((folder / "factor_files" / f"{ticker}.csv").read_text().splitlines()))
    steps = [(date.fromisoformat(day), float(price) * float(split)) for day, price, split, _ in rows]
    with zipfile.ZipFile(folder / "daily" / f"{ticker}.zip") as archive:
        bars = csv.reader(archive.read(f"{ticker}.csv").decode().splitlines())
        found = {date.fromisoformat(row[0][:8]): int(row[4]) / 10_000 for row in bars}
    return {day: close * next(factor for until, factor in steps if day <= until) for day, close in found.items()}


@pytest.fixture(scope="module", params=["embedded", "flight"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fletching.Cache]:
    source = FilesSource.from_config({"mapping": "lean", "root": str(SHARED)}, Path())
    with fletching.open(tmp_path_factory.mktemp("lean") / "store", [source]) as embedded:
        if request.param == "embedded":
            yield embedded
            return
        engine = embedded._transport._engine  # type: ignore[attr-defined]
        with Service(engine, "grpc://127.0.0.1:0") as service, fletching.connect(service.url) as connected:
            yield connected


@pytest.mark.parametrize("ticker", TICKERS)
def test_adjusted_closes_are_leans(cache: fletching.Cache, ticker: str) -> None:
    """LEAN's factors are 1 from the last event on, so they are qfq as of a session after it."""
    expected = lean_closes(ticker)
    frame = cache.read("bars_1d", f"{ticker.upper()}.US", "1998-01-02", "2021-03-31", adjust="qfq", adjust_ref="2026-01-02")
    found = dict(zip(frame["trading_date"], frame["close"], strict=True))
    assert found
    assert {day: expected[day] for day in found} == pytest.approx(found, rel=1e-9)
    reused = {"fb": 716, "wm": 2465, "uso": 140}.get(ticker, 0)  # rows of other securities under the same ticker
    assert len(found) == len(expected) - reused

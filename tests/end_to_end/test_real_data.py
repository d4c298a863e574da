"""Real published files through a server in another process, killed and started again, against a plain reading of them.

The data may not be copied into this repository; see the README beside it. Without it these tests are skipped.
"""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching import ReadInfo
from fletching_schemas import canonical

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
US = DATA / "lean" / "equity" / "usa"
NEW_YORK = ZoneInfo("America/New_York")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real market data is not at {DATA}")

TICK_DAY = "2013-10-07"
READS: dict[str, tuple[str, list[str] | None, str | None, str | None]] = {
    "daily": ("us_bars_1d", None, "1998-01-02", "2021-03-31"),
    "minute": ("us_bars_1m", ["AAPL.US", "SPY.US"], "2013-10-04", "2023-08-03"),
    "trades": ("us_trades", ["BAC.US"], TICK_DAY, TICK_DAY),
    "quotes": ("us_quotes_l1", ["BAC.US"], TICK_DAY, TICK_DAY),
    "ashare": ("bars_1d", ["000001.SZ", "000333.SZ"], "2015-06-01", "2025-05-30"),
}


@dataclass
class Readings:
    """What two servers on one store answered, the second after the first was killed."""

    first: dict[str, tuple[pl.DataFrame, ReadInfo]]
    second: dict[str, tuple[pl.DataFrame, ReadInfo]]
    upstream_calls: int


@pytest.fixture(scope="module")
def readings(module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Readings:
    folder = tmp_path_factory.mktemp("real")
    (folder / "lean.toml").write_text(f'mapping = "lean"\nroot = "{DATA / "lean"}"\nprefix = "us_"\n')
    (folder / "ashare.toml").write_text(f'mapping = "ashare"\nroot = "{DATA / "ashare"}"\n')
    sources = [f"files:{folder / 'lean.toml'}", f"files:{folder / 'ashare.toml'}"]
    taken = []
    for _ in range(2):
        server = module_processes.serve(folder / "store", sources)
        with fletching.connect(server.url()) as cache:
            taken.append({name: cache.read(*asked, info=True) for name, asked in READS.items()})
            calls = cache.stats()["upstream_calls"]
        server.send("kill")
        server.wait()
    return Readings(taken[0], taken[1], calls)


# A plain reading of the same files


def plain(path: Path) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        return list(csv.reader(io.StringIO(archive.read(name).decode())))


def dollars(rows: list[list[str]], place: int) -> list[float]:
    return [int(row[place]) / 10000 for row in rows]


def whole(rows: list[list[str]], place: int) -> list[int]:
    return [int(row[place]) for row in rows]


def micros(day: date, rows: list[list[str]], plus_milliseconds: int = 0) -> list[int]:
    """Milliseconds since local midnight as microseconds since 1970: no day in these files changes its clocks."""
    midnight = int(datetime.combine(day, time(), NEW_YORK).timestamp()) * 1000
    return [(midnight + int(row[0]) + plus_milliseconds) * 1000 for row in rows]


def in_utc(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("ts").cast(pl.Datetime("us", "UTC")))


def day_of(path: Path) -> date:
    return datetime.strptime(path.name[:8], "%Y%m%d").date()  # noqa: DTZ007  a date has no zone


def plain_daily(ticker: str) -> pl.DataFrame:
    rows = plain(US / "daily" / f"{ticker}.zip")
    days = [date(int(row[0][:4]), int(row[0][4:6]), int(row[0][6:8])) for row in rows]
    prices = {name: dollars(rows, place) for place, name in enumerate(("open", "high", "low", "close"), 1)}
    return pl.DataFrame({"trading_date": days, **prices, "volume": whole(rows, 5)})


def plain_minutes(ticker: str) -> pl.DataFrame:
    parts = []
    for path in sorted((US / "minute" / ticker).glob("*_trade.zip")):
        rows, day = plain(path), day_of(path)
        prices = {name: dollars(rows, place) for place, name in enumerate(("open", "high", "low", "close"), 1)}
        ends = micros(day, rows, 60_000)
        parts.append(in_utc(pl.DataFrame({"ts": ends, "trading_date": [day] * len(rows), **prices, "volume": whole(rows, 5)})))
    return pl.concat(parts)


@pytest.mark.parametrize("name", READS)
def test_a_restarted_server_answers_the_same_without_upstream(name: str, readings: Readings) -> None:
    (first, filled), (second, held) = readings.first[name], readings.second[name]
    assert_frame_equal(second, first)
    assert (filled.tier, held.tier) == ("source", "cold")
    assert filled.upstream_calls > 0
    assert (held.upstream_calls, held.joined_calls, readings.upstream_calls) == (0, 0, 0)
    assert held.rows == second.height == first.height > 0


def test_answers_have_the_standard_types(readings: Readings) -> None:
    names = {"daily": "bars_1d", "minute": "bars_1m", "trades": "trades", "quotes": "quotes_l1", "ashare": "bars_1d"}
    for name, standard in names.items():
        expected = pl.DataFrame(pl.from_arrow(canonical(standard).schema.empty_table())).schema
        assert readings.first[name][0].schema == expected


def test_daily_bars_equal_the_files_and_no_row_is_lost(readings: Readings) -> None:
    served = readings.first["daily"][0]
    columns = ["trading_date", "open", "high", "low", "close", "volume"]
    tickers = sorted(path.stem for path in (US / "daily").glob("*.zip"))
    assert len(tickers) == 8
    for ticker in tickers:
        code = ticker.upper()
        mine = served.filter(pl.col("symbol").str.contains(f"^{code}(-[0-9]{{6}})?\\.US$")).sort("trading_date").select(columns)
        assert_frame_equal(mine, plain_daily(ticker))
    assert served.height == 35_528
    assert served.equals(served.sort("symbol", "trading_date"))


def test_tickers_that_changed_hands_are_separate_symbols(readings: Readings) -> None:
    served = readings.first["daily"][0]
    spans = {
        symbol: (low, high, rows)
        for symbol, low, high, rows in served.group_by("symbol")
        .agg(low=pl.col("trading_date").min(), high=pl.col("trading_date").max(), rows=pl.len())
        .rows()
    }
    assert spans["FB-200303.US"] == (date(1999, 9, 29), date(2003, 3, 28), 716)
    assert spans["FB.US"] == (date(2012, 5, 18), date(2021, 3, 31), 2231)
    assert spans["WM-200809.US"] == (date(1998, 12, 9), date(2008, 9, 26), 2465)
    assert spans["WM.US"] == (date(2009, 8, 5), date(2021, 3, 31), 5399 - 2465)
    assert spans["USO.US"][0] == date(2006, 4, 10)
    assert spans["QQQ.US"][2] == 3964  # it was QQQQ for a while, and is one security all the same


def test_minute_bars_end_a_minute_after_the_files_start_them(readings: Readings) -> None:
    served = readings.first["minute"][0]
    for ticker in ("aapl", "spy"):
        mine = served.filter(symbol=f"{ticker.upper()}.US")
        expected = plain_minutes(ticker)
        assert_frame_equal(mine.select(expected.columns), expected)
    opening = served.filter(symbol="AAPL.US", trading_date=date(2014, 6, 5))["ts"].to_list()
    assert datetime(2014, 6, 5, 9, 31, tzinfo=NEW_YORK) in opening
    assert served.height == 2303 + 5786


def test_trades_equal_the_file_in_its_order_with_every_duplicate(readings: Readings) -> None:
    served = readings.first["trades"][0]
    day = date.fromisoformat(TICK_DAY)
    rows = plain(US / "tick" / "bac" / "20131007_trade.zip")
    expected = in_utc(
        pl.DataFrame(
            {
                "ts": micros(day, rows),
                "seq": range(len(rows)),
                "trading_date": [day] * len(rows),
                "price": dollars(rows, 1),
                "size": whole(rows, 2),
                "exchange": [row[3] for row in rows],
                "condition": [row[4] for row in rows],
            }
        )
    )
    assert_frame_equal(served.select(expected.columns), expected)
    facts = ["ts", "price", "size", "exchange", "condition"]
    assert served.height - served.select(facts).unique().height > 0.1 * served.height  # fully equal trades are real
    assert served["condition"].dtype == pl.String
    assert served["condition"].str.contains("^[0-9A-Fa-f]+$").all()
    assert set(served["symbol"]) == {"BAC.US"}


def test_quotes_equal_the_file_in_its_order_with_every_duplicate(readings: Readings) -> None:
    served = readings.first["quotes"][0]
    day = date.fromisoformat(TICK_DAY)
    rows = plain(US / "tick" / "bac" / "20131007_quote.zip")
    expected = in_utc(
        pl.DataFrame(
            {
                "ts": micros(day, rows),
                "seq": range(len(rows)),
                "trading_date": [day] * len(rows),
                "bid_px": dollars(rows, 1),
                "ask_px": dollars(rows, 3),
                "bid_sz": whole(rows, 2),
                "ask_sz": whole(rows, 4),
                "exchange": [row[5] for row in rows],
                "condition": [row[6] for row in rows],
            }
        )
    )
    assert_frame_equal(served.select(expected.columns), expected)
    assert served.height == 476_855


def test_a_shares_equal_their_files(readings: Readings) -> None:
    served, info = readings.first["ashare"]
    for code in ("000001", "000333"):
        with (DATA / "ashare" / f"{code}.csv").open() as file:
            rows = list(csv.DictReader(file))
        names = ("open", "high", "low", "close")
        expected = pl.DataFrame(
            {
                "trading_date": [date.fromisoformat(row["datetime"]) for row in rows],
                **{name: [float(row[name]) for row in rows] for name in names},
                "volume": [int(float(row["volume"])) for row in rows],
            }
        )
        mine = served.filter(symbol=f"{code}.SZ")
        assert_frame_equal(mine.select(expected.columns), expected)
    assert served.height == 1704 + 2380
    told = [str(gap) for gap in info.gaps if gap.symbol == "000333.SZ"]
    assert told == [
        f"000333.SZ {first}..{last} no_trade"
        for first, last in (
            ("2016-05-18", "2016-05-31"),
            ("2018-09-10", "2018-10-26"),
            ("2019-02-20", "2019-02-20"),
            ("2019-05-08", "2019-05-21"),
        )
    ]

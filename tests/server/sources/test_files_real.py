"""The ready mappings against real published files, each value compared with a plain reading of the same file.

The data may not be copied into this repository; see the README beside it. Without it these tests are skipped.
"""

from __future__ import annotations

import csv
import io
import zipfile
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from fletching_schemas import FetchRequest
from fletching_server.sources import Source, SymbolLister
from fletching_server.sources.files import FilesSource

if TYPE_CHECKING:
    import pyarrow as pa

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
EVER = (date(1990, 1, 1), date(2050, 1, 1))
NEW_YORK = ZoneInfo("America/New_York")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real market data is not at {DATA}")


@pytest.fixture(scope="module")
def lean() -> FilesSource:
    return FilesSource.from_config({"mapping": "lean", "root": str(DATA / "lean"), "prefix": "us_"}, Path())


@pytest.fixture(scope="module")
def ashare() -> FilesSource:
    return FilesSource.from_config({"mapping": "ashare", "root": "ashare"}, DATA)


def plain(path: Path, member: str | None = None) -> list[list[str]]:
    """Every field of a zip as the csv module reads it."""
    with zipfile.ZipFile(path) as archive:
        names = [member] if member else archive.namelist()
        return [row for name in names for row in csv.reader(io.StringIO(archive.read(name).decode()))]


def dollars(text: str) -> float:
    return int(text) / 10000


def moment_of(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%d %H:%M")  # noqa: DTZ007  local: the zone is put on where it matters


def at(day: date, milliseconds: str, zone: ZoneInfo = NEW_YORK) -> datetime:
    local = datetime.combine(day, time()) + timedelta(milliseconds=int(milliseconds))
    return local.replace(tzinfo=zone).astimezone(UTC)


def fetched(source: FilesSource, name: str, symbols: list[str], first: date, last: date) -> pa.Table:
    table = source.fetch(FetchRequest(name, tuple(symbols), first, last))
    dataset = next(item for item in source.datasets() if item.name == name)
    assert table.schema.equals(dataset.schema, check_metadata=True)
    table.validate(full=True)
    return table


def rows(table: pa.Table, *columns: str) -> list[tuple[object, ...]]:
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def test_it_is_a_source_that_lists_symbols(lean: FilesSource) -> None:
    assert isinstance(lean, Source)
    assert isinstance(lean, SymbolLister)


def test_ashare_equals_its_files(ashare: FilesSource) -> None:
    assert ashare.symbols("bars_1d") == ["000001.SZ", "000333.SZ"]
    expected = []
    for code in ("000001", "000333"):
        with (DATA / "ashare" / f"{code}.csv").open() as lines:
            for row in csv.DictReader(lines):
                prices = [float(row[name]) for name in ("open", "high", "low", "close")]
                expected.append((f"{code}.SZ", date.fromisoformat(row["datetime"]), *prices, int(float(row["volume"]))))
    table = fetched(ashare, "bars_1d", ["000333.SZ", "000001.SZ"], *EVER)
    assert rows(table, "symbol", "trading_date", "open", "high", "low", "close", "volume") == expected
    assert table["open_interest"].null_count == table["suspended"].null_count == table.num_rows


LISTED = ["AAPL.US", "FB-200303.US", "FB.US", "GOOGL.US", "IBM.US", "QQQ.US", "SPY.US", "USO-199812.US", "USO.US",
          "WM-200809.US", "WM.US"]  # fmt: skip


def owner(code: str, day: date) -> str:
    """Whose bar it is, by the README of the data: three of the eight tickers were used before."""
    taken = {"fb": (date(2012, 5, 18), "FB-200303.US"), "wm": (date(2009, 8, 5), "WM-200809.US"),
             "uso": (date(2006, 4, 10), "USO-199812.US")}  # fmt: skip
    since, former = taken.get(code, (date.min, ""))
    return f"{code.upper()}.US" if day >= since else former


def test_daily_bars_equal_their_files_and_no_row_is_lost(lean: FilesSource) -> None:
    assert lean.symbols("us_bars_1d") == LISTED
    expected = []
    for path in sorted((DATA / "lean/equity/usa/daily").iterdir()):
        for moment, *prices, volume in plain(path):
            day = moment_of(moment).date()
            expected.append((owner(path.stem, day), day, *map(dollars, prices), int(volume)))
    table = fetched(lean, "us_bars_1d", LISTED, *EVER)
    assert table.num_rows == 35_528
    assert rows(table, "symbol", "trading_date", "open", "high", "low", "close", "volume") == sorted(expected)


@pytest.mark.parametrize(
    ("symbol", "count", "first", "last"),
    [
        ("WM-200809.US", 2_465, date(1998, 12, 9), date(2008, 9, 26)),
        ("WM.US", 5_399 - 2_465, date(2009, 8, 5), date(2021, 3, 31)),
        ("FB-200303.US", 716, date(1999, 9, 29), date(2003, 3, 28)),
        ("FB.US", 2_231, date(2012, 5, 18), date(2021, 3, 31)),
        ("USO-199812.US", 140, date(1998, 1, 2), date(1998, 12, 30)),
        ("USO.US", 3_770, date(2006, 4, 10), date(2021, 3, 31)),
        ("QQQ.US", 3_964, date(1999, 3, 10), date(2021, 3, 31)),  # its ticker was qqqq for six years: the same security
    ],
)
def test_a_reused_ticker_never_mixes_two_securities(lean: FilesSource, symbol: str, count: int, first: date, last: date) -> None:
    days = fetched(lean, "us_bars_1d", [symbol], *EVER)["trading_date"].to_pylist()
    assert (len(days), days[0], days[-1]) == (count, first, last)
    assert fetched(lean, "us_bars_1d", [symbol], first, first).num_rows == 1
    assert fetched(lean, "us_bars_1d", [symbol], EVER[0], first - timedelta(1)).num_rows == 0
    assert fetched(lean, "us_bars_1d", [symbol], last + timedelta(1), EVER[1]).num_rows == 0


def test_hourly_bars_equal_their_files(lean: FilesSource) -> None:
    expected = []
    for code in ("aapl", "ibm", "spy"):
        for moment, *prices, volume in plain(DATA / f"lean/equity/usa/hour/{code}.zip"):
            start = moment_of(moment)
            end = (start + timedelta(hours=1)).replace(tzinfo=NEW_YORK).astimezone(UTC)
            expected.append((f"{code.upper()}.US", end, start.date(), *map(dollars, prices), int(volume)))
    table = fetched(lean, "us_bars_1h", ["SPY.US", "IBM.US", "AAPL.US"], *EVER)
    assert rows(table, "symbol", "ts", "trading_date", "open", "high", "low", "close", "volume") == expected


@pytest.mark.parametrize("kind", ["trade", "quote"])
def test_minute_bars_equal_their_files(lean: FilesSource, kind: str) -> None:
    expected = []
    for code in ("aapl", "spy"):
        for path in sorted((DATA / f"lean/equity/usa/minute/{code}").glob(f"*_{kind}.zip")):
            day = date.fromisoformat(path.name[:8])
            for passed, *values in plain(path):
                end = at(day, passed) + timedelta(minutes=1)
                counts = {4} if kind == "trade" else {4, 9}
                numbers = [int(text) if index in counts else dollars(text) for index, text in enumerate(values)]
                expected.append((f"{code.upper()}.US", end, day, *numbers))
    sides = [f"{side}_{name}" for side in ("bid", "ask") for name in ("open", "high", "low", "close", "sz")]
    columns = ["open", "high", "low", "close", "volume"] if kind == "trade" else sides
    name = "us_bars_1m" if kind == "trade" else "us_quotes_1m"
    table = fetched(lean, name, ["AAPL.US", "SPY.US"], *EVER)
    assert table.num_rows == {"trade": 2_303 + 5_786, "quote": 2_512 + 6_373}[kind]
    assert rows(table, "symbol", "ts", "trading_date", *columns) == expected


@pytest.mark.parametrize(("code", "day"), [("bac", date(2013, 10, 7)), ("spy", date(2013, 10, 8))])
def test_trades_equal_their_files_row_for_row(lean: FilesSource, code: str, day: date) -> None:
    listed = plain(DATA / f"lean/equity/usa/tick/{code}/{day:%Y%m%d}_trade.zip")
    expected = [
        (f"{code.upper()}.US", at(day, passed), seq, day, dollars(price), int(size), exchange, condition)
        for seq, (passed, price, size, exchange, condition, _) in enumerate(listed)
    ]
    table = fetched(lean, "us_trades", [f"{code.upper()}.US"], day, day)
    assert table.num_rows == {"bac": 88_172, "spy": 451_545}[code]
    columns = ("symbol", "ts", "seq", "trading_date", "price", "size", "exchange", "condition")
    assert rows(table, *columns) == expected
    assert "20000020" in set(table["condition"].to_pylist()) or code == "spy"


def test_quotes_equal_their_file_one_sided_ones_included(lean: FilesSource) -> None:
    day = date(2013, 10, 7)
    listed = plain(DATA / "lean/equity/usa/tick/bac/20131007_quote.zip")
    expected = [
        ("BAC.US", at(day, passed), seq, day, dollars(bid), dollars(ask), int(bid_size), int(ask_size), venue, flags)
        for seq, (passed, bid, bid_size, ask, ask_size, venue, flags, _) in enumerate(listed)
    ]
    table = fetched(lean, "us_quotes_l1", ["BAC.US"], day, day)
    sides = ("bid_px", "ask_px", "bid_sz", "ask_sz")
    assert table.num_rows == 476_855
    assert rows(table, "symbol", "ts", "seq", "trading_date", *sides, "exchange", "condition") == expected


def test_every_tick_of_a_week_arrives_once(lean: FilesSource) -> None:
    counts = [88_172, 125_872, 122_832, 124_567, 112_177]
    table = fetched(lean, "us_trades", ["BAC.US"], date(2013, 10, 7), date(2013, 10, 11))
    assert table.num_rows == sum(counts)
    per_day = table.group_by("trading_date").aggregate([("seq", "count"), ("seq", "max")]).sort_by("trading_date")
    assert per_day["seq_count"].to_pylist() == counts
    assert per_day["seq_max"].to_pylist() == [count - 1 for count in counts]


def test_factors_adjust_as_the_factor_files_do(lean: FilesSource) -> None:
    for path in sorted((DATA / "lean/equity/usa/factor_files").iterdir()):
        with path.open() as lines:
            listed = [(date.fromisoformat(row[0]), float(row[1]) * float(row[2])) for row in csv.reader(lines)]
        table = fetched(lean, "us_adj_factors", [f"{path.stem.upper()}.US"], *EVER)
        steps = rows(table, "ex_date", "mul")
        assert steps[0] == (listed[0][0], 1.0)
        for last_day, factor in listed:  # a step holds from its day on, a line up to its day
            assert [mul for first, mul in steps if first <= last_day][-1] == factor / listed[0][1]  # type: ignore[operator]
        assert all(before[1] != after[1] for before, after in pairwise(steps))


def test_a_split_is_one_step_on_the_day_after_the_last_session_before_it(lean: FilesSource) -> None:
    table = fetched(lean, "us_adj_factors", ["AAPL.US"], date(2014, 6, 1), date(2014, 6, 30))
    before = fetched(lean, "us_adj_factors", ["AAPL.US"], EVER[0], date(2014, 5, 31))
    assert table["ex_date"].to_pylist() == [date(2014, 6, 7)]
    assert table["mul"][0].as_py() / before["mul"][-1].as_py() == pytest.approx(7)


def test_crypto_equals_its_files(lean: FilesSource) -> None:
    folder = DATA / "lean/crypto/coinbase"
    daily = [
        ("BTCUSD.COINBASE", moment_of(moment).date(), *map(float, values))
        for moment, *values in plain(folder / "daily/btcusd_trade.zip")
    ]
    columns = ("open", "high", "low", "close", "volume")
    table = fetched(lean, "us_crypto_bars_1d", ["BTCUSD.COINBASE"], *EVER)
    assert rows(table, "symbol", "trading_date", *columns) == daily
    day = date(2018, 4, 5)
    minutes = [
        (at(day, passed, ZoneInfo("UTC")) + timedelta(minutes=1), day, *map(float, values))
        for passed, *values in plain(folder / "minute/btcusd/20180405_trade.zip")
    ]
    table = fetched(lean, "us_crypto_bars_1m", ["BTCUSD.COINBASE"], day, day)
    assert rows(table, "ts", "trading_date", *columns) == minutes


def test_futures_take_the_contract_from_the_member(lean: FilesSource) -> None:
    folder = DATA / "lean/future/cme"
    symbols = list(lean.symbols("us_future_bars_1d"))
    assert len(symbols) == 8
    expected = [
        (symbol, moment_of(moment).date(), *map(float, prices), int(volume))
        for symbol in symbols
        for moment, *prices, volume in plain(folder / "daily/es_trade.zip", f"es_trade_{symbol[2:8]}.csv")
    ]
    columns = ("open", "high", "low", "close", "volume")
    table = fetched(lean, "us_future_bars_1d", symbols, *EVER)
    assert table.num_rows == 203
    assert rows(table, "symbol", "trading_date", *columns) == expected
    minutes = list(lean.symbols("us_future_bars_1m"))
    assert fetched(lean, "us_future_bars_1m", minutes, *EVER).num_rows == 1_671 + 1_721
    asked = ["ES201312.CME"]
    member = plain(folder / "minute/es/20131008_trade.zip", "20131008_es_minute_trade_201312.csv")
    day = date(2013, 10, 8)
    table = fetched(lean, "us_future_bars_1m", asked, day, day)
    assert rows(table, "open", "high", "low", "close", "volume") == [
        (*map(float, prices), int(volume)) for _, *prices, volume in member
    ]

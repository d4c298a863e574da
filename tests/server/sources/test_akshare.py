"""The real AKShare, in its own children, against a stand-in for the internet: every dataset, and every failure of the table."""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.server.sources import wire
from tests.server.sources.wire import KLINE, PAGE, line

from fletching_schemas import FetchRequest
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    SourceChanged,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
    UnknownSymbol,
)
from fletching_server.admission import admit_fetched
from fletching_server.almanac import build_calendar
from fletching_server.sources.akshare import AkshareSource

if TYPE_CHECKING:
    from tests.server.sources.fake_internet import FakeInternet

MONDAY, FRIDAY = date(2024, 3, 18), date(2024, 3, 22)
REAL = Path(__file__).parents[3].parent / "shared" / "data" / "ashare"


class Meter:
    """Grants every request and writes it down, unless it was told to refuse."""

    def __init__(self) -> None:
        self.spent: list[tuple[str, int]] = []
        self.refusal: Error | None = None

    def spend(self, family: str, requests: int = 1) -> None:
        self.spent.append((family, requests))
        if self.refusal:
            raise self.refusal


def asked(dataset: str, *symbols: str, start: date = MONDAY, end: date = FRIDAY) -> FetchRequest:
    return FetchRequest(dataset, symbols, start, end)


def pid_of(source: AkshareSource, family: str = "eastmoney") -> int:
    return source._library._children[family].pid


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def shared_source(shared_internet: FakeInternet) -> Iterator[AkshareSource]:
    assert shared_internet
    source = AkshareSource()
    yield source
    pids = [child.pid for child in source._library._children.values()]
    source.close()
    assert all(is_gone(pid) for pid in pids)


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def source(shared_source: AkshareSource, internet: FakeInternet, meter: Meter) -> AkshareSource:
    assert not internet.seen
    shared_source.use_meter(meter)
    shared_source._instruments = None
    shared_source._us_markets.clear()
    return shared_source


def fetched(source: AkshareSource, dataset: str, *symbols: str, **more: Any) -> list[dict[str, Any]]:
    """Return the rows of one fetch, admitted as the server would, without what is null."""
    request = asked(dataset, *symbols, **more)
    (offered,) = [each for each in source.datasets() if each.name == dataset]
    table = source.fetch(request)
    calendar = build_calendar(offered.calendar, date(2026, 11, 20))
    image = admit_fetched(offered, table, request, "akshare", calendar)
    return [{name: value for name, value in row.items() if value is not None} for row in image.table.to_pylist()]


BAR = {"open": 10.38, "high": 10.47, "low": 10.37, "close": 10.45, "amount": 847654321.12}
DAILY = {
    "bars_1d": ("000001.SZ", KLINE, "0.000001", 81_234_500),
    "etf_bars_1d": ("510300.SH", KLINE, "1.510300", 81_234_500),
    "index_bars_1d": ("000300.SH", KLINE, "1.000300", 812_345),
    "hk_bars_1d": ("00700.HK", wire.KLINE_HK, "116.00700", 81_234_500),
    "us_bars_1d": ("MSFT.US", wire.KLINE_US, "105.MSFT", 81_234_500),
}


@pytest.mark.parametrize("dataset", DAILY)
def test_daily_bars_of_every_market_are_canonical(
    source: AkshareSource, internet: FakeInternet, meter: Meter, dataset: str
) -> None:
    symbol, route, secid, volume = DAILY[dataset]
    written = "81234500" if dataset.startswith(("hk", "us")) else "812345"
    days = wire.weekdays(MONDAY, FRIDAY)
    internet.routes[route] = wire.klines(_kline(dataset, line(day, volume=written)) for day in days)
    rows = fetched(source, dataset, symbol)
    assert [row["trading_date"] for row in rows] == days
    derived = {} if dataset.startswith("index") else {"pre_close": 10.38, "turnover_rate": pytest.approx(0.0042)}
    assert rows[0] == {"symbol": symbol, "trading_date": MONDAY, **BAR, "volume": volume, **derived}
    ((_, _, query),) = internet.seen
    assert query["secid"] == secid
    assert meter.spent == [("eastmoney", 1)]


def _kline(dataset: str, text: str) -> str:
    return ",".join(text.split(",")[:8]) if dataset.startswith("index") else text


def test_the_range_travels_where_the_function_takes_one(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[KLINE] = wire.week
    assert len(fetched(source, "bars_1d", "600519.SH", "920002.BJ")) == 10
    assert [(query["secid"], query["beg"], query["end"]) for _, _, query in internet.seen] == [
        ("1.600519", "20240318", "20240322"),
        ("0.920002", "20240318", "20240322"),
    ]


def test_where_it_takes_none_the_whole_history_is_kept(source: AkshareSource, internet: FakeInternet) -> None:
    days = wire.weekdays(date(2024, 1, 2), date(2024, 1, 5))
    internet.routes[wire.KLINE_HK] = wire.klines(line(day, volume="81234500") for day in days)
    assert [row["trading_date"] for row in fetched(source, "hk_bars_1d", "00700.HK")] == days


def test_the_market_of_a_us_symbol_is_found_once(source: AkshareSource, internet: FakeInternet) -> None:
    def reply(query: dict[str, str]) -> bytes:
        known = query["secid"] == "106.BRK_B"
        return wire.klines([line(MONDAY, volume="81234500")]) if known else wire.NULL

    internet.routes[wire.KLINE_US] = reply
    for _ in range(2):
        assert len(fetched(source, "us_bars_1d", "BRK.B.US")) == 1
    assert [query["secid"] for _, _, query in internet.seen] == ["105.BRK_B", "106.BRK_B", "106.BRK_B"]
    with pytest.raises(UnknownSymbol, match=r"no NOPE\.US in its US markets 105, 106, 107"):
        fetched(source, "us_bars_1d", "NOPE.US")


def test_minutes_are_labelled_by_their_end_in_utc(source: AkshareSource, internet: FakeInternet) -> None:
    minutes = ["2024-03-18 09:31", "2024-03-18 11:30", "2024-03-18 13:01", "2024-03-18 15:00"]
    bars = [line(minute) for minute in minutes]
    internet.routes[wire.TRENDS] = wire.klines([",".join(bar.split(",")[:7]) + ",10.43" for bar in bars], "trends")
    internet.routes[KLINE] = wire.klines(bars)
    expected = [datetime(2024, 3, 18, hour, minute, tzinfo=UTC) for hour, minute in ((1, 31), (3, 30), (5, 1), (7, 0))]
    for dataset, klt in (("bars_1m", None), ("bars_5m", "5"), ("bars_60m", "60")):
        rows = fetched(source, dataset, "000001.SZ")
        assert [row["ts"] for row in rows] == expected
        assert rows[0] == {"symbol": "000001.SZ", "ts": expected[0], "trading_date": MONDAY, **BAR, "volume": 81_234_500}
        assert internet.seen[-1][2].get("klt") == klt


def test_one_sweep_is_the_close_of_a_whole_market(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    symbols = [f"{number:06}.SZ" for number in range(1, 71)]
    quotes = [wire.quote(symbol[:6]) for symbol in symbols[:60]] + [wire.quote("000070", "-", "-"), wire.quote("688981")]
    internet.routes[wire.SPOT] = wire.spot(quotes)
    rows = fetched(source, "bars_1d", *symbols, start=FRIDAY, end=FRIDAY)
    assert [row["symbol"] for row in rows] == symbols[:60]
    expected = {**BAR, "pre_close": 10.38, "volume": 81_234_500, "turnover_rate": pytest.approx(0.0042)}
    assert rows[0] == {"symbol": "000001.SZ", "trading_date": FRIDAY, **expected}
    assert len(internet.seen) == 1
    assert meter.spent == [("eastmoney", 60)]


def test_factors_come_without_running_what_upstream_sent(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    path = ("finance.sina.com.cn", "/realstock/company/sz000001/hfq.js")
    internet.routes[path] = wire.factors([("2023-08-25", "157.123"), ("1992-03-23", "1.5"), ("1900-01-01", "1.0")])
    rows = fetched(source, "adj_factors", "000001.SZ")
    assert [(row["ex_date"], row["mul"], row["add"]) for row in rows] == [
        (date(1900, 1, 1), 1.0, 0.0),
        (date(1992, 3, 23), 1.5, 0.0),
        (date(2023, 8, 25), 157.123, 0.0),
    ]
    assert rows[2]["known_at"] == datetime(2023, 8, 25, tzinfo=UTC)
    assert meter.spent == [("sina", 1)]
    internet.routes[path] = b"var x=__import__('os').abort()\n"
    with pytest.raises((SourceThrottled, SourceChanged)):
        fetched(source, "adj_factors", "000001.SZ")
    internet.routes[path] = wire.factors([("2023-08-25", "-1")])
    with pytest.raises(BadSourceData, match=r"-1\.0 on 2023-08-25 is not a positive factor"):
        fetched(source, "adj_factors", "000001.SZ")


def test_instruments_are_the_exchanges_own_lists(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    internet.routes |= wire.lists(wire.SHARES)
    rows = {row["symbol"]: row for row in fetched(source, "instruments", *wire.SHARES, "600001.SH", "000003.SZ")}
    assert sorted(rows) == sorted({*wire.SHARES, "600001.SH"})  # 000003 is listed: what is gone under it is older
    moutai, gone = rows["600519.SH"], rows["600001.SH"]
    assert (moutai["list_date"], moutai["mic"], moutai["board"], moutai["status"]) == (
        date(2001, 8, 27),
        "XSHG",
        "main",
        "listed",
    )
    assert (gone["delist_date"], gone["status"]) == (date(2009, 12, 29), "delisted")
    assert rows["920002.BJ"]["mic"] == "BJSE"
    assert {family for family, _ in meter.spent} == {"exchange"}
    before = len(internet.seen)
    assert "688981.SH" in source.symbols("bars_1d")
    assert source.lifetimes("bars_1d")["600519.SH"].first == date(2001, 8, 27)
    assert len(internet.seen) == before  # once a day


def test_dividends_are_per_share(source: AkshareSource, internet: FakeInternet) -> None:
    row = {"bonus": None, "transfer": 3.0, "cash": 2.85, "record": "2023-06-13", "ex": "2023-06-14", "announced": "2023-03-09"}
    undecided = {**row, "ex": None}
    internet.routes[wire.ACTIONS] = wire.actions([{**row, "report": "2022-12-31"}, {**undecided, "report": "2023-12-31"}])
    dividend, transfer = fetched(source, "corporate_actions", "000001.SZ")
    assert (dividend["kind"], dividend["ex_date"], dividend["cash_per_share"]) == ("dividend", date(2023, 6, 14), 0.285)
    assert (transfer["kind"], transfer["transfer_ratio"]) == ("transfer", pytest.approx(0.3))
    assert dividend["known_at"] == datetime(2023, 3, 9, tzinfo=UTC)


def test_news_come_through_curl(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    internet.routes[wire.NEWS] = wire.news([wire.article("2"), wire.article("1", "2024-03-18 08:00:00"), wire.article("2")])
    rows = fetched(source, "news", "000001.SZ")
    assert [row["title"] for row in rows] == ["x 1", "x 2"]
    assert rows[0]["published_at"] == datetime(2024, 3, 18, 0, 0, tzinfo=UTC)
    assert rows[0]["url"] == "http://finance.eastmoney.com/a/1.html"
    assert meter.spent == [("eastmoney", 1)]


HEADINGS = ("常用指标", "每股指标", "盈利能力", "成长能力", "收益质量", "财务风险", "营运能力")


def test_financials_are_long(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    items = [
        (title, value)
        for heading in HEADINGS
        for title, value in ((heading, None), (f"{heading}-a", 1.5), (f"{heading}-b", None))
    ]
    internet.routes[wire.FINANCIALS] = wire.financials({"20240331": items, "20231231": items})
    rows = fetched(source, "financials", "600519.SH")
    assert {row["report_period"] for row in rows} == {date(2024, 3, 31), date(2023, 12, 31)}
    assert {(row["item"], row["value"], row["statement"]) for row in rows} >= {("盈利能力-a", 1.5, "盈利能力")}
    assert meter.spent == [("sina", 1)]


# Failures

TROUBLE: dict[str, tuple[Any, type[Error], str]] = {
    "429": ((429, b"slow down"), SourceThrottled, "HTTP 429: you are throttled or banned; wait"),
    "403": ((403, b'{"data": null}'), SourceThrottled, "HTTP 403: you are throttled"),
    "502": ((502, b"bad gateway"), SourceUnavailable, "502"),
    "html": (PAGE, SourceThrottled, "a page where data is due: you are throttled"),
    "drop": ("drop", SourceThrottled, "dropped the connection: you are throttled.*RemoteDisconnected"),
    "extra column": (wire.klines([line(MONDAY) + ",1"]), SourceChanged, r"akshare 1\.\d+\.\d+ changed shape.*Length mismatch"),
    "no data key": (b"{}", SourceChanged, "changed shape.*KeyError"),
}
MARKETS = {
    "bars_1d": ("000001.SZ", KLINE),
    "etf_bars_1d": ("510300.SH", KLINE),
    "hk_bars_1d": ("00700.HK", wire.KLINE_HK),
    "us_bars_1d": ("MSFT.US", wire.KLINE_US),
    "index_bars_1d": ("000300.SH", KLINE),
    "bars_1m": ("000001.SZ", wire.TRENDS),
    "bars_5m": ("000001.SZ", KLINE),
}


@pytest.mark.parametrize("dataset", MARKETS)
@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_raised_and_the_child_lives_on(
    source: AkshareSource, internet: FakeInternet, dataset: str, trouble: str
) -> None:
    reply, kind, words = TROUBLE[trouble]
    symbol, route = MARKETS[dataset]
    if trouble == "extra column" and dataset == "bars_1m":
        reply = wire.klines([line(MONDAY)], "trends")
    internet.routes[route] = reply
    with pytest.raises(kind, match=words) as caught:
        source.fetch(asked(dataset, symbol))
    assert symbol in str(caught.value)
    pid = pid_of(source)
    internet.routes[KLINE] = wire.week
    assert source.fetch(asked("bars_1d", "000001.SZ")).num_rows == 5
    assert pid_of(source) == pid


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (wire.klines([line(MONDAY, volume="812345.5")]), r"成交量 in row 0 is 812345\.5"),
        (wire.klines([line(MONDAY, volume="many")]), "成交量 in row 0 is missing"),
        (wire.klines([line(MONDAY, close="inf")]), "收盘 in row 0 is inf: not a finite number"),
        (wire.klines([line(MONDAY).replace("2024-", "x")]), "日期 in row 0 is None: not a date"),
        (wire.klines([line(MONDAY, volume="81234500")]), "declared lots, looks like shares"),
    ],
)
def test_values_that_do_not_fit_are_named(source: AkshareSource, internet: FakeInternet, reply: bytes, words: str) -> None:
    internet.routes[KLINE] = reply
    with pytest.raises(BadSourceData, match=words):
        source.fetch(asked("bars_1d", "000001.SZ"))


def test_hong_kong_in_lots_would_be_noticed(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[wire.KLINE_HK] = wire.klines([line(MONDAY)])
    with pytest.raises(BadSourceData, match="declared shares, looks like lots"):
        source.fetch(asked("hk_bars_1d", "00700.HK"))


@pytest.mark.parametrize("body", [wire.klines([]), wire.NULL], ids=["no klines", "null"])
@pytest.mark.parametrize("dataset", ["bars_1d", "bars_5m"])
def test_the_exchanges_tell_an_unknown_symbol_from_an_empty_range(
    source: AkshareSource, internet: FakeInternet, body: bytes, dataset: str
) -> None:
    internet.routes |= {KLINE: body, **wire.lists(wire.SHARES)}
    assert source.fetch(asked(dataset, "000001.SZ")).num_rows == 0
    with pytest.raises(UnknownSymbol, match=r"neither Shanghai, Shenzhen nor Beijing lists 000099\.SZ; did you mean"):
        source.fetch(asked(dataset, "000099.SZ"))


def test_without_the_lists_an_empty_answer_says_nothing(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[KLINE] = wire.NULL
    with pytest.raises(SourceUnavailable, match="whether it exists cannot be told without the exchanges' lists"):
        source.fetch(asked("bars_1d", "000001.SZ"))


def test_hong_kong_null_is_an_unknown_symbol(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[wire.KLINE_HK] = wire.NULL
    with pytest.raises(UnknownSymbol, match="99999"):
        source.fetch(asked("hk_bars_1d", "99999.HK"))


def test_a_refused_sweep_does_not_go_on_knocking(source: AkshareSource, internet: FakeInternet) -> None:
    symbols = [f"{number:06}.SZ" for number in range(1, 71)]
    internet.routes[wire.SPOT] = (429, b"slow down")
    with pytest.raises(SourceThrottled, match="429"):
        source.fetch(asked("bars_1d", *symbols, start=FRIDAY, end=FRIDAY))
    assert len(internet.seen) == 1  # the library itself would try three times


def test_a_spent_budget_stops_the_request_before_it_leaves(source: AkshareSource, internet: FakeInternet, meter: Meter) -> None:
    internet.routes[KLINE] = wire.week
    meter.refusal = SourceThrottled("the budget of eastmoney is spent", datetime(2024, 3, 18, 12, tzinfo=UTC))
    with pytest.raises(SourceThrottled, match="budget of eastmoney") as caught:
        source.fetch(asked("bars_1d", "000001.SZ"))
    assert caught.value.retry_at == datetime(2024, 3, 18, 12, tzinfo=UTC)
    assert internet.seen == []
    meter.refusal = None
    assert source.fetch(asked("bars_1d", "000001.SZ")).num_rows == 5


def test_a_child_that_hangs_is_killed_and_replaced(
    source: AkshareSource, internet: FakeInternet, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet.routes[KLINE] = wire.week
    source.fetch(asked("bars_1d", "000001.SZ"))
    hanging = pid_of(source)
    internet.routes[KLINE] = "hang"
    with monkeypatch.context() as patch:
        patch.setattr(source._library, "_seconds", 0.5)
        with pytest.raises(SourceTimeout, match="in time and was killed"):
            source.fetch(asked("bars_1d", "000001.SZ"))
    assert is_gone(hanging)
    internet.routes[KLINE] = wire.week
    assert source.fetch(asked("bars_1d", "000001.SZ")).num_rows == 5
    assert pid_of(source) != hanging


def test_a_child_killed_from_outside_is_replaced(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[KLINE] = wire.week
    source.fetch(asked("bars_1d", "000001.SZ"))
    killed = pid_of(source)
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert source.fetch(asked("bars_1d", "000001.SZ")).num_rows == 5
    assert is_gone(killed)


def test_a_worn_child_is_replaced(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[KLINE] = wire.week
    source.fetch(asked("bars_1d", "000001.SZ"))
    worn = pid_of(source)
    source._library._children["eastmoney"].calls = 200
    source.fetch(asked("bars_1d", "000001.SZ"))
    assert is_gone(worn)


def test_closing_frees_a_fetch_under_way_and_leaves_no_child(internet: FakeInternet) -> None:
    source, caught = AkshareSource(), []

    def fetch() -> None:
        with pytest.raises(SourceUnavailable) as error:
            source.fetch(asked("bars_1d", "000001.SZ"))
        caught.append(str(error.value))

    internet.routes[KLINE] = "hang"
    thread = threading.Thread(target=fetch)
    thread.start()
    assert internet.reached.wait(timeout=60)
    pid = pid_of(source)
    source.close()
    thread.join(timeout=10)
    assert is_gone(pid)
    assert "died before it could answer" in caught[0]
    with pytest.raises(SourceUnavailable, match="closed"):
        source.fetch(asked("bars_1d", "000001.SZ"))


# Real bars, in eastmoney's form


@pytest.mark.skipif(not REAL.is_dir(), reason="the real A-share bars of ../shared/data/ashare are not here")
@pytest.mark.parametrize("symbol", ["000001.SZ", "000333.SZ"])
def test_real_bars_arrive_as_they_were(source: AkshareSource, internet: FakeInternet, symbol: str) -> None:
    with (REAL / f"{symbol[:6]}.csv").open() as file:
        real = list(csv.DictReader(file))
    for row in real:  # the file has no amounts: those that the mean of the day's prices gives
        row["lots"] = str(round(float(row["volume"]) / 100))
        row["amount"] = f"{float(row['lots']) * 100 * (float(row['high']) + float(row['low'])) / 2:.2f}"
    names = ("datetime", "open", "close", "high", "low", "lots", "amount")
    internet.routes[KLINE] = wire.klines(",".join([*(row[name] for name in names), "0.96,0.67,0.07,0.42"]) for row in real)
    rows = fetched(source, "bars_1d", symbol, start=date(2015, 6, 1), end=date(2025, 5, 30))
    assert [(row["trading_date"].isoformat(), row["open"], row["high"], row["low"], row["close"]) for row in rows] == [
        (row["datetime"], *(float(row[name]) for name in ("open", "high", "low", "close"))) for row in real
    ]
    assert [row["volume"] for row in rows] == [int(row["lots"]) * 100 for row in real]


def test_a_day_is_a_day(source: AkshareSource, internet: FakeInternet) -> None:
    internet.routes[KLINE] = wire.klines([line(FRIDAY + timedelta(days=3)), line(FRIDAY), line(MONDAY), line(date(2024, 3, 15))])
    assert [row["trading_date"] for row in fetched(source, "bars_1d", "000001.SZ")] == [MONDAY, FRIDAY]

"""A-shares through a server: the real library in its children, the guard, adjustment, and any function through the cache."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.server.sources import wire
from tests.server.sources.fake_internet import FakeInternet

import fletching
from fletching import Cache
from fletching import akshare as ak
from fletching_server import open_engine
from fletching_server.service import Service
from fletching_server.sources.akshare import AkshareSource
from fletching_server.testing import ManualClock

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "ashare"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SYMBOLS = [f"{number:06}.SZ" for number in range(1, 11)]
FACTORS = ("finance.sina.com.cn", "/realstock/company/sz000001/hfq.js")


@pytest.fixture(scope="module")
def module_internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeInternet]:
    internet = FakeInternet(tmp_path_factory.mktemp("internet"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_DIR"):
            patch.delenv(name, raising=False)
        for name, value in internet.environment().items():
            patch.setenv(name, value)
        yield internet
    internet.close()


class Rig:
    """A server over a fake internet, whose clock stands; it can be killed and started again."""

    def __init__(self, folder: Path, internet: FakeInternet) -> None:
        self.internet, self.clock = internet, ManualClock(NOW)
        internet.routes.clear()
        internet.seen.clear()
        self._folder = folder
        self._open()

    def _open(self) -> None:
        self.engine = open_engine(self._folder, [AkshareSource()], self.clock, threads=1)
        self.service = Service(self.engine, "grpc://127.0.0.1:0")
        self.cache: Cache = fletching.connect(self.service.url)

    def again(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.cache.close()
        self.service.close()
        assert self.engine.verify() == []
        self.engine.close()

    @property
    def asked(self) -> int:
        return len(self.internet.seen)


@pytest.fixture
def rig(tmp_path: Path, module_internet: FakeInternet) -> Iterator[Rig]:
    rig = Rig(tmp_path / "store", module_internet)
    yield rig
    ak.use(None)
    rig.close()


def test_a_year_of_bars_costs_one_request_per_symbol_and_none_afterwards(rig: Rig) -> None:
    rig.internet.routes[wire.KLINE] = wire.week
    frame, info = rig.cache.read("bars_1d", SYMBOLS[:3], "2026-03-02", "2026-03-31", info=True)
    assert (info.upstream_calls, rig.asked, frame["symbol"].n_unique()) == (3, 3, 3)
    assert (frame["volume"] == 81_234_500).all()
    assert rig.cache.read("bars_1d", SYMBOLS[:3], "2026-03-02", "2026-03-31").equals(frame)
    rig.again()
    assert rig.cache.read("bars_1d", SYMBOLS[:3], "2026-03-02", "2026-03-31").equals(frame)
    assert rig.asked == 3
    assert (rig.clock.now() - NOW) >= timedelta(seconds=4)  # requests keep their distance
    told = rig.cache.provenance("bars_1d", SYMBOLS[0]).row(0, named=True)
    assert (told["provider"], told["function"], told["unit_check"]) == ("akshare", "stock_zh_a_hist", "passed")
    spent = {(row["family"], row["budget"]): row["spent"] for row in rig.cache.guard().iter_rows(named=True)}
    assert spent["eastmoney", "hour"] == 3


def test_adjusted_prices_join_sinas_factors_to_eastmoneys_bars(rig: Rig) -> None:
    rig.internet.routes |= {
        wire.KLINE: wire.week,
        FACTORS: wire.factors([("2026-03-16", "3.0"), ("1991-04-03", "1.5"), ("1900-01-01", "1.0")]),
    }
    raw = rig.cache.read("bars_1d", "000001", "2026-03-09", "2026-03-20")
    adjusted, info = rig.cache.read("bars_1d", "000001", "2026-03-09", "2026-03-20", adjust="qfq", info=True)
    ratio = (adjusted["close"] / raw["close"]).to_list()
    assert ratio == pytest.approx([0.5] * 5 + [1.0] * 5)
    assert (info.adjustment.method, info.adjustment.factors) == ("qfq", "adj_factors")
    assert rig.asked == 2


def test_a_ban_keeps_what_arrived_and_leaves_the_upstream_alone(rig: Rig) -> None:
    def reply(query: dict[str, str]) -> Any:
        return "drop" if rig.asked > 4 else wire.week(query)

    rig.internet.routes[wire.KLINE] = reply
    frame, info = rig.cache.read("bars_1d", SYMBOLS, "2026-03-02", "2026-03-31", info=True)
    assert frame["symbol"].n_unique() == 4
    assert len(info.failed) == 6
    for status in info.failed.values():
        assert status.reason == "source_throttled"
        assert status.retry_at is not None
        assert timedelta(minutes=29) < status.retry_at - rig.clock.now() <= timedelta(minutes=31)
    assert rig.asked == 6  # four that arrived, one that was dropped, one more try, and then nobody
    with pytest.raises(fletching.SourceThrottled, match="6 of 10 symbols failed; what arrived is kept") as raised:
        rig.cache.read("bars_1d", SYMBOLS, "2026-03-02", "2026-03-31")
    assert raised.value.retry_at is not None
    rig.again()  # a restart ends no ban
    with pytest.raises(fletching.SourceThrottled, match="eastmoney is not asked before"):
        rig.cache.read("bars_1d", SYMBOLS[9], "2026-03-02", "2026-03-31")
    assert rig.asked == 6
    rig.internet.routes[wire.KLINE] = wire.week
    rig.clock.advance(minutes=40)
    whole, after = rig.cache.read("bars_1d", SYMBOLS, "2026-03-02", "2026-03-31", info=True)
    assert (whole["symbol"].n_unique(), after.upstream_calls, after.failed) == (10, 6, {})


def test_while_banned_todays_bar_is_served_with_its_age(rig: Rig) -> None:
    rig.clock.set(datetime(2026, 11, 20, 3, 0, tzinfo=UTC))  # 11:00 in Shanghai
    rig.internet.routes[wire.KLINE] = wire.week
    first = rig.cache.read("bars_1d", "000001", "2026-11-20", "2026-11-20")
    assert first.height == 1
    rig.internet.routes[wire.KLINE] = (429, b"slow down")
    rig.clock.advance(minutes=20)
    again, info = rig.cache.read("bars_1d", "000001", "2026-11-20", "2026-11-20", info=True)
    assert again.equals(first)
    assert info.stale
    assert info.age_seconds >= 1200
    assert info.symbols["000001.SZ"].reason == "stale"
    with pytest.raises(fletching.SourceThrottled):
        rig.cache.read("bars_1d", "000001", "2026-11-20", "2026-11-20", max_age=60)


def test_the_close_of_the_whole_market_is_one_sweep(rig: Rig) -> None:
    shares = {f"{number:06}.SZ": "1991-04-03" for number in range(1, 101)}
    rig.internet.routes |= {wire.SPOT: wire.spot([wire.quote(symbol[:6]) for symbol in shares]), **wire.lists(shares)}
    frame, info = rig.cache.read("bars_1d", sorted(shares), "2026-11-20", "2026-11-20", info=True)
    assert (frame.height, info.upstream_calls) == (100, 1)
    assert [path for _, path, _ in rig.internet.seen] == [wire.SPOT[1]]


def test_any_function_is_a_drop_in(rig: Rig) -> None:
    ak.use(rig.cache)
    rig.internet.routes[wire.KLINE] = wire.week
    frame = ak.stock_zh_a_hist("000001", "daily", start_date="20260302", end_date="20260313", adjust="qfq")
    assert list(frame.columns)[:3] == ["日期", "股票代码", "开盘"]
    assert frame["日期"].iloc[0] == date(2026, 3, 2)
    assert (frame["开盘"].dtype, frame["股票代码"].dtype) == ("float64", pd.Series(["x"]).dtype)
    asked = rig.asked
    by_name = ak.stock_zh_a_hist(end_date="20260313", adjust="qfq", symbol="000001", period="daily", start_date="20260302")
    pd.testing.assert_frame_equal(by_name, frame)
    assert rig.asked == asked == 1
    with pytest.raises(AttributeError, match="stock_zh_a_hist"):
        ak.stock_zh_a_hits("000001")
    assert "stock_zh_a_hist" in dir(ak)
    rig.internet.routes[wire.KLINE] = "drop"
    rig.clock.advance(days=2)
    with pytest.warns(ak.StaleAnswer, match="s old"):
        old = ak.stock_zh_a_hist("000001", "daily", "20260302", "20260313", "qfq")
    pd.testing.assert_frame_equal(old, frame)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real A-share bars of ../shared/data/ashare are not here")
def test_sinas_spot_pages_are_a_drop_in_too(rig: Rig) -> None:
    ak.use(rig.cache)
    bars = {}
    for code in ("000001", "000333"):
        with (REAL / f"{code}.csv").open() as file:
            *_, bars[f"sz{code}"] = csv.DictReader(file)
    others = {f"sh600{number:03}": bars["sz000001"] for number in range(98)}
    rig.internet.routes |= wire.sina_spot(bars | others)
    frame = ak.stock_zh_a_spot().set_index("代码")
    assert len(frame) == 100
    for symbol, bar in bars.items():
        found = frame.loc[symbol, ["今开", "最高", "最低", "最新价", "成交量"]].to_list()
        assert found == [float(bar[name]) for name in ("open", "high", "low", "close", "volume")]
    assert [path for _, path, _ in rig.internet.seen] == [wire.SINA_COUNT[1], *[wire.SINA_SPOT[1]] * 2]
    pd.testing.assert_frame_equal(ak.stock_zh_a_spot().set_index("代码"), frame)
    assert rig.asked == 3


HEADINGS = ("常用指标", "每股指标", "盈利能力", "成长能力", "收益质量", "财务风险", "营运能力")
ITEMS = [
    (title, value) for heading in HEADINGS for title, value in ((heading, None), (f"{heading}-a", 1.5), (f"{heading}-b", 2.5))
]
ACTION = {"cash": 2.85, "record": "2023-06-13", "ex": "2023-06-14", "announced": "2023-03-09", "report": "2022-12-31"}
WEEK, MONTH = wire.weekdays(date(2026, 11, 16), date(2026, 11, 20)), wire.weekdays(date(2026, 11, 2), date(2026, 11, 19))
SHARES_BARS = wire.klines(wire.line(day, volume="81234500") for day in MONTH)
INDEX_BARS = wire.klines(",".join(wire.line(day).split(",")[:8]) for day in WEEK)
TRENDS = wire.klines([",".join(wire.line(f"2026-11-20 {at}").split(",")[:7]) + ",10.43" for at in ("09:31", "15:00")], "trends")
ARTICLES = wire.news([wire.article("1", "2026-11-20 09:30:00"), wire.article("2", "2026-11-19 09:30:00")])
# What upstream answers, what is read, and how many rows there must be; of the last group of figures the library drops one.
READS: dict[str, tuple[dict[Any, Any], dict[str, Any], int]] = {
    "etf_bars_1d": ({wire.KLINE: wire.week}, {"symbols": "510300", "start": "2026-11-16"}, 5),
    "index_bars_1d": ({wire.KLINE: INDEX_BARS}, {"symbols": "000300", "start": "2026-11-16"}, 5),
    "hk_bars_1d": ({wire.KLINE_HK: SHARES_BARS}, {"symbols": "700.HK"}, 14),
    "us_bars_1d": ({wire.KLINE_US: SHARES_BARS}, {"symbols": "AAPL"}, 14),
    "bars_1m": ({wire.TRENDS: TRENDS}, {"symbols": "000001", "start": "2026-11-16"}, 2),
    "bars_30m": (
        {wire.KLINE: wire.klines([wire.line("2026-11-20 10:00")])},
        {"symbols": "000001", "start": "2026-11-20"},
        1,
    ),
    "adj_factors": ({FACTORS: wire.factors([("2026-03-16", "3.0"), ("1900-01-01", "1.0")])}, {"symbols": "000001"}, 2),
    "corporate_actions": ({wire.ACTIONS: wire.actions([ACTION])}, {"symbols": "000001"}, 1),
    "financials": ({wire.FINANCIALS: wire.financials({"20260930": ITEMS})}, {"symbols": "600519"}, 13),
    "news": ({wire.NEWS: ARTICLES}, {"symbols": "600519"}, 2),
    "instruments": (wire.lists(wire.SHARES), {}, len(wire.SHARES) + 1),
}


@pytest.mark.parametrize("dataset", READS)
def test_every_dataset_is_served_once_and_kept(rig: Rig, dataset: str) -> None:
    routes, asked, rows = READS[dataset]
    rig.internet.routes |= routes
    frame, info = rig.cache.read(dataset, info=True, **asked)
    assert (frame.height, info.failed) == (rows, {})
    before = rig.asked
    assert rig.cache.read(dataset, **asked).equals(frame)
    rig.again()
    again, info = rig.cache.read(dataset, info=True, on_miss="cached", **asked)
    assert again.equals(frame)
    assert rig.asked == before

"""The simulated market: the same whatever is asked, and lawful wherever a real market is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletching_schemas import FetchRequest
from fletching_schemas.errors import InvalidRequest, UnknownDataset, UnknownSymbol
from fletching_server.sources import Source, SymbolLister
from fletching_server.sources._sim_sessions import sessions_between
from fletching_server.sources.sim import SimSource

FIRST, LAST = date(2016, 1, 1), date(2019, 12, 31)
SIMS = {
    mic: SimSource(symbols=60, calendar=mic, first=FIRST, last=LAST, prefix=f"{mic.lower()}_") for mic in ("XSHG", "XHKG", "XNYS")
}
NAMES = ("bars_1d", "bars_1m", "trades", "quotes_l1", "adj_factors", "instruments")
DAYS = st.dates(FIRST - timedelta(days=5), LAST + timedelta(days=5))
every_market = pytest.mark.parametrize("mic", SIMS)


def rows(mic: str, name: str, symbols: Any = None, start: date = FIRST, end: date = LAST) -> pl.DataFrame:
    sim = SIMS[mic]
    dataset = f"{mic.lower()}_{name}"
    asked = sim.symbols(dataset) if symbols is None else symbols
    table = sim.fetch(FetchRequest(dataset, tuple(asked), start, end))
    table.validate(full=True)
    (offer,) = (offer for offer in sim.datasets() if offer.name == dataset)
    assert table.schema.equals(offer.schema, check_metadata=True)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def sort_keys(mic: str, name: str) -> tuple[str, ...]:
    return next(offer.sort_keys for offer in SIMS[mic].datasets() if offer.name.endswith(name))


def tradable(mic: str, day: date) -> list[str]:
    """Return three symbols that trade on the last session up to *day*, with that session as a string in front."""
    bars = rows(mic, "bars_1d", start=day - timedelta(days=12), end=day)
    last = bars.filter(pl.col("trading_date") == bars["trading_date"].max())
    return [str(last["trading_date"][0]), *last["symbol"][:3]]


def test_the_source_keeps_both_protocols() -> None:
    sim = SIMS["XSHG"]
    assert isinstance(sim, Source)
    assert isinstance(sim, SymbolLister)
    assert [offer.name for offer in SimSource(symbols=1, last=LAST).datasets()] == list(NAMES)
    assert {(offer.symbols_per_call, offer.first_session) for offer in sim.datasets()} == {(50, FIRST)}


def test_symbols_are_written_as_the_exchange_writes_them() -> None:
    shanghai, hong_kong, new_york = (SIMS[mic].symbols(f"{mic.lower()}_trades") for mic in SIMS)
    assert {symbol[:2] + symbol[6:] for symbol in shanghai} == {"60.SH", "00.SZ", "30.SZ"}
    assert hong_kong[:2] == ("00001.HK", "00002.HK")
    assert new_york[:2] == ("AAA.US", "AAB.US")
    for symbols in (shanghai, hong_kong, new_york):
        assert list(symbols) == sorted(set(symbols))
        assert len(symbols) == 60


@every_market
@settings(max_examples=25, deadline=None)
@given(days=st.tuples(DAYS, DAYS, DAYS), chosen=st.sets(st.integers(0, 59), min_size=1, max_size=8), data=st.data())
def test_no_answer_depends_on_how_it_is_cut(mic: str, days: tuple[date, ...], chosen: set[int], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    start, middle, end = sorted(days)
    if name in {"bars_1m", "trades", "quotes_l1"}:
        middle, end = min(middle, start + timedelta(days=3)), min(end, start + timedelta(days=6))
    symbols = [SIMS[mic].symbols(f"{mic.lower()}_{name}")[index] for index in chosen]
    whole = rows(mic, name, symbols, start, end)
    keys = sort_keys(mic, name)
    parts = [rows(mic, name, symbols, start, middle)]
    if middle < end:
        parts.append(rows(mic, name, symbols, middle + timedelta(days=1), end))
    assert whole.equals(pl.concat(parts).sort(keys))
    alone = [rows(mic, name, [symbol], start, end) for symbol in sorted(symbols)]
    assert whole.equals(pl.concat(alone))
    assert not whole.select(keys).is_duplicated().any()


def test_an_earlier_end_and_a_smaller_universe_change_nothing() -> None:
    small = SimSource(symbols=25, first=FIRST, last=date(2018, 6, 8))
    symbols = tuple(small.symbols("bars_1d"))
    assert set(symbols) < set(SIMS["XSHG"].symbols("xshg_bars_1d"))
    for name, start in (("bars_1d", FIRST), ("adj_factors", FIRST), ("trades", date(2018, 6, 8))):
        table = small.fetch(FetchRequest(name, symbols, start, LAST))
        assert table.num_rows
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        assert frame.equals(rows("XSHG", name, symbols, start, date(2018, 6, 8)))


def test_another_seed_is_another_market_and_the_same_seed_is_not() -> None:
    asked = FetchRequest("bars_1d", ("000001.SZ",), FIRST, LAST)
    markets = [SimSource(seed=seed, symbols=5, first=FIRST, last=LAST).fetch(asked) for seed in (1, 1, 2)]
    assert markets[0].equals(markets[1])
    assert not markets[0].equals(markets[2])


@every_market
def test_daily_bars_are_lawful(mic: str) -> None:
    bars = rows(mic, "bars_1d")
    laws = bars.select(
        low=pl.col("low") <= pl.min_horizontal("open", "close"),
        high=pl.col("high") >= pl.max_horizontal("open", "close"),
        limits=(pl.col("low") >= pl.col("limit_down")) & (pl.col("high") <= pl.col("limit_up")),
        width=(pl.col("limit_up") / pl.col("pre_close") - 1.1).abs() < 0.005,
        positive=pl.col("low") > 0,
        lots=(pl.col("volume") > 0) & (pl.col("volume") % 100 == 0),
        mean=(pl.col("amount") / pl.col("volume")).is_between(pl.col("low") - 1e-9, pl.col("high") + 1e-9),
        turnover=pl.col("turnover_rate").is_between(0, 0.5, closed="none"),
        trading=~pl.col("suspended"),
    )
    assert laws.select(pl.all().all()).row(0) == (True,) * len(laws.columns)
    prices = set(bars["close"]) | set(bars["high"]) | set(bars["limit_up"])
    assert all(price == round(price, 2) for price in prices)
    moves = (bars["close"] / bars["pre_close"]).log()
    assert 0.01 < float(moves.std() or 0) < 0.04  # type: ignore[arg-type]


@every_market
def test_rows_are_on_sessions_only(mic: str) -> None:
    sessions = sessions_between(mic, FIRST, LAST).days
    held = rows(mic, "bars_1d")["trading_date"].unique().sort()
    assert held.to_physical().to_list() == sessions.tolist()
    assert rows(mic, "bars_1d", start=LAST + timedelta(days=1), end=date(2030, 1, 1)).is_empty()


@every_market
@settings(max_examples=8, deadline=None)
@given(day=st.dates(FIRST + timedelta(days=20), LAST))
def test_trades_make_the_minutes_and_minutes_make_the_day(mic: str, day: date) -> None:
    shown, *symbols = tradable(mic, day)
    session = date.fromisoformat(shown)
    daily, minutes, trades = (rows(mic, name, symbols, session, session) for name in ("bars_1d", "bars_1m", "trades"))
    ohlcv = ["symbol", "open", "high", "low", "close", "volume"]
    assert summed(minutes, "symbol").equals(daily.select(ohlcv))
    ticks = trades.rename({"size": "volume"}).with_columns(
        ts=pl.col("ts").dt.truncate("1m") + pl.duration(minutes=1),
        amount=pl.col("price") * pl.col("volume"),
        **{name: pl.col("price") for name in ("open", "high", "low", "close")},
    )
    assert summed(ticks, "symbol", "ts").equals(minutes.select("symbol", "ts", *ohlcv[1:]))
    per_minute = ticks.group_by("symbol", "ts", maintain_order=True).agg(pl.col("amount").sum())
    assert (per_minute["amount"] - minutes["amount"]).abs().max() < 0.01  # type: ignore[operator]
    total = minutes.group_by("symbol", maintain_order=True).agg(pl.col("amount").sum())["amount"]
    assert ((total - daily["amount"]).abs() <= 50 * (daily["high"] - daily["low"]) + 0.01).all()
    assert trades["size"].min() >= 100  # type: ignore[operator]


def summed(frame: pl.DataFrame, *by: str) -> pl.DataFrame:
    first, last = pl.col("open").first(), pl.col("close").last()
    bars = (first, pl.col("high").max(), pl.col("low").min(), last, pl.col("volume").sum())
    return frame.group_by(*by, maintain_order=True).agg(*bars)


def test_quotes_are_the_book_that_the_trades_met() -> None:
    shown, *symbols = tradable("XSHG", date(2018, 3, 7))
    session = date.fromisoformat(shown)
    quotes, trades = (rows("XSHG", name, symbols, session, session) for name in ("quotes_l1", "trades"))
    book = quotes.join(trades, on=["symbol", "ts", "seq"], how="inner", validate="1:1")
    assert book.height == quotes.height == trades.height
    hit = pl.when(pl.col("side") == "B").then("ask_px").otherwise("bid_px")
    assert book.select((hit == pl.col("price")).all()).item()
    assert (book["ask_px"] > book["bid_px"]).all()
    limits = rows("XSHG", "bars_1d", symbols, session, session).select("symbol", "limit_up", "limit_down")
    priced = book.join(limits, on="symbol")
    assert priced.select((pl.col("bid_px") >= pl.col("limit_down")).all()).item()
    assert priced.select((pl.col("ask_px") <= pl.col("limit_up")).all()).item()


def test_minutes_lie_on_the_grid_of_their_exchange() -> None:
    shown, *symbols = tradable("XSHG", date(2018, 3, 7))
    session = date.fromisoformat(shown)
    labels = rows("XSHG", "bars_1m", symbols[:1], session, session)["ts"].to_list()
    assert len(labels) == 240
    expected = [(1, 31), (3, 30), (5, 1), (7, 0)]
    assert [labels[at] for at in (0, 119, 120, 239)] == [datetime(2018, 3, 7, *hour, tzinfo=UTC) for hour in expected]
    assert minutes_on("XHKG", date(2018, 3, 7)) == 330
    assert minutes_on("XHKG", date(2018, 12, 24)) == 150
    assert minutes_on("XNYS", date(2018, 12, 24)) == 210


def minutes_on(mic: str, day: date) -> int:
    symbol = tradable(mic, day)[1]
    return rows(mic, "bars_1m", [symbol], day, day).height


@every_market
def test_raw_times_factor_is_continuous(mic: str) -> None:
    factors = rows(mic, "adj_factors")
    joined = rows(mic, "bars_1d").join_asof(
        factors.select("symbol", "mul", trading_date="ex_date"), on="trading_date", by="symbol", check_sortedness=False
    )
    joined = joined.with_columns(
        was=(pl.col("close") * pl.col("mul")).shift(1).over("symbol"), now=pl.col("pre_close") * pl.col("mul")
    ).drop_nulls("was")
    assert ((joined["now"] / joined["was"] - 1).abs() < 1e-12).all()


@every_market
def test_most_symbols_go_ex_about_once_a_year(mic: str) -> None:
    factors = rows(mic, "adj_factors")
    listings = factors.group_by("symbol", maintain_order=True).first()
    assert (listings["mul"] == 1.0).all()
    events = factors.height - listings.height
    assert 0.5 < events / (listings.height * 4) < 1.0
    splits = factors.select((pl.col("mul") / pl.col("mul").shift(1).over("symbol")).max()).item()
    assert splits > 1.2
    assert (factors["known_at"].dt.date() < factors["ex_date"]).all()
    assert factors["source"].unique().to_list() == ["sim"]
    assert factors["method"].unique().to_list() == ["multiplicative"]


def test_symbols_list_delist_and_are_suspended() -> None:
    sim = SimSource(symbols=300)
    symbols = tuple(sim.symbols("bars_1d"))
    days = (date(2015, 1, 1), date(2026, 12, 31))
    tables = [sim.fetch(FetchRequest(name, symbols, *days)) for name in ("instruments", "bars_1d")]
    listed, bars = (pl.DataFrame(table) for table in tables)
    assert listed.height == len(symbols)
    assert 20 < (listed["list_date"] > date(2015, 1, 5)).sum() < 80
    assert 3 < listed["delist_date"].count() < 30
    span = bars.group_by("symbol", maintain_order=True).agg(
        pl.col("trading_date").min().alias("first"), pl.col("trading_date").max().alias("last"), pl.len()
    )
    both = listed.join(span, on="symbol")
    assert (both["first"] == both["list_date"]).all()
    assert both.select((pl.col("last") < pl.col("delist_date")).all()).item()
    sessions = sessions_between("XSHG", date(2015, 1, 1), None).days
    possible = sum(
        int(((sessions >= first) & (sessions <= last)).sum())
        for first, last in both.select(pl.col("first", "last").to_physical()).iter_rows()
    )
    assert 0.01 < 1 - bars.height / possible < 0.02


def test_instruments_say_what_a_symbol_is() -> None:
    assert rows("XSHG", "instruments", ["300001.SZ"]).select("code", "mic", "board", "currency", "lot_size").row(0) == (
        "300001", "XSHE", "chinext", "CNY", 100,
    )  # fmt: skip
    assert rows("XNYS", "instruments", ["AAA.US"]).select("code", "mic", "currency", "status").row(0) == (
        "AAA", "XNYS", "USD", "listed",
    )  # fmt: skip


def test_unknown_symbols_are_named_with_their_neighbours() -> None:
    with pytest.raises(UnknownSymbol, match=r"000001\.SH.*did you mean .*000001\.SZ"):
        rows("XSHG", "bars_1d", ["000001.SZ", "000001.SH"])
    with pytest.raises(UnknownSymbol, match=r"symbols look like AAA\.US"):
        rows("XNYS", "bars_1d", ["?"])


def test_a_request_that_cannot_be_met_is_an_error() -> None:
    sim = SIMS["XSHG"]
    with pytest.raises(UnknownDataset, match="xshg_trades"):
        sim.symbols("trades")
    with pytest.raises(UnknownDataset, match="sim has no dataset 'bars_5m'"):
        sim.fetch(FetchRequest("bars_5m", ("000001.SZ",), FIRST, LAST))
    with pytest.raises(InvalidRequest, match="swap"):
        sim.fetch(FetchRequest("xshg_trades", ("000001.SZ",), LAST, FIRST))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "no setting sed; it has seed, symbols"),
        ({"symbols": 0}, "symbols"),
        ({"symbols": "many"}, "symbols"),
        ({"calendar": "XLON"}, "XSHG, XHKG, XNYS"),
        ({"delay_seconds": -1}, "delay_seconds"),
        ({"delay_seconds": float("inf")}, "delay_seconds"),
        ({"first": "2015-13-01"}, "first"),
        ({"first": date(1900, 1, 1)}, "first"),
        ({"first": LAST, "last": FIRST}, "no sessions"),
        ({"first": date(2090, 1, 1)}, "no sessions"),
        ({"first": date(2018, 2, 17), "last": date(2018, 2, 18)}, "no sessions"),
        ({"prefix": "Sim-"}, "dataset"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SimSource.from_config(values)


def test_settings_come_from_a_mapping() -> None:
    sim = SimSource.from_config({"symbols": 3, "first": "2018-03-07", "last": date(2018, 3, 7), "name": "toy"})
    assert sim.name == "toy"
    bars = sim.fetch(FetchRequest("bars_1d", tuple(sim.symbols("bars_1d")), FIRST, LAST))
    assert set(bars["trading_date"].to_pylist()) == {date(2018, 3, 7)}


def test_each_fetch_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("fletching_server.sources.sim.sleep", waits.append)
    sim = SimSource(symbols=5, delay_seconds=0.25, last=LAST)
    sim.fetch(FetchRequest("bars_1d", tuple(sim.symbols("bars_1d")), FIRST, LAST))
    sim.fetch(FetchRequest("trades", ("000001.SZ",), LAST, LAST))
    assert waits == [0.25, 0.25]


def test_threads_may_share_a_source() -> None:
    sim = SimSource(symbols=40, first=FIRST, last=LAST)
    asked = FetchRequest("bars_1d", tuple(sim.symbols("bars_1d")), FIRST, LAST)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(sim.fetch, [asked] * 8))
    assert all(answer.equals(answers[0]) for answer in answers)


def test_the_market_does_not_know_what_day_it_is() -> None:
    assert date(1970, 1, 1) + timedelta(days=int(sessions_between("XNYS", FIRST, None).days[-1])) == date(2039, 12, 30)

"""Adjusted reads of an engine: computed on the way out, never stored, told in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, read, read_info
from tests.server.test_adjustment import factor

from fletching_schemas import Action, ReadRequest, canonical
from fletching_schemas.errors import InvalidRequest, NotCached, SourceUnavailable
from fletching_server import Engine
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock

A, B = SYMBOLS[0], SYMBOLS[1]
FIRST, EX, LAST = date(2026, 11, 2), date(2026, 11, 10), date(2026, 11, 20)


@pytest.fixture
def prices(november: list[date]) -> TableSource:
    return TableSource(canonical("bars_1d", calendar="XSHG", factors="adj_factors"), bars(SYMBOLS, november), "prices")


@pytest.fixture
def factors() -> TableSource:
    dataset = canonical("adj_factors", range_pushdown=False, first_session=date(2026, 1, 1), fresh_seconds=86400.0)
    rows: Any = {(A, EX): factor(A, EX, 2.0), (A, date(2026, 2, 2)): factor(A, date(2026, 2, 2), 1.25)}
    return TableSource(dataset, rows, "factors")


@pytest.fixture
def engine(open_store: Opener, prices: TableSource, factors: TableSource) -> Engine:
    return open_store(prices, factors)


def closes(engine: Engine, symbols: Any = A, **more: Any) -> list[float]:
    found: list[float] = read(engine, "bars_1d", symbols, FIRST, LAST, **more)["close"].to_pylist()
    return found


def test_q1_raw_and_adjusted_never_mix_in_any_order(engine: Engine, prices: TableSource, factors: TableSource) -> None:
    raw = closes(engine)
    forward, backward = closes(engine, adjust="qfq"), closes(engine, adjust="hfq")
    split = sum(day < EX for day in sorted(day for symbol, day in prices.rows if symbol == A))
    assert backward == [close * (1.25 if place < split else 2.0) for place, close in enumerate(raw)]
    assert forward == [close * (1.25 / 2.0 if place < split else 1.0) for place, close in enumerate(raw)]
    assert closes(engine) == raw
    assert closes(engine, adjust="qfq") == forward
    assert (len(prices.requests), len(factors.requests)) == (1, 1)  # they share their cells


def test_the_reference_session_keeps_its_prices(engine: Engine) -> None:
    raw = closes(engine)
    assert closes(engine, adjust="qfq", adjust_ref=FIRST)[0] == raw[0]
    assert closes(engine, adjust="qfq", adjust_ref=FIRST)[-1] == raw[-1] * 2.0 / 1.25
    assert closes(engine, adjust="qfq", adjust_ref=date(2026, 1, 5)) == closes(engine, adjust="hfq")


def test_the_info_says_method_reference_and_version(engine: Engine, factors: TableSource) -> None:
    _, info = read_info(engine, "bars_1d", A, FIRST, LAST, adjust="qfq")
    assert info.adjustment is not None
    assert (info.adjustment.method, info.adjustment.reference, info.adjustment.factors) == ("qfq", LAST, "adj_factors")
    assert (info.upstream_calls, info.rows) == (2, 15)
    _, again = read_info(engine, "bars_1d", A, FIRST, LAST, adjust="hfq")
    assert again.adjustment is not None
    assert (again.adjustment.version, again.adjustment.reference) == (info.adjustment.version, None)
    assert again.upstream_calls == 0
    factors.rows[A, EX] = factor(A, EX, 4.0)
    engine.act(Action.INVALIDATE, {"dataset": "adj_factors"})
    _, restated = read_info(engine, "bars_1d", A, FIRST, LAST, adjust="hfq")
    assert restated.adjustment is not None
    assert restated.adjustment.version != info.adjustment.version
    assert read_info(engine, "bars_1d", A, FIRST, LAST)[1].adjustment is None


def test_a_new_factor_changes_prices_and_fetches_no_bar(
    engine: Engine, prices: TableSource, factors: TableSource, clock: ManualClock
) -> None:
    before = closes(engine, adjust="qfq")
    asked = len(prices.requests)
    factors.rows[A, LAST] = factor(A, LAST, 8.0)
    clock.advance(hours=25)
    after = read(engine, "bars_1d", A, FIRST, date(2026, 11, 19), adjust="qfq", adjust_ref=LAST)["close"].to_pylist()
    assert after == pytest.approx([close / 4.0 for close in before[:-1]])
    assert len(prices.requests) == asked


def test_columns_come_as_they_were_asked_for(engine: Engine) -> None:
    table = read(engine, "bars_1d", [A, B], FIRST, LAST, columns=["close", "volume"], adjust="hfq")
    assert table.schema.names == ["close", "volume"]
    assert table["close"].to_pylist()[:15] == closes(engine, adjust="hfq")
    only = read(engine, "bars_1d", A, FIRST, LAST, columns=["volume"], adjust="hfq")
    assert only["volume"].to_pylist() == read(engine, "bars_1d", A, FIRST, LAST)["volume"].to_pylist()


def test_a_symbol_without_factors_is_as_it_is(engine: Engine) -> None:
    assert closes(engine, B, adjust="qfq") == closes(engine, B)


def test_only_what_is_held_is_used_where_the_reader_says_so(engine: Engine) -> None:
    raw = closes(engine)
    with pytest.raises(NotCached, match=r"adj_factors of 000001\.SZ is not held"):
        closes(engine, adjust="qfq", on_miss="cached")
    adjusted = closes(engine, adjust="qfq")
    assert adjusted != raw
    assert closes(engine, adjust="qfq", on_miss="cached") == adjusted


def test_without_factors_upstream_there_are_no_prices(engine: Engine, factors: TableSource) -> None:
    factors.error = RuntimeError("down")
    with pytest.raises(SourceUnavailable, match="down"):
        closes(engine, adjust="qfq")
    assert engine.hot.facts()["hot_leases"] == 0


def test_what_cannot_be_adjusted_says_so(open_store: Opener, prices: TableSource, factors: TableSource) -> None:
    plain = TableSource(replace(canonical("bars_1d", calendar="XSHG"), name="plain"), prices.rows, "plain")
    lost = TableSource(replace(prices.dataset, name="lost", factors="nowhere"), prices.rows, "lost")
    engine = open_store(prices, factors, plain, lost)
    for name in ("plain", "lost"):
        with pytest.raises(InvalidRequest, match=rf"prices of {name} cannot be adjusted.*bars_1d"):
            read(engine, name, A, FIRST, LAST, adjust="qfq")


def test_explaining_tells_what_would_be_used(engine: Engine) -> None:
    told = engine.act(Action.EXPLAIN, {"dataset": "bars_1d", "symbols": [A], "adjust": "qfq"})
    assert isinstance(told, dict)
    assert told["adjust"] == {"method": "qfq", "factors": "adj_factors", "reference": "the last session of the range"}


def test_minutes_are_adjusted_by_their_trading_date(open_store: Opener) -> None:
    engine = open_store(SimSource(symbols=20, first=date(2026, 1, 1)))
    symbols = engine.desk.listed("bars_1d") or frozenset()
    daily = read(engine, "bars_1d", None, "2026-06-01", "2026-06-05", columns=["symbol", "trading_date", "close"], adjust="hfq")
    expected = {(row["symbol"], row["trading_date"]): row["close"] for row in daily.to_pylist()}
    minutes = read(engine, "bars_1m", sorted(symbols), "2026-06-01", "2026-06-05", adjust="hfq")
    last = {(row["symbol"], row["trading_date"]): row["close"] for row in minutes.to_pylist()}
    assert last == pytest.approx(expected)


def test_a_stream_of_many_batches_is_adjusted_throughout(open_store: Opener) -> None:
    engine = open_store(SimSource(symbols=60, first=date(2024, 1, 1)), memory="1KiB")
    request = ReadRequest("bars_1d", None, date(2024, 1, 1), date(2026, 6, 30), adjust="hfq")
    batches = list(engine.read(request))
    assert len(batches) > 1
    adjusted = pa.Table.from_batches(batches)
    raw = read(engine, "bars_1d", None, "2024-01-01", "2026-06-30")
    assert adjusted.num_rows == raw.num_rows
    ratio = [a / b for a, b in zip(adjusted["close"].to_pylist(), raw["close"].to_pylist(), strict=True)]
    assert min(ratio) == 1.0
    assert max(ratio) > 1.0


# Prices that are kept in memory


def held(engine: Engine) -> int:
    return int(engine.hot.facts()["hot_entries"])


@pytest.mark.parametrize("symbols", [A, [A, B], SYMBOLS])
@pytest.mark.parametrize("columns", [None, ["close", "volume"]])
def test_prices_read_twice_are_kept_and_stay_the_same(engine: Engine, symbols: Any, columns: list[str] | None) -> None:
    asked: dict[str, Any] = {"symbols": symbols, "start": FIRST, "end": LAST, "columns": columns}
    read(engine, "bars_1d", **asked)
    read(engine, "adj_factors", symbols, date(2026, 1, 1), LAST)
    alone = held(engine)
    first, entries = read(engine, "bars_1d", **asked, adjust="qfq"), []
    entries.append(held(engine))
    for _ in range(3):
        assert read(engine, "bars_1d", **asked, adjust="qfq").equals(first)
        entries.append(held(engine))
    assert entries == [alone, alone + 1, alone + 1, alone + 1]
    assert engine.hot.check() == []
    assert engine.hot.facts()["hot_leases"] == 0
    engine.act(Action.EVICT, {"dataset": "bars_1d"})
    assert held(engine) <= alone
    assert read(engine, "bars_1d", **asked, adjust="qfq").equals(first)


def test_kept_prices_follow_a_new_factor_and_a_new_bar(engine: Engine, prices: TableSource, factors: TableSource) -> None:
    raw = closes(engine)
    for _ in range(3):
        before = closes(engine, adjust="hfq")
    factors.rows[A, EX] = factor(A, EX, 4.0)
    engine.act(Action.INVALIDATE, {"dataset": "adj_factors"})
    for _ in range(3):
        after = closes(engine, adjust="hfq")
        assert after[-1] == before[-1] * 2.0
    key = max(key for key in prices.rows if key[0] == A)
    bar: Any = prices.rows[key]
    prices.rows[key] = {**bar, "close": raw[-1] + 0.01}
    engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
    for _ in range(3):
        assert closes(engine, adjust="hfq") == [*after[:-1], (raw[-1] + 0.01) * 4.0]
    assert engine.hot.check() == []


def test_prices_that_change_nothing_are_not_kept(engine: Engine) -> None:
    closes(engine, B)
    for _ in range(3):
        closes(engine, B, adjust="qfq")
        entries = held(engine)
    assert all(not key.startswith("adjusted") for key in engine.hot._books.entries)
    assert entries == len(engine.hot._books.entries)

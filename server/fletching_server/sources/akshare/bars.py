"""Frames of bars as canonical rows: daily, minute, and the spot table of a whole market. Pure.

Eastmoney writes volumes of A shares, funds and minutes in lots of 100, of Hong Kong and the US in shares. Whether that still
holds is checked on every fill: the mean price, amount / volume, must lie between low and high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from fletching_server.sources.akshare.columns import (
    PRICES,
    SHARES_PER_LOT,
    Columns,
    beijing,
    check_days,
    check_traded,
    check_unit,
    constant,
    counts,
    days,
    lots,
    numbers,
    ratios,
    rows_of,
)

Unit = Literal["lots", "shares", "none"]

_CHINESE: Final = {"open": "开盘", "high": "最高", "low": "最低", "close": "收盘", "volume": "成交量", "amount": "成交额"}
_ENGLISH: Final = {name: name for name in _CHINESE}
_SPOT: Final = {"open": "今开", "high": "最高", "low": "最低", "close": "最新价", "volume": "成交量", "amount": "成交额"}
_DERIVED: Final = frozenset({"振幅", "涨跌幅", "涨跌额", "换手率"})


@dataclass(frozen=True)
class Rows:
    """Canonical rows, and whether the unit of their volume was checked: passed or not_applicable."""

    table: pa.Table
    unit_check: str


def daily(frame: pa.Table, schema: pa.Schema, symbol: str, span: tuple[date, date] | None, unit: Unit) -> Rows:
    """Return daily bars of *symbol*, sorted, only of the sessions of *span* (None: all): shares for lots, ratios for per cent."""
    if not frame.num_rows:
        return Rows(schema.empty_table(), "not_applicable")
    columns = Columns(frame, symbol)
    names = _ENGLISH if "date" in frame.column_names else _CHINESE
    day = "date" if names is _ENGLISH else "日期"
    due = frozenset({day, *names.values()}) | (_DERIVED if names is _CHINESE else frozenset())
    columns.need(due | ({"股票代码"} if "股票代码" in frame.column_names else frozenset()), exactly=True)
    found = {"trading_date": columns.get(day, days), **_traded(columns, names, unit)}
    if names is _CHINESE:
        before = pc.subtract(found["close"], columns.get("涨跌额", numbers))
        found["pre_close"] = pc.round(before, 6)  # 10.45 - 0.07 is 10.379999999999999, and no price has millionths
        found["turnover_rate"] = columns.get("换手率", ratios)
    table = pa.table(found)
    check_days(table["trading_date"].to_pylist(), symbol)
    verdict = _checked(table, names, symbol, unit)
    if span is not None:
        sessions = table["trading_date"]
        table = table.filter(pc.and_(pc.greater_equal(sessions, span[0]), pc.less_equal(sessions, span[1])))
    return Rows(_as_rows(table.sort_by("trading_date"), schema, symbol), verdict)


def minutes(frame: pa.Table, schema: pa.Schema, symbol: str) -> Rows:
    """Return minute bars of *symbol*, sorted; labels are the END of the bar on Beijing's clock, and become UTC."""
    if not frame.num_rows:
        return Rows(schema.empty_table(), "not_applicable")
    columns = Columns(frame, symbol)
    columns.need(frozenset({"时间", *_CHINESE.values()}))
    stamps = columns.get("时间", beijing)
    sessions = pc.local_timestamp(stamps.cast(pa.timestamp("us", tz="Asia/Shanghai"))).cast(pa.date32(), safe=False)
    found = {"ts": stamps, "trading_date": sessions, **_traded(columns, _CHINESE, "lots")}
    table = pa.table(found)
    check_days(table["ts"].to_pylist(), symbol)
    verdict = _checked(table, _CHINESE, symbol, "lots")
    return Rows(_as_rows(table.sort_by("ts"), schema, symbol), verdict)


def spot(frame: pa.Table, schema: pa.Schema, symbols: Mapping[str, str], session: date) -> Rows:
    """Return the bars of *session* of those *symbols* (canonical by code) that traded, from the table of the whole market."""
    columns = Columns(frame, "spot")
    columns.need(frozenset({"代码", "昨收", "换手率", *_SPOT.values()}))
    found = _traded(columns, _SPOT, "lots")
    found["pre_close"], found["turnover_rate"] = columns.get("昨收", numbers), columns.get("换手率", ratios)
    names = [symbols.get(code) for code in frame["代码"].to_pylist()]
    table = pa.table({"symbol": pa.array(names, pa.string()), **found})
    table = table.filter(pc.and_(pc.is_valid(table["symbol"]), pc.is_valid(table["close"])))
    table = table.filter(pc.fill_null(pc.greater(table["volume"], 0), fill_value=False)).sort_by("symbol")
    verdict = _checked(table, _SPOT, f"spot of {session}", "lots")
    sessions = pa.array([session] * table.num_rows, pa.date32())
    columns_found = {name: table[name] for name in table.column_names} | {"trading_date": sessions}
    return Rows(rows_of(schema, columns_found, table.num_rows), verdict)


def _traded(columns: Columns, names: Mapping[str, str], unit: Unit) -> dict[str, pa.Array]:
    found = {name: columns.get(names[name], numbers) for name in (*PRICES, "amount")}
    return found | {"volume": columns.get(names["volume"], lots if unit == "lots" else counts)}


def _checked(table: pa.Table, names: Mapping[str, str], what: str, unit: Unit) -> str:
    check_traded(table, names, what)
    return "not_applicable" if unit == "none" else check_unit(table, what, SHARES_PER_LOT if unit == "lots" else 1)


def _as_rows(table: pa.Table, schema: pa.Schema, symbol: str) -> pa.Table:
    found = {name: table[name] for name in table.column_names}
    return rows_of(schema, found | {"symbol": constant(symbol, table.num_rows)}, table.num_rows)

"""Frames that are no bars as canonical rows: factors, instruments, corporate actions, trade dates, news, financials. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from fletching_schemas.errors import BadSourceData
from fletching_server.sources.akshare.columns import Columns, beijing, constant, days, maybe_days, numbers, rows_of, texts

_BASE: Final = date(1900, 1, 1)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def factors(frame: pa.Table, schema: pa.Schema, symbol: str) -> pa.Table:
    """Return Sina's cumulative factors of *symbol*: what a raw price is multiplied by (hfq), 1.0 at listing.

    ``known_at`` is midnight of the ex-date: upstream does not tell when it announced. The base row of 1900 holds from
    listing on.
    """
    columns = Columns(frame, f"factors of {symbol}")
    columns.need(frozenset({"d", "f"}), exactly=True)
    found = sorted(zip(columns.get("d", days).to_pylist(), columns.get("f", numbers).to_pylist(), strict=True))
    rows = []
    for day, factor in found:
        if factor is None or factor <= 0:
            raise BadSourceData(f"factors of {symbol}: {factor} on {day} is not a positive factor")
        told = {"symbol": symbol, "ex_date": max(day, _BASE), "source": "sina", "known_at": _midnight(max(day, _BASE))}
        rows.append({**told, "mul": factor, "add": 0.0, "method": "multiply", "version": 1})
    return pa.Table.from_pylist(rows, schema=schema)


# Instruments


def instruments(frames: dict[str, pa.Table], schema: pa.Schema) -> pa.Table:
    """Return all A shares, listed and delisted, from the exchanges' own lists, sorted; ``known_at`` is the list date."""
    rows: dict[str, dict[str, Any]] = {}
    for exchange, frame in frames.items():
        for row in _LISTS[exchange](frame):
            rows[row["symbol"]] = {**rows.get(row["symbol"], {}), **row}
    complete = [row for _, row in sorted(rows.items()) if row.get("list_date")]
    for row in complete:
        row |= {"valid_from": row["list_date"], "known_at": _midnight(row["list_date"]), "asset_class": "equity"}
        row |= {"currency": "CNY", "lot_size": 100, "tick_size": 0.01, "multiplier": 1.0}
        row.setdefault("status", "listed")
        row["is_st"] = "ST" in (row.get("name") or "")
    return pa.Table.from_pylist(complete, schema=schema)


def _listed(
    frame: pa.Table, what: str, names: tuple[str, str, str], suffix: str, mic: str, **more: str
) -> Iterator[dict[str, Any]]:
    code, name, listed = names
    columns = Columns(frame, what)
    columns.need(frozenset(names))
    found = (columns.get(code, texts), columns.get(name, texts), columns.get(listed, maybe_days))
    for number, (each, called, day) in enumerate(zip(*(column.to_pylist() for column in found), strict=True)):
        if each is None or not each.isdecimal() or len(each) != 6:
            raise BadSourceData(f"{what}: {code} in row {number} is {each!r:.40}, not a code of six digits")
        yield {"symbol": f"{each}.{suffix}", "code": each, "mic": mic, "name": called, "list_date": day, **more}


def _shanghai(frame: pa.Table) -> Iterator[dict[str, Any]]:
    yield from _listed(frame, "list of Shanghai", ("证券代码", "证券简称", "上市日期"), "SH", "XSHG", board="main")


def _star(frame: pa.Table) -> Iterator[dict[str, Any]]:
    yield from _listed(frame, "list of STAR", ("证券代码", "证券简称", "上市日期"), "SH", "XSHG", board="star")


def _shenzhen(frame: pa.Table) -> Iterator[dict[str, Any]]:
    columns = Columns(frame, "list of Shenzhen")
    columns.need(frozenset({"板块", "所属行业"}))
    boards = {"主板": "main", "创业板": "chinext"}
    rows = _listed(frame, "list of Shenzhen", ("A股代码", "A股简称", "A股上市日期"), "SZ", "XSHE")
    for row, board, industry in zip(rows, frame["板块"].to_pylist(), frame["所属行业"].to_pylist(), strict=True):
        yield {**row, "board": boards.get(str(board), str(board)), "industry": industry and str(industry)}


def _beijing(frame: pa.Table) -> Iterator[dict[str, Any]]:
    yield from _listed(frame, "list of Beijing", ("证券代码", "证券简称", "上市日期"), "BJ", "BJSE", board="main")


def _gone(frame: pa.Table, names: tuple[str, str, str], last: str, suffix: str, mic: str) -> Iterator[dict[str, Any]]:
    columns = Columns(frame, "list of delisted shares")
    columns.need(frozenset({last}))
    rows = list(_listed(frame, "list of delisted shares", names, suffix, mic))
    for row, day in zip(rows, columns.get(last, maybe_days).to_pylist(), strict=True):
        if not row["code"].startswith(("900", "200")):  # B shares
            yield {**row, "delist_date": day, "status": "delisted"}


def _shanghai_gone(frame: pa.Table) -> Iterator[dict[str, Any]]:
    yield from _gone(frame, ("公司代码", "公司简称", "上市日期"), "暂停上市日期", "SH", "XSHG")


def _shenzhen_gone(frame: pa.Table) -> Iterator[dict[str, Any]]:
    yield from _gone(frame, ("证券代码", "证券简称", "上市日期"), "终止上市日期", "SZ", "XSHE")


_LISTS: Final = {
    "stock_info_sh_name_code:主板A股": _shanghai,
    "stock_info_sh_name_code:科创板": _star,
    "stock_info_sz_name_code:A股列表": _shenzhen,
    "stock_info_bj_name_code": _beijing,
    "stock_info_sh_delist:全部": _shanghai_gone,
    "stock_info_sz_delist:终止上市公司": _shenzhen_gone,
}
LISTS: Final = tuple(_LISTS)


# Corporate actions, trade dates, news, financials


def corporate_actions(frame: pa.Table, schema: pa.Schema, symbol: str) -> pa.Table:
    """Return dividends, bonus shares and transfers of *symbol* that have an ex-date; amounts are per share.

    Upstream writes them per ten shares. ``known_at`` is midnight of the announcement, or of the ex-date.
    """
    if not frame.num_rows:
        return schema.empty_table()
    columns = Columns(frame, f"corporate actions of {symbol}")
    parts = {"dividend": "现金分红-现金分红比例", "bonus": "送转股份-送股比例", "transfer": "送转股份-转股比例"}
    columns.need(frozenset({"除权除息日", "股权登记日", "预案公告日", *parts.values()}))
    dates = [columns.get(name, maybe_days).to_pylist() for name in ("除权除息日", "股权登记日", "预案公告日")]
    values = {kind: columns.get(name, numbers).to_pylist() for kind, name in parts.items()}
    ratio = {"dividend": "cash_per_share", "bonus": "bonus_ratio", "transfer": "transfer_ratio"}
    rows: dict[tuple[date, str], dict[str, Any]] = {}
    for number, (ex_date, record, announced) in enumerate(zip(*dates, strict=True)):
        for kind, column in values.items():
            if ex_date is None or not column[number]:
                continue
            told = {"symbol": symbol, "ex_date": ex_date, "kind": kind, "known_at": _midnight(announced or ex_date)}
            more = {"announce_date": announced, "record_date": record, "currency": "CNY", "source": "eastmoney"}
            rows[ex_date, kind] = {**told, **more, ratio[kind]: round(column[number] / 10, 10)}
    return pa.Table.from_pylist([row for _, row in sorted(rows.items())], schema=schema)


def trade_dates(frame: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the sessions of Shanghai that Sina publishes, to the end of the current year."""
    columns = Columns(frame, "trade dates")
    columns.need(frozenset({"trade_date"}), exactly=True)
    sessions = pc.unique(columns.get("trade_date", days)).sort()
    count = len(sessions)
    found = {"mic": constant("XSHG", count), "session": sessions, "status": constant("known", count)}
    return rows_of(schema, {**found, "source": constant("sina", count)}, count)


def news(frame: pa.Table, schema: pa.Schema, symbol: str, fetched_at: datetime) -> pa.Table:
    """Return the latest articles about *symbol*, sorted by time; an article's id is the hash of its address."""
    if not frame.num_rows:
        return schema.empty_table()
    columns = Columns(frame, f"news of {symbol}")
    columns.need(frozenset({"新闻标题", "新闻内容", "发布时间", "文章来源", "新闻链接"}))
    links = columns.get("新闻链接", texts).to_pylist()
    count = len(links)
    found = {
        "symbol": constant(symbol, count),
        "published_at": columns.get("发布时间", beijing),
        "news_id": pa.array([xxhash.xxh3_64_hexdigest(str(link or "").encode()) for link in links], pa.string()),
        "title": columns.get("新闻标题", texts).cast(pa.string()),
        "body": columns.get("新闻内容", texts).cast(pa.string()),
        "source": columns.get("文章来源", texts).cast(pa.string()),
        "url": columns.get("新闻链接", texts).cast(pa.string()),
        "fetched_at": pa.array([fetched_at] * count, pa.timestamp("us", tz="UTC")),
    }
    table = pa.table(found | {"symbol": found["symbol"].cast(pa.string())})
    table = table.sort_by([("published_at", "ascending"), ("news_id", "ascending")])
    keys = list(zip(table["published_at"].to_pylist(), table["news_id"].to_pylist(), strict=True))
    table = table.filter(pa.array([key not in keys[:row] for row, key in enumerate(keys)]))  # the same article twice
    return rows_of(schema, {name: table[name] for name in table.column_names}, table.num_rows)


def financials(frame: pa.Table, schema: pa.Schema, symbol: str, fetched_at: datetime) -> pa.Table:
    """Return the wide table of *symbol*'s key figures in long form, a row per report period and item that has a value.

    Upstream does not tell when a report was published, so ``known_at`` is when it was fetched: nothing looks ahead.
    """
    if not frame.num_rows:
        return schema.empty_table()
    columns = Columns(frame, f"financials of {symbol}")
    columns.need(frozenset({"选项", "指标"}))
    groups, items = (columns.get(name, texts).to_pylist() for name in ("选项", "指标"))
    rows: dict[tuple[date, str], dict[str, Any]] = {}
    for name in frame.column_names[2:]:
        period = _period(name, symbol)
        for group, item, value in zip(groups, items, columns.get(name, numbers).to_pylist(), strict=True):
            if value is not None and (period, item) not in rows:
                told = {"symbol": symbol, "report_period": period, "item": item, "known_at": fetched_at}
                rows[period, item] = {**told, "statement": group, "value": value, "source": "sina"}
    return pa.Table.from_pylist([row for _, row in sorted(rows.items())], schema=schema)


def _period(name: str, symbol: str) -> date:
    try:
        return date.fromisoformat(name)
    except ValueError:
        raise BadSourceData(f"financials of {symbol}: column {name!r:.40} is no report period such as 20240331") from None

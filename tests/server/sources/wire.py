"""What the vendors behind AKShare put on the wire: klines, trends, lists, news, factors, and the sheets of the exchanges."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any, Final

import openpyxl

Query = dict[str, str]

KLINE: Final = ("push2his.eastmoney.com", "/api/qt/stock/kline/get")
KLINE_HK: Final = ("33.push2his.eastmoney.com", "/api/qt/stock/kline/get")
KLINE_US: Final = ("63.push2his.eastmoney.com", "/api/qt/stock/kline/get")
TRENDS: Final = ("push2his.eastmoney.com", "/api/qt/stock/trends2/get")
SPOT: Final = ("82.push2.eastmoney.com", "/api/qt/clist/get")
ACTIONS: Final = ("datacenter-web.eastmoney.com", "/api/data/v1/get")
NEWS: Final = ("search-api-web.eastmoney.com", "/search/jsonp")
FINANCIALS: Final = ("quotes.sina.cn", "/cn/api/openapi.php/CompanyFinanceService.getFinanceReport2022")
SINA_COUNT: Final = ("vip.stock.finance.sina.com.cn", "/quotes_service/api/json_v2.php/Market_Center.getHQNodeStockCount")
SINA_SPOT: Final = ("vip.stock.finance.sina.com.cn", "/quotes_service/api/json_v2.php/Market_Center.getHQNodeData")
SHANGHAI: Final = ("query.sse.com.cn", "/sseQuery/commonQuery.do")
SHANGHAI_GONE: Final = ("query.sse.com.cn", "/commonQuery.do")
SHENZHEN: Final = ("www.szse.cn", "/api/report/ShowReport")
BEIJING: Final = ("www.bse.cn", "/nqxxController/nqxxCnzq.do")

PAGE: Final = b"<!doctype html><title>captcha</title>"
NULL: Final = b'{"rc": 100, "data": null}'


def line(day: object, *, close: str = "10.45", volume: str = "812345", amount: str = "847654321.12") -> str:
    """Return one kline: a bar whose mean price, amount / (volume x 100), lies between low and high."""
    return f"{day},10.38,{close},10.47,10.37,{volume},{amount},0.96,0.67,0.07,0.42"


def klines(lines: Iterable[str], field: str = "klines") -> bytes:
    """Return eastmoney's answer with *lines*."""
    return json.dumps({"rc": 0, "data": {"code": "000001", "market": 0, "name": "x", field: list(lines)}}).encode()


def weekdays(first: date, last: date) -> list[date]:
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return [day for day in days if day.weekday() < 5]


def week(query: Query) -> bytes:
    """Return a bar for every weekday of the asked range; a range without an end is the week of 2024-03-18."""
    ends = [query.get(name, "0") for name in ("beg", "end")]
    if ends[0] == "0" or not ends[1].startswith("20") or ends[1] > "2040":
        ends = ["20240318", "20240322"]
    return klines(line(day) for day in weekdays(*map(date.fromisoformat, ends)))


def spot(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return eastmoney's spot page: 31 fields in ascending order, which the library names by their position."""
    names = [f"f{number}" for number in (*range(1, 19), *range(20, 26), 62, 115, 128, 140, 141, 136, 152)]
    found = [{name: row.get(name, 0) for name in names} for row in rows]
    return json.dumps({"data": {"total": len(found), "diff": found}}).encode()


def quote(code: str, close: float | str = 10.45, volume: int | str = 812345) -> dict[str, Any]:
    """Return one share of the spot page."""
    prices = {"f2": close, "f17": 10.38, "f15": 10.47, "f16": 10.37, "f18": 10.38}
    return {"f12": code, "f14": "x", "f3": 0.67, "f5": volume, "f6": 847654321.12, "f8": 0.42, **prices}


def factors(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Return Sina's factor file, the newest first."""
    data = {"total": len(pairs), "data": [{"d": day, "f": factor} for day, factor in pairs]}
    return f"var sz000001hfq={json.dumps(data)}\n/* more */".encode()


def sina_spot(bars: dict[str, dict[str, str]]) -> dict[tuple[str, str], Any]:
    """Return the routes of Sina's spot pages, 80 shares each: by ``sz000001``, a bar with open, high, low, close and volume."""
    tail = ("ticktime", "per", "pb", "mktcap", "nmc", "turnoverratio")
    rows = []
    for symbol, bar in sorted(bars.items()):
        changes = {"trade": bar["close"], "pricechange": 0.1, "changepercent": 0.9, "buy": "0", "sell": "0"}
        day = {"settlement": "10.38", **{name: bar[name] for name in ("open", "high", "low")}}
        traded = {"volume": bar["volume"], "amount": 1, **dict.fromkeys(tail, 1), "ticktime": "15:00:00"}
        rows.append({"symbol": symbol, "code": symbol[2:], "name": "x", **changes, **day, **traded})

    def page(query: Query) -> bytes:
        first = 80 * (int(query["page"]) - 1)
        return json.dumps(rows[first : first + 80]).encode()

    return {SINA_COUNT: f'"{len(rows)}"'.encode(), SINA_SPOT: page}


def news(articles: Sequence[dict[str, str]]) -> bytes:
    """Return eastmoney's search answer with its fixed callback."""
    body = json.dumps({"result": {"cmsArticleWebOld": list(articles)}}, ensure_ascii=False)
    return f"jQuery35101792940631092459_1764599530165({body})".encode()


def article(code: str, day: str = "2024-03-18 09:30:00") -> dict[str, str]:
    return {
        "date": day,
        "mediaName": "paper",
        "code": code,
        "title": f"<em>x</em> {code}",
        "content": "text",
        "url": "",
        "image": "",
    }


def actions(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return eastmoney's dividend table: 30 fields by position."""
    names = [f"c{number}" for number in range(30)]
    places = {"bonus": 6, "transfer": 7, "cash": 8, "record": 11 - 1, "ex": 11, "report": 12, "announced": 25}
    found = []
    for row in rows:
        values: list[Any] = [None] * 30
        for name, value in row.items():
            values[places[name]] = value
        found.append(dict(zip(names, values, strict=True)))
    return json.dumps({"result": {"pages": 1, "data": found}}).encode()


def financials(periods: dict[str, list[tuple[str, Any]]]) -> bytes:
    """Return Sina's report list: the same items in every period, with the headings that the library cuts by."""
    reports = {
        period: {"data": [{"item_title": title, "item_value": value} for title, value in items]}
        for period, items in periods.items()
    }
    return json.dumps({"result": {"data": {"report_list": reports}}}, ensure_ascii=False).encode()


def _sheet(rows: Sequence[Sequence[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def lists(shares: dict[str, str], gone: dict[str, tuple[str, str]] | None = None) -> dict[tuple[str, str], Any]:
    """Return the routes of the exchanges' lists: listing date by symbol, and (listed, delisted) of those that are gone."""
    gone = gone or {"600001.SH": ("1998-01-22", "2009-12-29"), "000003.SZ": ("1991-01-14", "2002-06-14")}
    by_exchange = {suffix: {s[:6]: day for s, day in shares.items() if s.endswith(suffix)} for suffix in ("SH", "SZ", "BJ")}

    def shanghai(query: Query) -> bytes:
        star = query["STOCK_TYPE"] == "8"
        chosen = {code: day for code, day in by_exchange["SH"].items() if code.startswith("68") == star}
        keys = ("A_STOCK_CODE", "SEC_NAME_CN", "SEC_NAME_FULL", "COMPANY_ABBR", "FULL_NAME", "LIST_DATE")
        return json.dumps(
            {"result": [dict(zip(keys, (code, "x", "x", "x", "x", day), strict=True)) for code, day in chosen.items()]}
        ).encode()

    def shanghai_gone(_query: Query) -> bytes:
        keys = ("COMPANY_CODE", "COMPANY_ABBR", "LIST_DATE", "DELIST_DATE")
        rows = [(symbol[:6], "gone", *days) for symbol, days in gone.items() if symbol.endswith("SH")]
        return json.dumps({"result": [dict(zip(keys, row, strict=True)) for row in rows]}).encode()

    def shenzhen(query: Query) -> bytes:
        if query["TABKEY"] == "tab2":
            rows = [(symbol[:6], "gone", *days) for symbol, days in gone.items() if symbol.endswith("SZ")]
            return _sheet([("证券代码", "证券简称", "上市日期", "终止上市日期"), *rows])
        head = ("板块", "公司全称", "A股代码", "A股简称", "A股上市日期", "A股总股本", "A股流通股本", "所属行业")
        body = [("主板", "x", code, "x", day, "1", "1", "J 金融业") for code, day in by_exchange["SZ"].items()]
        return _sheet([head, *body])

    def beijing(_query: Query) -> bytes:
        rows = []
        for code, day in by_exchange["BJ"].items():
            values = ["-"] * 48
            values[0], values[38], values[40], values[17], values[22] = day.replace("-", ""), code, "x", "industry", "20240318"
            rows.append({f"c{number:02}": value for number, value in enumerate(values)})
        return b"null(" + json.dumps([{"totalPages": 1, "content": rows}]).encode() + b")"

    return {SHANGHAI: shanghai, SHANGHAI_GONE: shanghai_gone, SHENZHEN: shenzhen, BEIJING: beijing}


# Enough shares that the library takes Shenzhen's sheet for a list.
SHARES: Final = {
    **{f"{number:06}.SZ": "1991-04-03" for number in range(1, 13)},
    "300750.SZ": "2018-06-11",
    "600519.SH": "2001-08-27",
    "688981.SH": "2020-07-16",
    "920002.BJ": "2021-11-15",
}

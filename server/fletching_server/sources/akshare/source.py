"""One source over the library: what is asked becomes calls, what comes back becomes canonical rows or one of our errors."""

from __future__ import annotations

import difflib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import (
    InvalidRequest,
    SourceError,
    SourceUnavailable,
    UnknownDataset,
    UnknownFunction,
    UnknownSymbol,
)
from fletching_server.sources import akshare_functions
from fletching_server.sources.akshare import bars, tables
from fletching_server.sources.akshare.failures import NothingThere
from fletching_server.sources.akshare.library import BUDGETS, Library, family_of
from fletching_server.sources.akshare.offers import Offer, offers
from fletching_server.sources.protocol import Lifetime, Meter

LIST_SECONDS: Final = 86400.0  # the exchanges' lists: once per document and day
_US_MARKETS: Final = ("105", "106", "107")
_PREFIXES: Final = {"SH": "sh", "SZ": "sz", "BJ": "bj", "CSI": "csi"}
# How long an answer of any function is served without asking again, by the library's own categories; see docs/call-cache.md.
_REALTIME, _DAILY, _WEEKLY = 30.0, 4 * 3600.0, 7 * 86400.0
_FRESHNESS: Final = {"spot": _REALTIME, "event": 300.0, "article": 900.0, "macro": 86400.0, "bank": 86400.0, "tool": _WEEKLY}
_REALTIME_WORDS: Final = ("spot", "realtime", "_min", "minute", "tick", "live", "bid_ask", "intraday", "news", "changes")


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    deadline_seconds: float = Field(default=30.0, gt=0, le=3600)
    sweep_seconds: float = Field(default=180.0, gt=0, le=3600)
    prefix: str = ""


class AkshareSource:
    """Bars of A shares, funds, indices, Hong Kong and the US, and facts about A shares, through the real library.

    Every function runs in a child process of its vendor; past *deadline_seconds* (of work, not of waiting for the budget)
    the child is killed and the next call starts a new one; sweeps over the whole market have *sweep_seconds*. *prefix*
    goes before the names of the datasets. Raises ``SourceUnavailable`` where the library is not installed.
    """

    name = "akshare"
    own_deadline = True  # it knows how much of a call was waiting for its turn
    listing_seconds = LIST_SECONDS
    lives_seconds = 60.0  # they cost nothing: only what is known already is told
    costly_listing = True  # a dozen requests: not before the first bar of a symbol that is named
    budgets = BUDGETS

    def __init__(self, deadline_seconds: float = 30.0, sweep_seconds: float = 180.0, prefix: str = "") -> None:
        self._library = Library(deadline_seconds, sweep_seconds)
        self._prefix = prefix
        self._offers = {prefix + name: offer for name, offer in offers().items()}
        self._us_markets: dict[str, str] = {}
        self._listing = threading.Lock()
        self._instruments: tuple[float, pa.Table] | None = None
        self._makers: dict[str, Callable[[Offer, FetchRequest], pa.Table]] = {
            "adj_factors": self._factors,
            "corporate_actions": self._corporate_actions,
            "instruments": self._instrument_rows,
            "calendar": self._calendar,
            "financials": self._financials,
            "news": self._news,
        }

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """Return the source that *values* describe by the constructor's names, or raise ``InvalidRequest``."""
        try:
            return cls(**_Config.model_validate(dict(values)).model_dump())
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            known = ", ".join(_Config.model_fields)
            raise InvalidRequest(f"akshare's configuration: {wrong}; it has {known}") from None

    # What it offers

    def datasets(self) -> Sequence[Dataset]:
        """Return the datasets: see ``offers``."""
        return [self._named(name, offer) for name, offer in self._offers.items()]

    def _named(self, name: str, offer: Offer) -> Dataset:
        dataset = offer.dataset.with_name(name)
        if dataset.factors and self._prefix:
            return type(dataset)(**{**vars(dataset), "factors": self._prefix + dataset.factors})
        return dataset

    def symbols(self, dataset: str) -> Sequence[str]:
        """Return the A shares, from the exchanges' lists; ``SourceUnavailable`` where nobody publishes a list."""
        offer = self._offer(dataset)
        if offer.name == "calendar":
            return ["XSHG"]
        if offer.name.split("_")[0] in {"etf", "index", "hk", "us"}:
            raise SourceUnavailable(f"akshare has no list of the symbols of {dataset}: name them, such as {offer.examples}")
        found: list[str] = self._listed()["symbol"].to_pylist()
        return found

    def lifetimes(self, dataset: str) -> Mapping[str, Lifetime]:
        """Return listing and delisting dates of A shares, where the exchanges' lists have been fetched already."""
        offer, held = self._offer(dataset), self._instruments
        if held is None or offer.dataset.calendar != "XSHG" or offer.name.startswith(("etf", "index")):
            return {}
        columns = (held[1][name].to_pylist() for name in ("symbol", "list_date", "delist_date"))
        return {symbol: Lifetime(first, last) for symbol, first, last in zip(*columns, strict=True)}

    # Limits

    def family(self, dataset: str) -> str:
        """Return whose budget a call for *dataset* draws on; a function's follows from its page in the register."""
        if dataset in self._offers:
            return self._offers[dataset].family
        return family_of(urlsplit(str(self._functions.get(dataset, {}).get("url"))).hostname or "")

    def cost(self, request: FetchRequest) -> int:
        """Return 0: every HTTP request pays for itself."""
        del request
        return 0

    def use_meter(self, meter: Meter) -> None:
        """Spend on *meter* from now on."""
        self._library.meter = meter

    # Fetching

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the rows of the asked symbols and sessions; no rows where upstream has none."""
        offer = self._offer(request.dataset)
        symbols = sorted(set(request.symbols))
        for symbol in symbols:
            _check_symbol(offer, symbol)
        if (maker := self._makers.get(offer.name)) is not None:
            return maker(offer, request)
        if request.start == request.end and offer.dataset.sweep_symbols and len(symbols) >= offer.dataset.sweep_symbols:
            return self._spot(offer, symbols, request.start)
        parts = [self._bars(offer, symbol, request) for symbol in symbols]
        table = pa.concat_tables([offer.dataset.schema.empty_table(), *(part.table for part in parts)])
        arguments = {"symbols": symbols, "start": str(request.start), "end": str(request.end)}
        return self._told(table, offer.function, arguments, parts[0].unit_check if parts else "not_applicable")

    def _bars(self, offer: Offer, symbol: str, request: FetchRequest) -> bars.Rows:
        asked, span = f"{symbol} {request.start}..{request.end}", (request.start, request.end)
        schema = offer.dataset.schema
        try:
            if offer.function == "stock_us_hist":
                frame = self._us(symbol, asked)
            else:
                frame = self._call(offer, _arguments(offer, symbol, span), asked)
        except NothingThere as error:
            if offer.unit == "lots":  # its list tells an unknown symbol from an empty range
                self._check_exists(symbol)
                return bars.Rows(schema.empty_table(), "not_applicable")
            raise UnknownSymbol(f"{symbol}: {error.message}") from error
        if not frame.num_rows and offer.name == "bars_1d":
            self._check_exists(symbol)
        if offer.function == "stock_zh_a_hist_min_em":
            return bars.minutes(frame, schema, symbol)
        return bars.daily(frame, schema, symbol, span if offer.dataset.range_pushdown else None, offer.unit)

    def _us(self, symbol: str, asked: str) -> pa.Table:
        """Return the history of a US symbol, whose market upstream wants to be told: each is tried once."""
        code = symbol.removesuffix(".US").replace(".", "_")
        known = self._us_markets.get(code)
        for market in (known,) if known else _US_MARKETS:
            try:
                frame = self._library.call("eastmoney", "stock_us_hist", {"symbol": f"{market}.{code}"}, asked)
            except NothingThere:
                continue
            self._us_markets[code] = str(market)
            return frame
        raise UnknownSymbol(f"eastmoney has no {symbol} in its US markets {', '.join(_US_MARKETS)}")

    def _spot(self, offer: Offer, symbols: Sequence[str], session: date) -> pa.Table:
        """Return one session of a whole market: the engine only asks for the latest one, after it has opened."""
        frame = self._library.call("eastmoney", "stock_zh_a_spot_em", {}, f"{len(symbols)} symbols {session}", sweep=True)
        by_code = {symbol.partition(".")[0]: symbol for symbol in symbols}
        rows = bars.spot(frame, offer.dataset.schema, by_code, session)
        return self._told(rows.table, "stock_zh_a_spot_em", {"session": str(session)}, rows.unit_check)

    def _factors(self, offer: Offer, request: FetchRequest) -> pa.Table:
        def one(symbol: str) -> pa.Table:
            frame = self._call(offer, {"symbol": _prefixed(symbol)}, symbol)
            return tables.factors(frame, offer.dataset.schema, symbol)

        return self._each(offer, request, one)

    def _corporate_actions(self, offer: Offer, request: FetchRequest) -> pa.Table:
        def one(symbol: str) -> pa.Table:
            try:
                frame = self._call(offer, {"symbol": symbol[:6]}, symbol)
            except NothingThere:
                self._check_exists(symbol)
                return offer.dataset.schema.empty_table()
            return tables.corporate_actions(frame, offer.dataset.schema, symbol)

        return self._each(offer, request, one)

    def _financials(self, offer: Offer, request: FetchRequest) -> pa.Table:
        def one(symbol: str) -> pa.Table:
            frame = self._call(offer, {"symbol": symbol[:6]}, symbol)
            return tables.financials(frame, offer.dataset.schema, symbol, datetime.now(UTC))

        return self._each(offer, request, one)

    def _news(self, offer: Offer, request: FetchRequest) -> pa.Table:
        def one(symbol: str) -> pa.Table:
            frame = self._call(offer, {"symbol": symbol[:6]}, symbol)
            return tables.news(frame, offer.dataset.schema, symbol, datetime.now(UTC))

        return self._each(offer, request, one)

    def _calendar(self, offer: Offer, request: FetchRequest) -> pa.Table:
        del request
        frame = self._call(offer, {}, "all dates")
        return self._told(tables.trade_dates(frame, offer.dataset.schema), offer.function, {})

    def _instrument_rows(self, offer: Offer, request: FetchRequest) -> pa.Table:
        rows = self._listed()
        wanted = set(request.symbols)
        chosen = pa.Table.from_pylist([row for row in rows.to_pylist() if row["symbol"] in wanted], schema=rows.schema)
        return self._told(chosen, offer.function, {"lists": list(tables.LISTS)})

    def _each(self, offer: Offer, request: FetchRequest, one: Callable[[str], pa.Table]) -> pa.Table:
        found = [one(symbol) for symbol in sorted(set(request.symbols))]
        table = pa.concat_tables([offer.dataset.schema.empty_table(), *found])
        return self._told(table, offer.function, {"symbols": list(request.symbols)})

    # Lists

    def _listed(self) -> pa.Table:
        """Return the instruments, from the exchanges' lists of today."""
        with self._listing:
            held = self._instruments
            if held is None or time.monotonic() - held[0] > LIST_SECONDS:
                frames = {}
                for listing in tables.LISTS:
                    function, _, symbol = listing.partition(":")
                    frames[listing] = self._library.call("exchange", function, {"symbol": symbol} if symbol else {}, symbol)
                schema = offers()["instruments"].dataset.schema
                held = self._instruments = (time.monotonic(), tables.instruments(frames, schema))
            return held[1]

    def _check_exists(self, symbol: str) -> None:
        """Raise ``UnknownSymbol`` where the exchanges do not list *symbol*: its empty answer says nothing then."""
        try:
            known = set(self._listed()["symbol"].to_pylist())
        except SourceError as error:
            text = (
                f"eastmoney has nothing for {symbol}, and whether it exists cannot be told without the exchanges' lists: {error}"
            )
            raise SourceUnavailable(text, error.retry_at) from error
        if symbol not in known:
            near = difflib.get_close_matches(symbol, known, n=3, cutoff=0.6)
            hint = f"; did you mean {', '.join(sorted(near))}?" if near else ""
            raise UnknownSymbol(f"neither Shanghai, Shenzhen nor Beijing lists {symbol}{hint}")

    def _call(self, offer: Offer, arguments: Mapping[str, Any], asked: str) -> pa.Table:
        return self._library.call(offer.family, offer.function, arguments, asked)

    def _told(self, table: pa.Table, function: str, arguments: Mapping[str, Any], unit_check: str = "not_applicable") -> pa.Table:
        """Return *table* with what is recorded about it."""
        told = {"function": function, "arguments": arguments, "version": self._library.version, "unit_check": unit_check}
        text = json.dumps(told, ensure_ascii=False)
        if len(text) > 3000:  # a long list of symbols: the fill has them anyway
            text = json.dumps({**told, "arguments": {}}, ensure_ascii=False)
        return table.replace_schema_metadata({**(table.schema.metadata or {}), b"provenance": text.encode()})

    def _offer(self, dataset: str) -> Offer:
        if dataset not in self._offers:
            raise UnknownDataset(f"akshare offers {', '.join(self._offers)}, not {dataset!r:.60}")
        return self._offers[dataset]

    # Any function

    def version(self) -> str:
        """Return the version of the library."""
        return self._library.version

    @cached_property
    def _functions(self) -> dict[str, dict[str, Any]]:
        """The library's own register of its functions, read without importing it."""
        return akshare_functions.registry()

    def functions(self) -> Sequence[str]:
        """Return the names of all functions that may be called."""
        return akshare_functions.functions()

    def parameters(self, function: str) -> Sequence[str] | None:
        """Return the names of the parameters of *function*, in order; None where its definition is not found."""
        return akshare_functions.parameters(function)

    def call(self, function: str, arguments: Mapping[str, Any]) -> pa.Table:
        """Return what *function* returns for *arguments* (see ``Caller``), encoded: see ``akshare_frames``."""
        self._check_function(function)
        return self._library.encoded(self.family(function), function, arguments)

    def freshness(self, function: str) -> float:
        """Return for how many seconds an answer of *function* is fresh, by its name and its category in the register."""
        self._check_function(function)
        if any(word in function for word in _REALTIME_WORDS):
            return _REALTIME
        return _FRESHNESS.get(str(self._functions[function].get("category")), _DAILY)

    def _check_function(self, function: str) -> None:
        if function not in self._functions:
            near = difflib.get_close_matches(str(function), self._functions, n=3, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownFunction(f"akshare {self.version()} has no function {function!r:.60}{hint}")

    def close(self) -> None:
        """End the children; a fetch under way fails with ``SourceUnavailable``, and so do later ones."""
        self._library.close()


def _check_symbol(offer: Offer, symbol: str) -> None:
    if not offer.symbols.fullmatch(symbol):
        raise UnknownSymbol(
            f"{symbol!r} is none of {offer.name}, which akshare.{offer.function} serves: there are {offer.examples}"
        )


def _arguments(offer: Offer, symbol: str, span: tuple[date, date]) -> dict[str, Any]:
    """Return what the function behind *offer* wants to be told."""
    code, dates = symbol.partition(".")[0], {"start_date": f"{span[0]:%Y%m%d}", "end_date": f"{span[1]:%Y%m%d}"}
    match offer.function:
        case "stock_zh_a_hist_min_em":
            return {"symbol": code, "period": offer.name.removeprefix("bars_").removesuffix("m"), "adjust": ""}
        case "stock_zh_index_daily_em":
            return {"symbol": _prefixed(symbol), **dates}
        case "stock_hk_hist":
            return {"symbol": code, "period": "daily", "adjust": ""}
        case _:
            return {"symbol": code, "period": "daily", **dates, "adjust": ""}


def _prefixed(symbol: str) -> str:
    """Return *symbol* as Sina writes it: ``sh600519``."""
    code, _, suffix = symbol.partition(".")
    return _PREFIXES[suffix] + code

"""The simulated market as columns of the canonical datasets: exact integers in, prices and shares out.

Each maker takes the market, sorted symbols, and the first and last day (days since 1970-01-01, both included). Columns
that it leaves out are null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fletching_schemas.canonical import canonical
from fletching_schemas.datasets import TIMESTAMP
from fletching_server.sources._sim_market import LOT, TICKS, Life, Market, price_limits, stream
from fletching_server.sources._sim_tape import Tape, bought, tape

Columns = dict[str, pa.Array]
Maker = Callable[[Market, Sequence[str], int, int], Columns]
_Piece = dict[str, NDArray[Any]]
_Cut = Callable[[Market, str, Life, int, Tape], _Piece]

_OHLC: Final = ("open", "high", "low", "close")
_INSTRUMENTS: Final = canonical("instruments").schema
_DAY: Final = 86_400_000_000
_EVENING: Final = 10 * 3_600_000_000  # announcements come out at 10:00 UTC
_MICS: Final = {"SH": "XSHG", "SZ": "XSHE", "HK": "XHKG", "US": "XNYS"}
_CURRENCIES: Final = {"SH": "CNY", "SZ": "CNY", "HK": "HKD", "US": "USD"}
_INDUSTRIES: Final = ("Banks", "Brewing", "Chemicals", "Electronics", "Machinery", "Pharma", "Power", "Software")


def stored(column: pa.Array | None, kind: pa.DataType, rows: int) -> pa.Array:
    """Return *column* in its storage type; nulls where the market has no such column."""
    if column is None:
        return pa.nulls(rows, kind)
    return column if column.type == kind else column.cast(kind)


def bars_1d(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return a row per symbol and session with trading."""
    names = ("days", "lots", "amount", "pre_close", *_OHLC)
    pieces = []
    for life in map(market.life, symbols):
        rows = life.between(start, end)
        piece = {name: getattr(life, name)[rows] for name in names}
        pieces.append({**piece, "turnover_rate": piece["lots"] / life.float_lots})
    joined = _joined(pieces)
    joined["limit_up"], joined["limit_down"] = price_limits(joined["pre_close"])
    return {
        "symbol": _texts(symbols, _owners(pieces)),
        "trading_date": _dates(joined["days"]),
        **_prices(joined, *_OHLC, "pre_close", "limit_up", "limit_down"),
        **_traded(joined),
        "turnover_rate": pa.array(joined["turnover_rate"]),
        "suspended": pa.array(np.zeros(len(joined["days"]), dtype=bool)),
    }


def bars_1m(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return a row per minute of each session with trading, labelled at its end."""
    columns, joined = _by_session(market, symbols, start, end, _minutes)
    return {**columns, **_prices(joined, *_OHLC), **_traded(joined)}


def trades(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return a row per trade."""
    columns, joined = _by_session(market, symbols, start, end, _trades)
    return {
        **columns,
        **_prices(joined, "price"),
        **_shares(joined, "size"),
        "seq": pa.array(joined["seq"]),
        "trade_id": pa.array(joined["seq"] + 1),
        "side": _texts(("S", "B"), joined["bought"].astype(np.int32)),
    }


def quotes_l1(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return the book that each trade met: a buyer's trade is at its ask, a seller's at its bid."""
    columns, joined = _by_session(market, symbols, start, end, _quotes)
    return {
        **columns,
        **_prices(joined, "bid_px", "ask_px"),
        **_shares(joined, "bid_sz", "ask_sz"),
        "seq": pa.array(joined["seq"]),
    }


def adj_factors(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return a row for each listing (1.0) and each ex-date, without ``source``."""
    lives = map(market.life, symbols)
    factors = [(owner, factor) for owner, life in enumerate(lives) for factor in life.factors]
    rows = [(owner, factor) for owner, factor in factors if start <= factor.ex_day <= end]
    known = [factor.known_day * _DAY + _EVENING for _, factor in rows]
    return {
        "symbol": _texts(symbols, np.array([owner for owner, _ in rows], dtype=np.int32)),
        "ex_date": pa.array([factor.ex_day for _, factor in rows], pa.int32()),
        "known_at": pa.array(known, pa.int64()),
        "mul": pa.array([factor.mul for _, factor in rows], pa.float64()),
        "add": pa.array([0.0] * len(rows), pa.float64()),
        "method": pa.array(["multiplicative"] * len(rows), pa.string()),
        "version": pa.array([1] * len(rows), pa.int64()),
    }


def instruments(market: Market, symbols: Sequence[str], start: int, end: int) -> Columns:
    """Return a row per symbol that has listed; a delisted one is known as such from its delisting on."""
    rows = []
    for symbol in symbols:
        life = market.life(symbol)
        if life.list_day is not None and start <= life.list_day <= end:
            rows.append(_instrument(market, symbol, life, life.list_day))
    return {item.name: _facts([row[item.name] for row in rows], item.type) for item in _INSTRUMENTS}


def _facts(values: list[Any], kind: pa.DataType) -> pa.Array:
    # Dates are counted in days here, and string_view and date32 are made from string and int32 on the way out.
    plain = {pa.string_view(): pa.string(), pa.date32(): pa.int32(), TIMESTAMP: pa.int64()}
    return pa.array(values, plain.get(kind, kind))


def _instrument(market: Market, symbol: str, life: Life, listed: int) -> dict[str, Any]:
    code, _, suffix = symbol.rpartition(".")
    known = listed - 1 if life.delist_day is None else life.delist_day
    industry = stream(market.seed, symbol, "industry").integers(len(_INDUSTRIES))
    return {
        "symbol": symbol,
        "valid_from": listed,
        "valid_to": life.delist_day,
        "code": code,
        "mic": _MICS[suffix],
        "asset_class": "equity",
        "name": f"Simulated {code}",
        "board": "chinext" if suffix == "SZ" and code.startswith("30") else "main",
        "currency": _CURRENCIES[suffix],
        "industry": _INDUSTRIES[industry],
        "lot_size": LOT,
        "tick_size": 1 / TICKS,
        "multiplier": 1.0,
        "list_date": listed,
        "delist_date": life.delist_day,
        "status": "listed" if life.delist_day is None else "delisted",
        "is_st": False,
        "known_at": known * _DAY + _EVENING,
    }


MAKERS: Final[dict[str, Maker]] = {
    maker.__name__: maker for maker in (bars_1d, bars_1m, trades, quotes_l1, adj_factors, instruments)
}


def _minutes(_market: Market, _symbol: str, _life: Life, _row: int, day: Tape) -> _Piece:
    return {"ts": day.minute_ends, **day.minute_bars()}


def _trades(market: Market, symbol: str, life: Life, row: int, day: Tape) -> _Piece:
    ticks = day.ticks.ravel()
    sides = bought(market, symbol, life, row, ticks)
    return {**_clock(market, symbol, life, row, day), "price": ticks, "size": day.lots.ravel(), "bought": sides}


def _quotes(market: Market, symbol: str, life: Life, row: int, day: Tape) -> _Piece:
    ticks = day.ticks.ravel()
    bids = ticks - bought(market, symbol, life, row, ticks)
    depth = stream(market.seed, symbol, life.days[row], "book").integers(1, 2000, (2, len(ticks)))
    prices = {"bid_px": bids, "ask_px": bids + 1}
    return {**_clock(market, symbol, life, row, day), **prices, "bid_sz": depth[0], "ask_sz": depth[1]}


def _clock(market: Market, symbol: str, life: Life, row: int, day: Tape) -> _Piece:
    instants = day.instants(stream(market.seed, symbol, life.days[row], "clock"))
    return {"ts": instants, "seq": np.arange(len(instants))}


def _cells(market: Market, symbols: Sequence[str], start: int, end: int) -> Iterator[tuple[int, Life, int]]:
    for owner, symbol in enumerate(symbols):
        life = market.life(symbol)
        for row in range(len(life.days))[life.between(start, end)]:
            yield owner, life, row


def _by_session(market: Market, symbols: Sequence[str], start: int, end: int, cut: _Cut) -> tuple[Columns, _Piece]:
    """Return symbol, session, instant and exchange, and what *cut* makes of each session, joined."""
    pieces: list[_Piece] = []
    owners, days = [], []
    for owner, life, row in _cells(market, symbols, start, end):
        symbol = symbols[owner]
        pieces.append(cut(market, symbol, life, row, tape(market, symbol, life, row)))
        owners.append(owner)
        days.append(life.days[row])
    counts = [len(piece["ts"]) for piece in pieces]
    index = np.repeat(np.array(owners, dtype=np.int32), counts)
    joined = _joined(pieces)
    columns = {
        "symbol": _texts(symbols, index),
        "exchange": _texts([_MICS[symbol.rpartition(".")[2]] for symbol in symbols], index),
        "trading_date": _dates(np.repeat(np.array(days, dtype=np.int64), counts)),
        "ts": pa.array(joined["ts"]),
    }
    return columns, joined


def _joined(pieces: list[_Piece]) -> _Piece:
    """Return the columns of *pieces*, one after the other; any column of no pieces at all is empty."""
    empty: _Piece = defaultdict(lambda: np.empty(0, dtype=np.int64))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else empty


def _owners(pieces: list[_Piece]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece["days"]) for piece in pieces])


def _texts(values: Sequence[str], index: NDArray[np.int32]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(values, pa.string())).cast(pa.string())


def _dates(days: NDArray[np.int64]) -> pa.Array:
    return pa.array(days.astype(np.int32))


def _prices(joined: _Piece, *names: str) -> Columns:
    return {name: pa.array(joined[name] / TICKS) for name in names}


def _shares(joined: _Piece, *names: str) -> Columns:
    return {name: pa.array(joined[name] * LOT) for name in names}


def _traded(joined: _Piece) -> Columns:
    return {"volume": pa.array(joined["lots"] * LOT), "amount": pa.array(joined["amount"].astype(np.float64))}

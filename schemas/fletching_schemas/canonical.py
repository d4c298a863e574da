"""The standard datasets: one fixed schema each, with the unit of every column in its field metadata.

Prices are in currency per share or contract and unadjusted, amounts in currency, volumes and sizes in shares or
contracts, instants in UTC, dates are sessions of the exchange. A bar's ``ts`` is its END (``label=right``). Keys make a
row unique; ``seq`` numbers the rows of a symbol inside a session, because real feeds repeat timestamps.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from fletching_schemas.datasets import TIMESTAMP, Dataset
from fletching_schemas.errors import InvalidRequest

SCHEMA_VERSION: Final = 1

_TEXT, _DATE, _FLOAT, _COUNT = pa.string_view(), pa.date32(), pa.float64(), pa.int64()
_PRICE, _SHARES, _MONEY, _RATIO, _UTC = "currency/share", "shares", "currency", "ratio", "UTC"


def _field(name: str, kind: pa.DataType, unit: str = "", *, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"unit": unit} if unit else None)


def _price(*names: str) -> list[pa.Field]:
    return [_field(name, _FLOAT, _PRICE) for name in names]


_SYMBOL = _field("symbol", _TEXT, required=True)
_SESSION = _field("trading_date", _DATE, "session", required=True)
_INSTANT = _field("ts", TIMESTAMP, _UTC, required=True)
_SEQ = _field("seq", _COUNT, "ordinal", required=True)
_OPEN_INTEREST = _field("open_interest", _COUNT, "contracts")
_OHLC = _price("open", "high", "low", "close")
_TRADED = [_field("volume", _COUNT, _SHARES), _field("amount", _FLOAT, _MONEY)]


def _book(levels: int) -> list[pa.Field]:
    """Return flat quote columns: bid prices, ask prices, bid sizes, ask sizes; numbered where there are several."""
    ends = [""] if levels == 1 else [f"_{level}" for level in range(1, levels + 1)]
    prices = [name + end for name in ("bid_px", "ask_px") for end in ends]
    sizes = [name + end for name in ("bid_sz", "ask_sz") for end in ends]
    return _price(*prices) + [_field(name, _COUNT, _SHARES) for name in sizes]


INTRADAY_BARS: Final = ("bars_1m", "bars_5m", "bars_15m", "bars_30m", "bars_60m")

_FIELDS: Final[dict[str, list[pa.Field]]] = {
    "bars_1d": [
        _SYMBOL,
        _SESSION,
        *_OHLC,
        *_price("pre_close"),
        *_TRADED,
        _field("turnover_rate", _FLOAT, _RATIO),
        *_price("limit_up", "limit_down"),
        _OPEN_INTEREST,
        *_price("settle"),
        _field("suspended", pa.bool_()),
    ],
    **{name: [_SYMBOL, _INSTANT, _SESSION, *_OHLC, *_TRADED, _OPEN_INTEREST] for name in INTRADAY_BARS},
    "trades": [
        _SYMBOL,
        _INSTANT,
        _SEQ,
        _SESSION,
        _field("price", _FLOAT, _PRICE, required=True),
        _field("size", _COUNT, _SHARES, required=True),
        _field("side", _TEXT),
        _field("trade_id", _COUNT),
        _field("exchange", _TEXT),
        _field("condition", _TEXT),
    ],
    "quotes_l1": [
        _SYMBOL,
        _INSTANT,
        _SEQ,
        _SESSION,
        *_book(1),
        _field("exchange", _TEXT),
        _field("condition", _TEXT),
    ],
    "quotes_l5": [
        _SYMBOL,
        _INSTANT,
        _SEQ,
        _field("ts_recv", TIMESTAMP, _UTC),
        _SESSION,
        *_price("last"),
        _field("cum_volume", _COUNT, _SHARES),
        _field("cum_amount", _FLOAT, _MONEY),
        *_book(5),
    ],
    "adj_factors": [
        _SYMBOL,
        _field("ex_date", _DATE, "date", required=True),
        _field("source", _TEXT, required=True),
        _field("known_at", TIMESTAMP, _UTC, required=True),
        _field("mul", _FLOAT, _RATIO, required=True),
        _field("add", _FLOAT, _PRICE, required=True),
        _field("method", _TEXT, required=True),
        _field("version", _COUNT, required=True),
    ],
    "corporate_actions": [
        _SYMBOL,
        _field("ex_date", _DATE, "date", required=True),
        _field("kind", _TEXT, required=True),
        _field("known_at", TIMESTAMP, _UTC, required=True),
        _field("announce_date", _DATE, "date"),
        _field("record_date", _DATE, "date"),
        _field("pay_date", _DATE, "date"),
        _field("cash_per_share", _FLOAT, _PRICE),
        _field("bonus_ratio", _FLOAT, _RATIO),
        _field("transfer_ratio", _FLOAT, _RATIO),
        _field("rights_ratio", _FLOAT, _RATIO),
        _field("split_ratio", _FLOAT, _RATIO),
        *_price("rights_price"),
        _field("currency", _TEXT),
        _field("source", _TEXT),
    ],
    "calendar": [
        _field("mic", _TEXT, required=True),
        _field("session", _DATE, "session", required=True),
        _field("open", TIMESTAMP, _UTC),
        _field("break_start", TIMESTAMP, _UTC),
        _field("break_end", TIMESTAMP, _UTC),
        _field("close", TIMESTAMP, _UTC),
        _field("half_day", pa.bool_()),
        _field("status", _TEXT, required=True),
        _field("source", _TEXT, required=True),
    ],
    "financials": [
        _SYMBOL,
        _field("report_period", _DATE, "date", required=True),
        _field("item", _TEXT, required=True),
        _field("known_at", TIMESTAMP, _UTC, required=True),
        _field("statement", _TEXT),
        _field("value", _FLOAT),
        _field("unit", _TEXT),
        _field("announce_date", _DATE, "date"),
        _field("revision", pa.int16()),
        _field("source", _TEXT),
    ],
    "news": [
        _SYMBOL,
        _field("published_at", TIMESTAMP, _UTC, required=True),
        _field("news_id", _TEXT, required=True),
        _field("title", _TEXT),
        _field("body", _TEXT),
        _field("source", _TEXT),
        _field("url", _TEXT),
        _field("fetched_at", TIMESTAMP, _UTC, required=True),
    ],
    "instruments": [
        _SYMBOL,
        _field("valid_from", _DATE, "date", required=True),
        _field("valid_to", _DATE, "date"),
        _field("code", _TEXT, required=True),
        _field("mic", _TEXT, required=True),
        _field("asset_class", _TEXT, required=True),
        _field("name", _TEXT),
        _field("board", _TEXT),
        _field("currency", _TEXT),
        _field("industry", _TEXT),
        _field("lot_size", pa.int32(), _SHARES),
        _field("tick_size", _FLOAT, _PRICE),
        _field("multiplier", _FLOAT),
        _field("list_date", _DATE, "date"),
        _field("delist_date", _DATE, "date"),
        _field("status", _TEXT),
        _field("is_st", pa.bool_()),
        _field("known_at", TIMESTAMP, _UTC, required=True),
    ],
}

_DAILY: Final[dict[str, Any]] = {"keys": ("symbol", "trading_date"), "time": "trading_date", "period": "year"}
_TICKS: Final[dict[str, Any]] = {"keys": ("symbol", "ts", "seq"), "time": "ts", "period": "day", "fresh_seconds": 30.0}
_RULES: Final[dict[str, dict[str, Any]]] = {
    "bars_1d": _DAILY,
    **{name: {"keys": ("symbol", "ts"), "time": "ts", "period": "month"} for name in INTRADAY_BARS},
    "bars_1m": {"keys": ("symbol", "ts"), "time": "ts", "period": "day"},
    "trades": _TICKS,
    "quotes_l1": _TICKS,
    "quotes_l5": _TICKS,
    "adj_factors": {"keys": ("symbol", "ex_date", "source", "known_at"), "time": "ex_date", "period": "year"},
    "corporate_actions": {"keys": ("symbol", "ex_date", "kind", "known_at"), "time": "ex_date", "period": "year"},
    "calendar": {"keys": ("mic", "session"), "time": "session", "period": "year", "notation": "verbatim"},
    "financials": {"keys": ("symbol", "report_period", "item", "known_at"), "time": "report_period", "period": "year"},
    "news": {"keys": ("symbol", "published_at", "news_id"), "time": "published_at", "period": "month", "accumulates": True},
    "instruments": {"keys": ("symbol", "valid_from"), "time": "valid_from", "period": "year"},
}
# Their dates are facts about a symbol, not sessions: a factor may fall on a holiday.
_WITHOUT_SESSIONS: Final = frozenset({"adj_factors", "calendar", "corporate_actions", "financials", "instruments", "news"})

CANONICAL_NAMES: Final = tuple(_FIELDS)


def canonical(name: str, *, calendar: str | None = None, as_name: str | None = None, **overrides: Any) -> Dataset:
    """Return the standard dataset *name* for the exchange *calendar* (a MIC), called *as_name* where that is given.

    *overrides* replace fields of ``Dataset``, for a source that states its abilities: ``symbols_per_call=50``.
    Those whose dates are no sessions (``adj_factors``, ``corporate_actions``, ``calendar``, ``financials``, ``news``,
    ``instruments``) never have a calendar.
    Raises ``InvalidRequest`` for a name that is not one of ``CANONICAL_NAMES``.
    """
    if name not in _FIELDS:
        raise InvalidRequest(f"there is no canonical dataset {name!r}; there are {', '.join(CANONICAL_NAMES)}")
    metadata = {"dataset": name, "schema_version": str(SCHEMA_VERSION)}
    if name.startswith("bars_"):
        metadata["label"] = "right"
    rules: dict[str, Any] = {"notation": "equity", **_RULES[name], **overrides}
    mic = None if name in _WITHOUT_SESSIONS else calendar
    return Dataset(as_name or name, pa.schema(_FIELDS[name], metadata=metadata), calendar=mic, **rules)

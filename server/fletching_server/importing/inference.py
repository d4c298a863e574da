"""A mapping worked out from names and a sample: shown before it is used, written as TOML on request. Pure.

A dataset that has the name of a canonical schema gets that schema, and columns are matched by the names that vendors use.
Any other keeps the columns of its files: the first one that names a symbol and the first one that is a time are its keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching_schemas import CANONICAL_NAMES, Dataset, Period, canonical
from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.conversion import Judge
from fletching_server.importing.mapping import ImportMapping, served
from fletching_server.sources.file_mapping import validated

_NAMES: Final[dict[str, str]] = {
    "symbol": "symbol sym ticker instrument instrumentid code secid security securityid tscode root ric stock stockcode",
    "ts": "ts timestamp time datetime dt instant eventtime exchangetime siptimestamp participanttimestamp quotetime tradetime",
    "trading_date": "tradingdate tradedate date day session tradingday",
    "seq": "seq sequence sequencenumber seqno seqnum",
    "open": "open o openprice",
    "high": "high h highprice",
    "low": "low l lowprice",
    "close": "close c closeprice",
    "pre_close": "preclose prevclose previousclose",
    "volume": "volume vol v qty",
    "amount": "amount money turnover value",
    "open_interest": "openinterest oi",
    "price": "price px tradeprice lastprice last",
    "size": "size qty quantity volume tradesize sz",
    "bid_px": "bid bidpx bidprice bestbid bestbidprice b1p bid1",
    "ask_px": "ask askpx askprice bestask bestaskprice a1p ask1 offer ofr",
    "bid_sz": "bidsize bidsz bidqty bidvolume bidvol bestbidsize b1v",
    "ask_sz": "asksize asksz askqty askvolume askvol bestasksize a1v ofrsize offersize",
    "exchange": "exchange exch venue mic ex",
    "condition": "condition conditions cond salecondition quotecondition",
    "trade_id": "tradeid id",
    "side": "side aggressor",
}
_KNOWN: Final = {target: tuple(names.split()) for target, names in _NAMES.items()}
_COUNTS: Final = ("volume", "size", "bid_sz", "ask_sz", "open_interest")
_FRACTIONS: Final = (
    "open",
    "high",
    "low",
    "close",
    "pre_close",
    "amount",
    "price",
    "bid_px",
    "ask_px",
)  # though a sample is whole
_TIME_FORMATS: Final = ("%Y%m%d %H:%M:%S%.f", "%Y%m%d %H:%M", "%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d %H:%M", "%Y%m%d%H%M%S")
_DATE_FORMATS: Final = ("%Y/%m/%d",)
_EPOCHS: Final = (("epoch_s", 1e8, 1e10), ("epoch_ms", 1e11, 1e13), ("epoch_us", 1e14, 1e16), ("epoch_ns", 1e17, 1e19))
_ABSENT: Final = ("NaN", "nan", "NA", "N/A", "null", "NULL", "None", "\\N", "-")


@dataclass(frozen=True)
class Sample:
    """Some rows of the inputs as they are read without a mapping, and how their text is laid out.

    *pattern* and *symbol* are what the files' names may give in place of a symbol's column.
    """

    frame: pl.DataFrame
    delimiter: str = ","
    pattern: str | None = None
    symbol: str | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Asked:
    """What the command line says of a new table."""

    keys: tuple[str, ...] | None = None
    time: str | None = None
    partition: Period | None = None
    buckets: int | None = None


@dataclass(frozen=True)
class _Time:
    """How a column is read as a time: the type, and the format where one is needed."""

    type: str
    format: str | None = None


def infer(name: str, sample: Sample, asked: Asked, existing: Dataset | None = None) -> ImportMapping:
    """Return the mapping of the sampled columns to the table *name*; ``InvalidRequest`` says what only a person can tell."""
    if sample.is_text:
        _check_header(name, sample.frame.columns)
    absent = _absent(sample)
    sample = replace(sample, frame=sample.frame.with_columns(map(_without_bad, sample.frame)))
    if existing is None and name not in CANONICAL_NAMES:
        values = _of_columns(name, sample, asked)
    else:
        values = _of_schema(existing or canonical(name), sample, is_canonical=existing is None)
    if sample.delimiter != ",":
        values["delimiter"] = sample.delimiter
    if absent:
        values["nulls"] = absent
    chosen = {"period": asked.partition, "buckets": asked.buckets}
    values |= {key: value for key, value in chosen.items() if value is not None}
    return validated(ImportMapping, {"name": name, **values}, f"the inferred mapping of {name}")


def _check_header(name: str, columns: Sequence[str]) -> None:
    """Refuse a first line that is a row: a table whose columns are called like its values has lost one."""
    values = [column for column in columns if re.fullmatch(r"[-+]?[\d.,:/TZ -]*\d[\d.,:/TZ -]*", column)]
    if values:
        raise InvalidRequest(
            f"{name}: the first line does not look like names of columns ({', '.join(columns)[:80]}): where there is no header, "
            "name the columns in a mapping (header = false, columns = [...])"
        )


def _without_bad(values: pl.Series) -> pl.Series:
    """Return text as numbers where the column's name says that it holds such: a sample may hold bad rows, too."""
    named = {target for target in (*_FRACTIONS, *_COUNTS) if _like(target, [values.name])}
    if values.dtype != pl.String or not named or not _are_numbers(values):
        return values
    return values.cast(pl.Float64 if named & set(_FRACTIONS) else pl.Int64, strict=False)


def _are_numbers(values: pl.Series) -> bool:
    """Return whether text is numbers, but for words that stand for nothing and a bad row here and there."""
    rest = values.filter(~values.is_in(_ABSENT)).drop_nulls()
    return len(rest) > 0 and _most(rest.cast(pl.Float64, strict=False))


def _absent(sample: Sample) -> list[str]:
    """Return the words that stand for nothing among numbers."""
    texts = [column for column in sample.frame if column.dtype == pl.String and _are_numbers(column)]
    found = {word for word in _ABSENT if any((column == word).any() for column in texts)}
    if sample.is_text and any(column.is_nan().any() for column in sample.frame if column.dtype.is_float()):
        found |= {"NaN", "nan"}  # which a reader of numbers takes for one
    return [word for word in _ABSENT if word in found]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _like(target: str, columns: Sequence[str]) -> str | None:
    """Return the column whose name means *target*, the likeliest first."""
    plain = {_plain(name): name for name in reversed(columns)}
    wanted = (_plain(target), *_KNOWN.get(target, ()))
    return next((plain[name] for name in wanted if name in plain), None)


def _of_schema(dataset: Dataset, sample: Sample, *, is_canonical: bool) -> dict[str, Any]:
    columns, values = sample.frame.columns, _table(dataset, is_canonical=is_canonical)
    matched: dict[str, str] = {}
    for item in dataset.schema:
        free = [name for name in columns if name not in matched.values()]
        if (found := _like(item.name, free)) is not None:
            matched[item.name] = found
    if dataset.time not in matched and (found := _like("ts", columns) or _like("trading_date", columns)):
        matched = {target: name for target, name in matched.items() if name != found} | {dataset.time: found}
    if dataset.symbol not in matched:
        values |= _symbol_of_name(sample, dataset.name)
    if dataset.time in matched:
        values |= _format(sample.frame[matched[dataset.time]], dataset.time)
    if "seq" in dataset.keys and "seq" not in matched:
        values["seq"] = "seq"
    given = {*matched, *([dataset.symbol] if "symbol" in values else []), *([values["seq"]] if "seq" in values else [])}
    made = {dataset.session} if dataset.session != dataset.time else set()
    lacking = [item.name for item in dataset.schema if not item.nullable and item.name not in given | made]
    if lacking:
        raise InvalidRequest(
            f"{dataset.name} needs {', '.join(lacking)}; the files have {', '.join(columns)}: "
            "say which is which in a mapping (--write-mapping writes one to edit)"
        )
    return {**values, **_columns(matched, columns)}


def _table(dataset: Dataset, *, is_canonical: bool) -> dict[str, Any]:
    if is_canonical:
        return {"canonical": dataset.name}
    own = {"schema": served(dataset.schema), "keys": dataset.keys, "time": dataset.time, "period": dataset.period}
    return {**own, "notation": dataset.notation, **({"calendar": dataset.calendar} if dataset.calendar else {})}


def _columns(matched: dict[str, str], columns: Sequence[str]) -> dict[str, Any]:
    renamed = {target: name for target, name in matched.items() if target != name}
    ignored = [name for name in columns if name not in matched.values()]
    return ({"columns": renamed} if renamed else {}) | ({"ignore": ignored} if ignored else {})


def _symbol_of_name(sample: Sample, table: str) -> dict[str, Any]:
    if sample.pattern is None:
        raise InvalidRequest(
            f"{table}: no column names a symbol, the files have {', '.join(sample.frame.columns)}; "
            "name the keys, the symbol's column first: --keys"
        )
    return {"path": sample.pattern, "symbol": sample.symbol}


def _of_columns(name: str, sample: Sample, asked: Asked) -> dict[str, Any]:
    """Return a table with the columns of the files."""
    frame, values = sample.frame, dict[str, Any]()
    columns = frame.columns
    if unknown := [key for key in (*(asked.keys or ()), *([asked.time] if asked.time else [])) if key not in columns]:
        raise InvalidRequest(f"{name}: there is no column {', '.join(unknown)}; the files have {', '.join(columns)}")
    symbol = asked.keys[0] if asked.keys else _like("symbol", columns)
    time = asked.time or _time_among([key for key in (asked.keys or columns) if key != symbol], frame)
    if time is None:
        raise InvalidRequest(f"{name}: no column is a time, the files have {', '.join(columns)}; use --time, or a mapping")
    schema = {column: _type(frame[column]) for column in columns}
    if symbol is None:
        values |= _symbol_of_name(sample, name)
        symbol, schema = "symbol", {"symbol": "string!", **schema}
    as_time = _time(frame[time])
    if as_time is None:
        raise InvalidRequest(f"{name}: {time} is no time, it holds {frame[time][0]!r}; write a mapping with time_format")
    schema[symbol], schema[time] = "string!", f"{as_time.type}!"
    keys = asked.keys if asked.keys and time in asked.keys else (*(asked.keys or (symbol,)), time)
    schema |= {key: schema[key].rstrip("!") + "!" for key in keys}
    form = {"time_format": as_time.format} if as_time.format else {}
    return {"schema": schema, "keys": keys, "time": time, **form, **values}


def _time_among(columns: Sequence[str], frame: pl.DataFrame) -> str | None:
    """Return the column that is a time: by its name and what it holds, then by what it holds."""
    named = [name for target in ("ts", "trading_date") if (name := _like(target, columns))]
    temporal = [name for name in columns if frame[name].dtype == pl.Date or isinstance(frame[name].dtype, pl.Datetime)]
    told = [name for name in columns if re.search("time|date|^ts", name.lower()) and _time(frame[name])]
    return next((name for name in (*named, *temporal, *told) if _time(frame[name])), None)


def _format(values: pl.Series, time: str) -> dict[str, Any]:
    found = _time(values)
    if found is None:
        raise InvalidRequest(f"{time}: {values.name} is no time, it holds {values[0]!r}; write a mapping with time_format")
    return {"time_format": found.format} if found.format else {}


def _time(values: pl.Series) -> _Time | None:
    """Return how *values* are read as times; None where they are none."""
    values = values.drop_nulls()
    if values.dtype == pl.Date:
        return _Time("date")
    if isinstance(values.dtype, pl.Datetime):
        return _Time("timestamp")
    if not len(values):
        return None
    if values.dtype.is_numeric():
        return _number_as_time(values)
    column = Judge().column(values)
    if _most(column.dates(None)):
        return _Time("date")
    if _most(column.instants(None, "UTC")):
        return _Time("timestamp")
    for kind, forms, dtype in (("date", _DATE_FORMATS, pl.Date()), ("timestamp", _TIME_FORMATS, pl.Datetime("us"))):
        for form in forms:
            if _most(values.str.strptime(dtype, form, strict=False)):
                return _Time(kind, form)
    return None


def _most(parsed: pl.Series) -> bool:
    """Return whether most values could be read: a sample may hold bad rows, too."""
    return parsed.null_count() < 0.5 * len(parsed)


def _number_as_time(values: pl.Series) -> _Time | None:
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    if values.dtype.is_integer() and low >= 19000101 and high <= 21001231:
        days = values.cast(pl.String).str.strptime(pl.Date, "%Y%m%d", strict=False)
        return _Time("date", "%Y%m%d") if days.null_count() == 0 else None
    return next((_Time("timestamp", form) for form, least, most in _EPOCHS if least <= low and high < most), None)


def _type(values: pl.Series) -> str:
    """Return the type of a column that is no key."""
    plain = values.drop_nulls()
    if plain.dtype == pl.String and plain.is_in(_ABSENT).any() and _are_numbers(plain):
        return "float64"
    if plain.dtype == pl.Null:
        return "string"
    if plain.dtype.is_float() or plain.dtype == pl.Decimal:
        return "float64"
    if plain.dtype.is_integer():
        return "float64" if any(_like(target, [values.name]) for target in _FRACTIONS) else "int64"
    if isinstance(plain.dtype, pl.Datetime):
        return "timestamp"
    return {pl.Boolean: "bool", pl.Date: "date"}.get(type(plain.dtype), "string")


def density(dataset: Dataset, rows: int, days: int) -> Period:
    """Return the period in which so many *rows* over so many *days* make partitions of some 100,000 to some millions of rows."""
    if pa.types.is_date32(dataset.schema.field(dataset.time).type):
        return "year"
    daily = rows / max(days, 1)
    return "day" if daily >= 250_000 else "month" if daily >= 5_000 else "year"

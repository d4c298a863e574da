"""A dataset refuses parts that do not fit, travels unchanged, and knows its periods."""

from __future__ import annotations

import json
from calendar import isleap
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import CANONICAL_NAMES, Dataset, Notation, Period, canonical, storage_schema, storage_type
from fletching_schemas.datasets import TIMESTAMP, decode_json
from fletching_schemas.errors import InvalidRequest, UnknownColumn

SCHEMA = pa.schema([
    pa.field("symbol", pa.string(), nullable=False),
    pa.field("ts", pa.timestamp("ns", tz="Asia/Shanghai"), nullable=False),
    pa.field("seq", pa.int64()),
    pa.field("price", pa.float64(), metadata={"unit": "currency/share"}),
], metadata={"dataset": "ticks"})  # fmt: skip


def dataset(**changes: Any) -> Dataset:
    parts: dict[str, Any] = {"name": "ticks", "schema": SCHEMA, "keys": ("symbol", "seq", "ts"), "time": "ts"}
    return Dataset(**(parts | changes))


def without(*names: str) -> pa.Schema:
    return pa.schema([item for item in SCHEMA if item.name not in names])


def retyped(name: str, kind: pa.DataType) -> pa.Schema:
    return SCHEMA.set(SCHEMA.get_field_index(name), pa.field(name, kind))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "Ticks"}, "lower-case"),
        ({"name": ""}, "lower-case"),
        ({"name": "1m"}, "starts with a letter"),
        ({"name": "a" * 64}, "1 to 63"),
        ({"name": "../etc"}, "lower-case"),
        ({"name": "ticks\n"}, "lower-case"),
        ({"name": None}, "lower-case"),
        ({"schema": SCHEMA.append(pa.field("price", pa.int8()))}, "different names"),
        ({"schema": without("seq")}, "'seq'"),
        ({"schema": without("ts")}, "'ts'"),
        ({"keys": ()}, "keys"),
        ({"keys": "symbol"}, "must be columns"),
        ({"time": "price"}, "must be one of the keys"),
        ({"keys": ("symbol", "seq")}, "must be one of the keys"),
        ({"time": "symbol"}, "after the symbol"),
        ({"schema": retyped("symbol", pa.int64())}, "must be a string"),
        ({"schema": retyped("ts", pa.timestamp("us"))}, "time zone"),
        ({"schema": retyped("ts", pa.int64())}, "must be a date or a timestamp"),
        ({"calendar": "XSHG"}, "add a column trading_date"),
        ({"period": "week"}, "period is one of"),
        ({"notation": "stock"}, "notation is one of"),
        ({"buckets": 0}, "at least 1"),
        ({"symbols_per_call": 0}, "at least 1"),
        ({"fresh_seconds": -1.0}, "at least 0"),
        ({"fresh_seconds": float("nan")}, "at least 0"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised:
        dataset(**changes)
    assert repr(changes.get("name", "ticks")) in str(raised.value)


def test_a_dataset_keeps_its_schema_as_it_is_stored() -> None:
    kept = dataset(keys=["symbol", "seq", "ts"])
    assert kept.schema.types == [pa.string_view(), TIMESTAMP, pa.int64(), pa.float64()]
    assert [item.nullable for item in kept.schema] == [False, False, False, True]  # keys place a row, so none may be null
    assert kept.schema.metadata == {b"dataset": b"ticks"}
    assert kept.keys == ("symbol", "seq", "ts")


def test_rows_are_sorted_by_symbol_and_time_before_other_keys() -> None:
    assert dataset().symbol == "symbol"
    assert dataset().sort_keys == ("symbol", "ts", "seq")
    assert sorted(dataset().sort_keys) == sorted(dataset().keys)


def test_the_session_is_the_trading_date_where_there_is_one() -> None:
    assert dataset().session == "ts"
    assert dataset(schema=SCHEMA.append(pa.field("trading_date", pa.date32()))).session == "trading_date"


def test_a_projection_has_the_asked_columns_in_the_asked_order() -> None:
    ticks = dataset()
    assert ticks.project(None) is ticks.schema
    projected = ticks.project(("price", "symbol"))
    assert projected.names == ["price", "symbol"]
    assert projected.field("price").metadata == {b"unit": b"currency/share"}
    assert projected.metadata == ticks.schema.metadata


def test_an_unknown_column_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownColumn, match="ticks has no column volum, pric; it has symbol, ts, seq, price") as raised:
        dataset().project(("volum", "price", "pric"))
    assert not str(raised.value).startswith(("'", '"'))


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_a_canonical_dataset_travels_as_json(name: str) -> None:
    sent = canonical(name, calendar="XSHG", first_session=date(1990, 12, 19), description="what it is")
    received = Dataset.from_json(json.loads(json.dumps(sent.to_json())))
    assert received == sent
    assert received.schema.equals(sent.schema, check_metadata=True)
    assert received.description == "what it is"


@given(
    period=st.sampled_from(get_args(Period)),
    notation=st.sampled_from(get_args(Notation)),
    buckets=st.integers(1, 64),
    pushdown=st.booleans(),
    per_call=st.integers(1, 5000),
    first=st.none() | st.dates(),
    fresh=st.floats(0, 1e9),
    calendar=st.none() | st.sampled_from(["XSHG", "XNYS"]),
)
def test_every_field_of_a_dataset_travels_as_json(
    period: Period,
    notation: Notation,
    buckets: int,
    pushdown: bool,
    per_call: int,
    first: date | None,
    fresh: float,
    calendar: str | None,
) -> None:
    sent = dataset(
        period=period,
        notation=notation,
        buckets=buckets,
        range_pushdown=pushdown,
        symbols_per_call=per_call,
        first_session=first,
        fresh_seconds=fresh,
        calendar=calendar,
        schema=SCHEMA.append(pa.field("trading_date", pa.date32())),
    )
    assert Dataset.from_json(json.loads(json.dumps(sent.to_json()))) == sent


def test_another_name_changes_nothing_else() -> None:
    ticks = dataset(buckets=4)
    assert ticks.with_name("mine") == replace(ticks, name="mine")
    with pytest.raises(InvalidRequest):
        ticks.with_name("No Name")


@pytest.mark.parametrize(
    ("period", "day", "name", "first", "last"),
    [
        ("year", date(2024, 3, 20), "2024", date(2024, 1, 1), date(2024, 12, 31)),
        ("month", date(2024, 2, 29), "2024-02", date(2024, 2, 1), date(2024, 2, 29)),
        ("month", date(2023, 2, 1), "2023-02", date(2023, 2, 1), date(2023, 2, 28)),
        ("month", date(1900, 2, 1), "1900-02", date(1900, 2, 1), date(1900, 2, 28)),
        ("month", date(2000, 2, 1), "2000-02", date(2000, 2, 1), date(2000, 2, 29)),
        ("month", date(2024, 12, 31), "2024-12", date(2024, 12, 1), date(2024, 12, 31)),
        ("month", date(2024, 4, 30), "2024-04", date(2024, 4, 1), date(2024, 4, 30)),
        ("day", date(2024, 12, 31), "2024-12-31", date(2024, 12, 31), date(2024, 12, 31)),
        ("day", date(2024, 2, 29), "2024-02-29", date(2024, 2, 29), date(2024, 2, 29)),
        ("year", date.max, "9999", date(9999, 1, 1), date.max),
        ("month", date.max, "9999-12", date(9999, 12, 1), date.max),
        ("month", date.min, "0001-01", date.min, date(1, 1, 31)),
    ],
)
def test_a_day_lies_in_its_period(period: Period, day: date, name: str, first: date, last: date) -> None:
    periods = dataset(period=period)
    assert periods.period_of(day) == name
    assert periods.period_days(name) == (first, last)


@given(st.sampled_from(get_args(Period)), st.dates(date(1, 1, 2), date(9999, 12, 30)))
def test_periods_cover_every_day_once(period: Period, day: date) -> None:
    periods = dataset(period=period)
    first, last = periods.period_days(periods.period_of(day))
    assert first <= day <= last
    assert periods.period_of(first) == periods.period_of(last) == periods.period_of(day)
    if first > date.min:
        assert periods.period_of(first - timedelta(days=1)) != periods.period_of(day)
    if last < date.max:
        assert periods.period_of(last + timedelta(days=1)) != periods.period_of(day)
    if period == "year":
        assert (last - first).days + 1 == (366 if isleap(day.year) else 365)


@pytest.mark.parametrize(
    ("given_type", "stored"),
    [
        (pa.string(), pa.string_view()),
        (pa.large_string(), pa.string_view()),
        (pa.string_view(), pa.string_view()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string_view()),
        (pa.dictionary(pa.int8(), pa.float64()), pa.float64()),
        (pa.date64(), pa.date32()),
        (pa.date32(), pa.date32()),
        (pa.timestamp("ns", tz="America/New_York"), TIMESTAMP),
        (pa.timestamp("s", tz="UTC"), TIMESTAMP),
        (pa.timestamp("ns"), pa.timestamp("us")),
        (pa.float32(), pa.float32()),
        (pa.int16(), pa.int16()),
        (pa.bool_(), pa.bool_()),
        (pa.decimal128(18, 4), pa.decimal128(18, 4)),
        (pa.list_(pa.int32()), pa.list_(pa.int32())),
    ],
)
def test_a_type_has_one_stored_form(given_type: pa.DataType, stored: pa.DataType) -> None:
    assert storage_type(given_type) == stored
    assert storage_type(stored) == stored


def test_storing_a_schema_keeps_names_nullability_and_metadata() -> None:
    stored = storage_schema(SCHEMA)
    assert stored.names == SCHEMA.names
    assert stored.metadata == SCHEMA.metadata
    assert [(item.nullable, item.metadata) for item in stored] == [(item.nullable, item.metadata) for item in SCHEMA]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"nul", b"[" * 100_000, b"1" * 5000, b'{"a":1}{}'])
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="a thing is not JSON"):
        decode_json(raw, 1 << 20, "a thing")


@pytest.mark.parametrize(("raw", "kind"), [(b"[]", "list"), (b"1", "int"), (b'"x"', "str"), (b"null", "NoneType")])
def test_json_that_is_no_object_is_refused(raw: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"must be a JSON object, it is a {kind}"):
        decode_json(raw, 100, "a thing")


def test_json_is_not_read_beyond_its_limit() -> None:
    raw = b'{"a":1}'
    assert decode_json(raw, len(raw), "a thing") == {"a": 1}
    with pytest.raises(InvalidRequest, match="a thing of 7 bytes; at most 6 are read"):
        decode_json(raw, len(raw) - 1, "a thing")

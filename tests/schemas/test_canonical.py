"""The standard datasets: keys that cannot be null, units where a number needs one, and labels on bars."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from fletching_schemas import CANONICAL_NAMES, canonical
from fletching_schemas.canonical import SCHEMA_VERSION
from fletching_schemas.datasets import TIMESTAMP, storage_schema
from fletching_schemas.errors import InvalidRequest

UNITS = {"currency/share", "shares", "contracts", "currency", "ratio", "UTC", "session", "date", "ordinal"}
# Numbers that count nothing: an identifier, a version, a factor of a contract.
WITHOUT_UNIT = {"trade_id", "version", "multiplier", "revision", "value"}


def unit_of(item: pa.Field) -> str:
    text: bytes = (item.metadata or {}).get(b"unit", b"")
    return text.decode()


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_keys_are_never_null(name: str) -> None:
    dataset = canonical(name)
    assert [key for key in dataset.keys if dataset.schema.field(key).nullable] == []
    assert dataset.keys[0] == dataset.symbol == ("mic" if name == "calendar" else "symbol")
    assert not dataset.schema.field(dataset.session).nullable


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_every_number_and_every_time_has_a_unit(name: str) -> None:
    schema = canonical(name).schema
    measured = [item for item in schema if not (item.type == pa.string_view() or pa.types.is_boolean(item.type))]
    assert {item.name for item in measured if not unit_of(item)} <= WITHOUT_UNIT
    assert {unit_of(item) for item in measured} - {""} <= UNITS


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_a_unit_fits_its_type(name: str) -> None:
    kinds = {
        "currency/share": {pa.float64()},
        "currency": {pa.float64()},
        "ratio": {pa.float64()},
        "shares": {pa.int64(), pa.int32()},
        "contracts": {pa.int64()},
        "ordinal": {pa.int64()},
        "UTC": {TIMESTAMP},
        "session": {pa.date32()},
        "date": {pa.date32()},
        "": {pa.string_view(), pa.bool_(), pa.int64(), pa.int16(), pa.float64()},
    }
    assert [item for item in canonical(name).schema if item.type not in kinds[unit_of(item)]] == []


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_a_canonical_schema_is_what_is_stored_and_says_its_name_and_version(name: str) -> None:
    schema = canonical(name).schema
    assert schema.equals(storage_schema(schema), check_metadata=True)
    assert schema.metadata[b"dataset"] == name.encode()
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_bars_and_only_bars_are_labelled_by_their_end(name: str) -> None:
    expected = b"right" if name.startswith("bars_") else None
    assert canonical(name).schema.metadata.get(b"label") == expected


@pytest.mark.parametrize(
    ("name", "keys", "time", "period"),
    [
        ("bars_1d", ("symbol", "trading_date"), "trading_date", "year"),
        ("bars_1m", ("symbol", "ts"), "ts", "day"),
        ("bars_60m", ("symbol", "ts"), "ts", "month"),
        ("corporate_actions", ("symbol", "ex_date", "kind", "known_at"), "ex_date", "year"),
        ("financials", ("symbol", "report_period", "item", "known_at"), "report_period", "year"),
        ("news", ("symbol", "published_at", "news_id"), "published_at", "month"),
        ("trades", ("symbol", "ts", "seq"), "ts", "day"),
        ("quotes_l1", ("symbol", "ts", "seq"), "ts", "day"),
        ("quotes_l5", ("symbol", "ts", "seq"), "ts", "day"),
        ("adj_factors", ("symbol", "ex_date", "source", "known_at"), "ex_date", "year"),
        ("instruments", ("symbol", "valid_from"), "valid_from", "year"),
    ],
)
def test_keys_time_and_period_are_those_of_the_reference(name: str, keys: tuple[str, ...], time: str, period: str) -> None:
    dataset = canonical(name)
    assert (dataset.keys, dataset.time, dataset.period, dataset.notation) == (keys, time, period, "equity")


def test_five_levels_are_flat_columns() -> None:
    names = canonical("quotes_l5").schema.names
    assert [name for name in names if name.startswith("bid_px")] == [f"bid_px_{level}" for level in range(1, 6)]
    assert {"ask_px_5", "bid_sz_1", "ask_sz_5"} <= set(names)
    assert {"bid_px", "ask_px", "bid_sz", "ask_sz"} <= set(canonical("quotes_l1").schema.names)


@pytest.mark.parametrize("name", CANONICAL_NAMES)
def test_the_calendar_belongs_to_datasets_with_sessions(name: str) -> None:
    without = {"adj_factors", "calendar", "corporate_actions", "financials", "instruments", "news"}
    expected = None if name in without else "XSHG"
    assert canonical(name, calendar="XSHG").calendar == expected
    assert canonical(name).calendar is None


def test_a_source_names_the_dataset_and_states_its_abilities() -> None:
    abilities: dict[str, Any] = {"symbols_per_call": 50, "first_session": date(1990, 1, 2), "period": "month"}
    dataset = canonical("bars_1d", calendar="XNYS", as_name="us_daily", **abilities)
    assert dataset.name == "us_daily"
    assert {name: getattr(dataset, name) for name in abilities} == abilities
    assert dataset.schema.metadata[b"dataset"] == b"bars_1d"


def test_a_name_that_is_not_canonical_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest) as raised:
        canonical("bars_1w")
    assert [name for name in ("bars_1w", *CANONICAL_NAMES) if name not in str(raised.value)] == []


def test_an_override_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="period is one of"):
        canonical("bars_1d", period="week")

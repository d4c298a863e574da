"""The arithmetic of adjustment, against one that goes row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import bar, weekdays

from fletching_schemas import Dataset, canonical
from fletching_schemas.errors import BadSourceData
from fletching_server.adjustment import Steps, adjusted_prices, factor_steps, price_columns, steps_of, version_of, with_prices
from fletching_server.calendars import day_number

DAILY = canonical("bars_1d", calendar="XSHG")
FACTORS = canonical("adj_factors")
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
PRICES = price_columns(DAILY.schema)


def factor(symbol: str, day: date, mul: float, add: float = 0.0, source: str = "s", known: int = 1) -> dict[str, Any]:
    told = {"symbol": symbol, "ex_date": day, "source": source, "known_at": datetime(2026, 11, known, tzinfo=UTC)}
    return {**told, "mul": mul, "add": add, "method": "multiply", "version": 1}


def table_of(factors: list[dict[str, Any]]) -> pa.Table:
    rows = sorted(factors, key=lambda row: (row["symbol"], row["ex_date"], row["source"], row["known_at"]))
    return pa.Table.from_pylist(rows, schema=FACTORS.schema)


SYMBOLS = st.sampled_from(["000001.SZ", "000002.SZ", "600519.SH"])
STEPS = st.lists(
    st.tuples(SYMBOLS, st.dates(date(2026, 10, 25), date(2026, 11, 25)), st.floats(0.1, 10), st.sampled_from([0.0, 0.0, 1.5])),
    max_size=8,
    unique_by=lambda step: step[:2],
)
CELLS = st.lists(st.tuples(SYMBOLS, st.sampled_from(DAYS)), unique=True, max_size=25)


def oracle(cells: list[tuple[str, date]], steps: list[Any], reference: date | None) -> list[float]:
    """Return the adjusted closes, one by one."""

    def at(symbol: str, day: date) -> tuple[float, float]:
        held = [(when, mul, add) for name, when, mul, add in steps if name == symbol and when <= day]
        return max(held)[1:] if held else (1.0, 0.0)

    closes = []
    for symbol, day in cells:
        mul, add = at(symbol, day)
        value = bar(symbol, day)["close"] * mul + add
        if reference is not None:
            mul_ref, add_ref = at(symbol, reference)
            value = (value - add_ref) / mul_ref
        closes.append(value)
    return closes


@given(CELLS, STEPS, st.one_of(st.none(), st.dates(date(2026, 10, 25), date(2026, 11, 25))))
def test_every_price_is_adjusted_as_of_its_session(
    cells: list[tuple[str, date]], steps: list[Any], reference: date | None
) -> None:
    cells = sorted(cells)
    raw = pa.Table.from_pylist([bar(*cell) for cell in cells], schema=DAILY.schema)
    known = factor_steps(FACTORS, table_of([factor(*step) for step in steps]))
    if reference is not None:
        known = {symbol: step.relative_to(day_number(reference)) for symbol, step in known.items()}
    found = adjusted(DAILY, raw, PRICES, known)
    assert found["close"].to_pylist() == pytest.approx(oracle(cells, steps, reference), rel=1e-12)
    assert found.schema.equals(raw.schema, check_metadata=True)
    for name in ("symbol", "trading_date", "volume", "amount", "suspended"):
        assert found[name].equals(raw[name])


def adjusted(dataset: Dataset, table: pa.Table, prices: Sequence[str], steps: Mapping[str, Steps | None]) -> pa.Table:
    return with_prices(table, adjusted_prices(dataset, table, prices, steps))


def test_prices_are_the_columns_in_currency_per_share() -> None:
    assert PRICES == ("open", "high", "low", "close", "pre_close", "limit_up", "limit_down", "settle")
    assert price_columns(canonical("trades").schema) == ("price",)


def test_what_is_missing_stays_missing() -> None:
    raw = pa.Table.from_pylist([{**bar("000001.SZ", DAYS[0]), "open": None}], schema=DAILY.schema)
    found = adjusted(DAILY, raw, PRICES, {"000001.SZ": steps_of("000001.SZ", [0], [2.0], [0.0])})
    assert (found["open"].to_pylist(), found["pre_close"].to_pylist()) == ([None], [None])


def test_rows_without_factors_are_shared_and_not_copied() -> None:
    raw = pa.Table.from_pylist([bar("000001.SZ", day) for day in DAYS], schema=DAILY.schema)
    assert adjusted(DAILY, raw, PRICES, {}) is raw
    assert adjusted(DAILY, raw, PRICES, {"000001.SZ": steps_of("000001.SZ", [0], [1.0], [0.0])}) is raw


def test_the_revision_that_was_known_last_counts_and_one_source_only() -> None:
    day = DAYS[0]
    found = factor_steps(
        FACTORS,
        table_of(
            [
                factor("000001.SZ", day, 2.0, known=1),
                factor("000001.SZ", day, 3.0, known=2),
                factor("000001.SZ", DAYS[3], 9.0, source="z"),
            ]
        ),
    )
    assert found["000001.SZ"].mul.tolist() == [1.0, 3.0]


def test_versions_tell_factors_apart() -> None:
    one = {"A": steps_of("A", [1], [2.0], [0.0]), "B": steps_of("B", [1], [2.0], [0.0])}
    other = {**one, "B": steps_of("B", [1], [np.nextafter(2.0, 3.0)], [0.0])}
    assert version_of(["A", "B"], one) == version_of(["A", "B"], dict(reversed(one.items())))
    assert version_of(["A"], one) == version_of(["A"], other)
    assert len({version_of(["A", "B"], one), version_of(["A", "B"], other), version_of(["A"], one), version_of([], {})}) == 4


@pytest.mark.parametrize("mul", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(mul: float) -> None:
    with pytest.raises(BadSourceData, match="factors of A must be positive and finite"):
        steps_of("A", [1], [mul], [0.0])

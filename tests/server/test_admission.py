from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import bar

from fletching_schemas import Dataset, FetchRequest, canonical
from fletching_schemas.errors import BadSourceData, InvalidRequest
from fletching_server.admission import admit_fetched, conform
from fletching_server.image import Image

DAILY = canonical("bars_1d", calendar="XSHG")
MINUTES = canonical("bars_1m", calendar="XSHG")
MON, TUE, WED = date(2026, 11, 2), date(2026, 11, 3), date(2026, 11, 4)
ASKED = FetchRequest("bars_1d", ("000001.SZ", "600519.SH"), MON, WED)


def good() -> list[dict[str, Any]]:
    return [bar(symbol, day) for symbol in ASKED.symbols for day in (MON, TUE, WED)]


def admit(rows: list[dict[str, Any]] | pa.Table, dataset: Dataset = DAILY, request: FetchRequest = ASKED) -> Image:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=dataset.schema)
    return admit_fetched(dataset, table, request, "vendor")


def refused(rows: Any, dataset: Dataset = DAILY, request: FetchRequest = ASKED) -> str:
    with pytest.raises(BadSourceData) as caught:
        admit(rows, dataset, request)
    return str(caught.value)


def with_column(name: str, values: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist(good(), schema=DAILY.schema)
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_good_rows_are_admitted_as_they_are() -> None:
    image = admit(good())
    assert image.table.equals(pa.Table.from_pylist(good(), schema=DAILY.schema))
    assert image.symbols == ASKED.symbols


def test_every_refusal_names_the_source_and_the_request() -> None:
    text = refused(good()[::-1])
    assert "source vendor answered bars_1d 000001.SZ, 600519.SH 2026-11-02..2026-11-04" in text


@pytest.mark.parametrize("answer", [None, [], {"a": 1}, "rows", pa.array([1])])
def test_what_is_no_table_is_refused(answer: Any) -> None:
    with pytest.raises(BadSourceData, match=r"return a pyarrow\.Table"):
        admit_fetched(DAILY, answer, ASKED, "vendor")


def test_nullable_columns_may_be_left_out_and_come_back_null() -> None:
    table = pa.Table.from_pylist(good(), schema=DAILY.schema).select(["trading_date", "symbol", "close"])
    image = admit(table)
    assert image.table.schema.equals(DAILY.schema)
    assert image.table.column("open").null_count == 6
    assert image.table.column("close").null_count == 0


def test_a_key_that_is_left_out_is_named() -> None:
    table = pa.Table.from_pylist(good(), schema=DAILY.schema).drop_columns(["trading_date"])
    assert "column trading_date is missing" in refused(table)


def test_an_unexpected_column_is_named_beside_those_that_there_are() -> None:
    table = pa.Table.from_pylist(good(), schema=DAILY.schema).append_column("colour", pa.array(["red"] * 6))
    assert "unexpected column colour; the columns are symbol, trading_date" in refused(table)


def test_a_value_that_does_not_fit_is_named_with_its_row() -> None:
    assert "volume[4] = 1.5 is not int64" in refused(with_column("volume", pa.array([1.0, 2.0, 3.0, 4.0, 1.5, 7.5])))


def test_a_text_that_is_no_number_is_named_with_its_row() -> None:
    assert "close[2] = -- is not double" in refused(with_column("close", pa.array(["1", "2", "--", "4", "5", "6"])))


def test_the_row_is_counted_across_chunks() -> None:
    column = pa.chunked_array([pa.array([1.0, 2.0, 3.0, 4.0]), pa.array([5.0, 0.25])])
    table = pa.Table.from_pylist(good(), schema=DAILY.schema)
    assert "volume[5] = 0.25" in refused(table.set_column(table.schema.get_field_index("volume"), "volume", column))


def test_a_number_where_text_belongs_is_refused() -> None:
    assert "symbol[0] = 1 is not string_view" in refused(with_column("symbol", pa.array([1, 1, 1, 600519, 600519, 600519])))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("trading_date", pa.array([datetime(2026, 11, day, 15) for day in (2, 3, 4)] * 2)),  # noqa: DTZ001  # naive on purpose
        ("trading_date", pa.array([20000, 20001, 20002] * 2, pa.int32())),
        ("suspended", pa.array([0, 1, 2] * 2)),
        ("volume", pa.array([True, False, True] * 2)),
    ],
    ids=["times as dates", "numbers as dates", "numbers as truths", "truths as numbers"],
)
def test_a_cast_that_would_lose_or_invent_meaning_is_refused(column: str, values: pa.Array) -> None:
    assert column in refused(with_column(column, values))


def test_dates_as_midnights_are_dates() -> None:
    midnights = pa.array([datetime(2026, 11, day) for day in (2, 3, 4)] * 2)  # noqa: DTZ001  # as pandas has them
    assert admit(with_column("trading_date", midnights)).table.column("trading_date").to_pylist() == [MON, TUE, WED] * 2


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_text_may_come_in_any_form(kind: pa.DataType) -> None:
    symbols = pa.array([row["symbol"] for row in good()]).cast(kind)
    assert admit(with_column("symbol", symbols)).symbols == ASKED.symbols


def test_decimals_and_whole_floats_fit_where_nothing_is_lost() -> None:
    image = admit(with_column("volume", pa.array([Decimal("5.00")] * 6)))
    assert image.table.column("volume").to_pylist() == [5] * 6


def test_nan_is_refused_with_its_row() -> None:
    assert "turnover_rate[3] is NaN" in refused(with_column("turnover_rate", pa.array([0.1, 0.2, None, float("nan"), 0.1, 0.1])))


def test_a_null_key_is_refused_with_its_row() -> None:
    assert "symbol[1] is null" in refused(with_column("symbol", pa.array(["000001.SZ", None, *["600519.SH"] * 4])))


def test_rows_out_of_order_are_refused_with_the_first_such_row() -> None:
    rows = good()
    rows[1], rows[2] = rows[2], rows[1]
    assert "not sorted by symbol, trading_date, row 1 is out of order" in refused(rows)


def test_a_repeated_key_is_refused_with_its_values() -> None:
    rows = good()
    rows.insert(2, rows[1])
    assert "1 duplicate keys, the first at row 2: symbol=000001.SZ, trading_date=2026-11-03" in refused(rows)


def test_a_symbol_that_was_not_asked_is_refused() -> None:
    assert "rows of 300750.SZ, which was not asked" in refused([bar("300750.SZ", MON)])


def test_a_session_that_was_not_asked_is_refused_with_its_row() -> None:
    assert "row 1 is of session 2026-11-05, outside the range" in refused(
        [bar("000001.SZ", MON), bar("000001.SZ", date(2026, 11, 5))]
    )


def test_a_source_without_range_push_down_may_return_all_sessions() -> None:
    dataset = canonical("bars_1d", calendar="XSHG", range_pushdown=False)
    assert admit([bar("000001.SZ", date(2020, 1, 2)), bar("000001.SZ", MON)], dataset).table.num_rows == 2


@pytest.mark.parametrize(
    "change", [{"low": 999.0}, {"high": 1.0}, {"open": 1000.0}, {"close": 0.01}], ids=["low", "high", "open", "close"]
)
def test_a_bar_that_breaks_its_own_range_is_refused_with_its_row(change: dict[str, float]) -> None:
    rows = good()
    rows[4] |= change
    assert "1 bars break low <= open, close <= high; row 4" in refused(rows)


def test_a_bar_with_unknown_prices_is_admitted() -> None:
    rows = good()
    rows[4] |= {"open": None, "high": None, "low": None, "close": None, "suspended": True}
    assert admit(rows).table.column("open").null_count == 1


def minute(hour: int, minute: int, day: date = MON) -> dict[str, Any]:
    return {"symbol": "000001.SZ", "ts": datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC), "trading_date": day}


def test_an_instant_without_time_zone_is_refused() -> None:
    naive = pa.array([datetime(2026, 11, 2, 9, 31)])  # noqa: DTZ001  # naive on purpose
    rows = pa.Table.from_pylist([minute(1, 31)], schema=MINUTES.schema).set_column(1, "ts", naive)
    assert "ts has no time zone" in refused(rows, MINUTES)


def test_an_instant_given_as_a_number_is_refused() -> None:
    rows = pa.Table.from_pylist([minute(1, 31)], schema=MINUTES.schema).set_column(1, "ts", pa.array([1_793_582_000_000]))
    assert "ts[0] = 1793582000000 is not timestamp" in refused(rows, MINUTES)


def test_instants_of_another_zone_and_unit_are_the_same_instants() -> None:
    there = pa.array([datetime(2026, 11, 2, 1, 31)], pa.timestamp("ns", tz="Asia/Shanghai"))  # noqa: DTZ001
    rows = pa.Table.from_pylist([minute(1, 31)], schema=MINUTES.schema).set_column(1, "ts", there)
    assert admit(rows, MINUTES).table.column("ts").to_pylist() == [datetime(2026, 11, 2, 1, 31, tzinfo=UTC)]


def test_nanoseconds_that_microseconds_cannot_hold_are_refused() -> None:
    finer = pa.array([1_793_582_000_000_000_001], pa.timestamp("ns", tz="UTC"))
    rows = pa.Table.from_pylist([minute(1, 31)], schema=MINUTES.schema).set_column(1, "ts", finer)
    assert "ts[0]" in refused(rows, MINUTES)


def test_a_session_that_goes_back_while_time_goes_on_is_refused() -> None:
    rows = [minute(1, 31, TUE), minute(1, 31, WED) | {"trading_date": MON}]
    assert "trading_date goes back at row 1 while ts goes on" in refused(rows, MINUTES)


@pytest.mark.parametrize("kind", [pa.null(), pa.float64(), pa.int64(), pa.string()], ids=str)
def test_an_empty_answer_may_have_columns_of_any_type(kind: pa.DataType) -> None:
    empty = pa.table({name: pa.array([], kind) for name in DAILY.schema.names})
    assert admit(empty).table.equals(DAILY.schema.empty_table())


def test_an_empty_answer_without_any_column_is_still_told_what_is_missing() -> None:
    assert "column symbol is missing" in refused(pa.table({}))


def test_a_small_answer_cut_from_a_large_table_does_not_hold_the_large_one() -> None:
    large = pa.Table.from_pylist([bar("000001.SZ", MON)] * 100_000, schema=DAILY.schema)
    assert admit(large.slice(50_000, 1)).nbytes < 10_000


def test_conform_raises_the_fault_it_was_given() -> None:
    with pytest.raises(InvalidRequest, match=r"a write: unexpected column"):
        conform(pa.table({"x": [1]}), DAILY.schema, InvalidRequest, "a write")

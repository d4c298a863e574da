from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import bar

from fletching_schemas import canonical
from fletching_server.calendars import day_number
from fletching_server.image import Image, Window, build_image

DAILY = canonical("bars_1d", calendar="XSHG")
MINUTES = canonical("bars_1m", calendar="XSHG")
FIRST = date(2026, 11, 2)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def minute_row(symbol: str, minutes: int) -> dict[str, Any]:
    ts = datetime(2026, 11, 2, 1, 0, tzinfo=UTC) + timedelta(minutes=minutes)
    return {"symbol": symbol, "ts": ts, "trading_date": ts.date(), "close": float(minutes)}


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def minutes_image(cells: set[tuple[str, int]]) -> tuple[Image, list[dict[str, Any]]]:
    rows = [minute_row(symbol, minutes) for symbol, minutes in sorted(cells)]
    return build_image(MINUTES, pa.Table.from_pylist(rows, schema=MINUTES.schema)), rows


CELLS = st.sets(st.tuples(st.sampled_from(["A.US", "B.US", "C.US"]), st.integers(0, 5000)), max_size=40)
INSTANTS = st.none() | st.integers(-100, 5100).map(lambda m: micros(minute_row("A.US", m)["ts"]))


@settings(max_examples=60)
@given(CELLS, st.sampled_from(["A.US", "B.US", "C.US", "D.US"]), st.integers(-1, 5), st.integers(-1, 5), INSTANTS, INSTANTS)
def test_find_gives_the_rows_that_a_filter_would(
    cells: set[tuple[str, int]], symbol: str, low: int, high: int, after: int | None, before: int | None
) -> None:
    image, rows = minutes_image(cells)
    window = Window(day_number(FIRST) + low, day_number(FIRST) + high, after, before)
    start, stop = image.find(symbol, window)
    assert 0 <= start <= stop <= len(rows)
    wanted = [
        row
        for row in rows
        if row["symbol"] == symbol
        and window.first_day <= day_number(row["trading_date"]) <= window.last_day
        and (after is None or micros(row["ts"]) >= after)
        and (before is None or micros(row["ts"]) <= before)
    ]
    assert [row["ts"] for row in rows[start:stop]] == [row["ts"] for row in wanted]


def test_an_image_knows_its_symbols_sessions_and_cost() -> None:
    days = [FIRST, FIRST + timedelta(days=1)]
    rows = [bar(symbol, day) for symbol in ("000001.SZ", "600519.SH") for day in days]
    image = build_image(DAILY, pa.Table.from_pylist(rows, schema=DAILY.schema))
    assert image.symbols == ("000001.SZ", "600519.SH")
    assert image.runs == {"000001.SZ": (0, 2), "600519.SH": (2, 4)}
    assert (image.first_day, image.last_day) == (day_number(days[0]), day_number(days[1]))
    assert image.nbytes == image.table.get_total_buffer_size()


def test_an_empty_image_has_no_rows_to_find_and_still_costs_something() -> None:
    image = build_image(DAILY, DAILY.schema.empty_table())
    assert image.symbols == ()
    assert image.find("000001.SZ", Window(0, 99999)) == (0, 0)
    assert image.nbytes == 1


@pytest.mark.parametrize(
    ("order", "complaint"),
    [([1, 0], "not sorted by trading_date"), ([2, 0], "not sorted by symbol"), ([0, 2, 1], "not sorted by symbol")],
)
def test_unsorted_rows_make_no_image(order: list[int], complaint: str) -> None:
    rows = [bar("000001.SZ", FIRST), bar("000001.SZ", FIRST + timedelta(days=1)), bar("600519.SH", FIRST)]
    with pytest.raises(ValueError, match=complaint):
        build_image(DAILY, pa.Table.from_pylist([rows[place] for place in order], schema=DAILY.schema))


def test_a_slice_of_an_image_shares_its_bytes() -> None:
    image, _ = minutes_image({("A.US", number) for number in range(100)})
    narrow = image.columns(["close", "ts"]).slice(10, 5)
    assert narrow.column_names == ["close", "ts"]
    assert narrow.column("close").chunk(0).buffers()[1].address == image.table.column("close").chunk(0).buffers()[1].address
    assert image.columns(["close", "ts"]) is image.columns(("close", "ts"))


def test_where_no_column_says_the_session_it_is_the_day_in_utc() -> None:
    rows = [
        {"symbol": "a", "ts": moment} for moment in (datetime(1969, 12, 31, 23, tzinfo=UTC), datetime(1970, 1, 1, 1, tzinfo=UTC))
    ]
    schema = pa.schema([pa.field("symbol", pa.string_view()), pa.field("ts", pa.timestamp("us", tz="UTC"))])
    dataset = type(DAILY)("t", schema, ("symbol", "ts"), "ts")
    assert build_image(dataset, pa.Table.from_pylist(rows, schema=schema)).sessions.tolist() == [-1, 0]

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_server.fingerprint import fingerprint

TEXT = st.lists(st.none() | st.text(max_size=20), max_size=12)
NUMBERS = st.lists(st.none() | st.integers(-5, 5), max_size=12)
TYPES = [pa.string(), pa.large_string(), pa.string_view()]


@given(values=TEXT, kind=st.sampled_from(TYPES), cut=st.integers(0, 12), skip=st.integers(0, 3))
def test_chunks_and_slices_make_no_difference(values: list[Any], kind: pa.DataType, cut: int, skip: int) -> None:
    whole = pa.table({"x": pa.array(values, kind), "y": pa.array(range(len(values)), pa.int32())})
    parts = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    before = pa.table(
        {"x": pa.array([*["junk"] * skip, *values], kind), "y": pa.array([*[9] * skip, *range(len(values))], pa.int32())}
    )
    assert fingerprint(whole) == fingerprint(parts) == fingerprint(before.slice(skip))


@given(one=TEXT, other=TEXT)
def test_text_that_differs_has_another_fingerprint(one: list[Any], other: list[Any]) -> None:
    tables = [pa.table({"x": pa.array(values, pa.string())}) for values in (one, other)]
    assert (fingerprint(tables[0]) == fingerprint(tables[1])) == (one == other)


@given(one=NUMBERS, other=NUMBERS)
def test_numbers_that_differ_have_another_fingerprint(one: list[Any], other: list[Any]) -> None:
    tables = [pa.table({"x": pa.array(values, pa.int64())}) for values in (one, other)]
    assert (fingerprint(tables[0]) == fingerprint(tables[1])) == (one == other)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, None, False]),
        pa.array([date(2026, 1, 1), None, date(2026, 1, 2)]),
        pa.array(["a", "b", "c"]).dictionary_encode(),
        pa.array([[1], None, [2, 3]]),
        pa.array([{"a": 1}, None, {"a": 2}]),
        pa.array([b"x", None, b"y"]),
        pa.array([1, None, 2], pa.decimal128(10, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_that_is_kept_has_one(column: pa.Array) -> None:
    table, turned = pa.table({"x": column}), pa.table({"x": column.take([2, 1, 0])})
    assert fingerprint(table) == fingerprint(pa.table({"x": column}))
    assert fingerprint(table) != fingerprint(turned)


def test_names_and_what_is_told_count() -> None:
    table = pa.table({"x": [1]})
    assert (
        len(
            {
                fingerprint(table),
                fingerprint(table.rename_columns(["y"])),
                fingerprint(table, "mine"),
                fingerprint(table, "a", "b"),
            }
        )
        == 4
    )

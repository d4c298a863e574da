"""Sorted runs and their index against a plain sort."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from fletching_schemas import Dataset
from fletching_server.importing.runs import encoded, ordering, slice_of, sorted_run

START = datetime(2026, 3, 1, 22, tzinfo=UTC)
ROW = st.tuples(st.sampled_from("CABD"), st.integers(0, 30), st.sampled_from(["x", "y"]), st.integers(0, 3))
SCHEMA = pl.Schema([("name", pl.String()), ("ts", pl.Datetime("us", "UTC")), ("venue", pl.String()), ("value", pl.Int64())])


def table(*more: str, period: str = "day") -> Dataset:
    fields = [("name", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("venue", pa.string()), ("value", pa.int64())]
    return Dataset("t", pa.schema(fields), ("name", "ts", *more), "ts", None, period)  # type: ignore[arg-type]


def rows(given_rows: list[tuple[str, int, str, int]]) -> pl.DataFrame:
    made = [(name, START + timedelta(hours=hour), venue, value) for name, hour, venue, value in given_rows]
    return pl.DataFrame(made, schema=SCHEMA, orient="row")


@pytest.mark.parametrize("dataset", [table(), table("venue"), table("venue", "value"), table(period="year")], ids=str)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=40))
def test_a_run_is_a_stable_sort_and_its_index_says_whose_rows_are_whose(
    dataset: Dataset, given_rows: list[tuple[str, int, str, int]]
) -> None:
    frame = rows(given_rows).with_row_index("#place")
    run = sorted_run(dataset, frame)
    period = frame["ts"].dt.date().map_elements(dataset.period_of, return_dtype=pl.String).alias("period")
    wanted = frame.with_columns(period).sort("period", *dataset.sort_keys, maintain_order=True)
    found = [
        run.rows[start : start + count].with_columns(pl.lit(of).alias("period"), pl.lit(symbol).alias("name"))
        for of, symbol, start, count in run.index.iter_rows()
    ]
    assert_frame_equal(pl.concat(found).select(wanted.columns) if found else wanted.clear(), wanted)
    assert run.index.select("period", "symbol").is_unique().all()


def test_rows_in_order_are_left_alone() -> None:
    assert ordering(np.array([0, 0, 1], np.uint16), pl.DataFrame({"ts": [1, 2, 1]})) is None


def test_a_slice_of_a_file_is_a_copy_with_all_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "text": ["short", "a text that does not fit into a view", None, "end"],
            "flag": [True, None, False, True],
            "day": pl.Series([1, 2, None, 4]).cast(pl.Date),
            "ts": pl.Series([1, 2, 3, None]).cast(pl.Datetime("us", "UTC")),
        }
    )
    path = tmp_path / "rows.arrow"
    path.write_bytes(encoded(frame))
    found = slice_of(path, 1, 2)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_frame_equal(found, frame[1:3])

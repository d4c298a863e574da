"""A trace is checked when it is read: what is wrong with it is said, and in which row."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.replaying.conftest import SESSIONS, frame_of, made, row

from fletching_schemas.errors import InvalidRequest
from fletching_server.replaying import read_trace, trace_of
from fletching_server.replaying.trace import COLUMNS, NO_SESSION

DAY = SESSIONS[5]
GOOD = frame_of([row(DAY, 9, SESSIONS[4]), row(DAY, 10, None)])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_is_missing_is_named(column: str) -> None:
    with pytest.raises(InvalidRequest, match=f"it lacks {column}"):
        trace_of(GOOD.drop(column), "log")


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("ts", None),
        ("bytes", None),
        ("bytes", -1),
        ("bytes", 2**50 + 1),
        ("ts", datetime(1600, 1, 1)),  # noqa: DTZ001  # a trace's instants are UTC
        ("ts", datetime(9999, 12, 31)),  # noqa: DTZ001
        ("session", date(9999, 12, 31)),
        ("session", date(1, 1, 1)),
    ],
)
def test_a_row_that_cannot_be_is_named(column: str, wrong: object) -> None:
    bad = GOOD.with_columns(ts=pl.col("ts").dt.replace_time_zone(None))
    bad = pl.concat([bad, bad.head(1).with_columns(pl.lit(wrong).cast(bad.schema[column]).alias(column))])
    with pytest.raises(InvalidRequest, match="row 2"):
        trace_of(bad, "log")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("ts", ["yesterday", "today"], "row 0 has ts='yesterday'"),
        ("bytes", ["7", "few"], "row 1 has bytes='few'"),
        ("bytes", [7.0, float("nan")], "row 1 has bytes=nan"),
        ("session", ["Monday", "-"], "row 0 has session='Monday'"),
        ("bytes", [2**63, 2**64 - 1], "row 0 has bytes=9223372036854775808"),
        ("dataset", [b"AAPL", b"\xff"], "row 1 has dataset=b'\\xff'"),
    ],
)
def test_a_column_of_another_type_is_refused_in_a_line_that_names_the_row(column: str, values: list[object], said: str) -> None:
    with pytest.raises(InvalidRequest, match="log is no trace") as refused:
        trace_of(GOOD.with_columns(pl.Series(column, values)), "log")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_first_of_many_rows_that_cannot_be_is_found() -> None:
    frame = pl.concat([GOOD] * 500).with_columns(bytes=pl.Series(["1"] * 777 + ["x"] + ["1"] * 220 + ["y"] * 2))
    with pytest.raises(InvalidRequest, match="row 777 has bytes='x'"):
        trace_of(frame, "log")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all" * 99, b"PAR1" + bytes(100) + b"PAR1"])
def test_garbage_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"trace\.parquet cannot be read as Parquet"):
        read_trace(path)


def test_what_is_not_there_and_what_is_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read as Parquet"):
            read_trace(path)


def test_a_file_with_more_columns_in_another_order_is_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    GOOD.with_columns(more=pl.lit(1)).select(reversed([*COLUMNS, "more"])).write_parquet(path)
    assert read_trace(path) == trace_of(GOOD, "trace.parquet")


def test_rows_are_sorted_by_time_and_stay_in_order_within_an_instant() -> None:
    buckets = made([row(DAY, 11, DAY, "c"), row(DAY, 9, DAY, "a"), row(DAY, 11, DAY, "d"), row(DAY, 10, DAY, "b")]).buckets
    assert buckets == ["a", "b", "c", "d"]


def test_instants_are_those_of_utc_whatever_the_file_s_zone() -> None:
    plain = trace_of(GOOD, "log").ts
    for other in (
        pl.col("ts").dt.convert_time_zone("Asia/Shanghai"),
        pl.col("ts").dt.replace_time_zone(None),
        pl.col("ts").cast(pl.Datetime("ns", "UTC")),
    ):
        assert trace_of(GOOD.with_columns(other), "log").ts == plain


def test_what_is_not_said_has_its_default() -> None:
    trace = made([row(DAY, 9, None, None, principal=None, profile="somebody else's", request_id=None, dataset=None)])  # type: ignore[arg-type]
    assert (trace.principals, trace.profiles, trace.requests, trace.buckets) == ([""], ["research"], [""], [""])
    assert trace.sessions == [NO_SESSION]
    assert trace.days.tolist() == []


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([None, *SESSIONS[:3]])), max_size=20))
def test_a_partition_has_one_name_and_no_other_has_it(parts: list[tuple[str, str, date | None]]) -> None:
    trace = made(row(DAY, 9, session, bucket, dataset=dataset) for dataset, bucket, session in parts)
    assert len(trace) == len(parts)
    assert len(set(zip(trace.keys, parts, strict=True))) == len(set(trace.keys)) == len(set(parts))


def test_a_request_of_several_rows_is_a_plan() -> None:
    trace = made(row(DAY, 9, DAY, request_id=request) for request in ("a", "b", "a", "", "", "a"))
    assert trace.plans == {"a": [0, 2, 5]}

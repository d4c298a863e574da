"""What a library returns is what the client gets: columns, dtypes, index, and the type of every object."""

from __future__ import annotations

import math
import subprocess
import sys
import zoneinfo
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fletching._akshare_frames import decode
from fletching_schemas.errors import Error
from fletching_schemas.tagged import from_tagged, to_tagged
from fletching_server.sources.akshare_frames import encode


def travelled(value: Any) -> Any:
    """Return *value* as it arrives: through the bytes of an Arrow stream."""
    table = encode(value)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return decode(pa.ipc.open_stream(sink.getvalue()).read_all())


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types all the way down; nan equals nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, pd.DataFrame | pd.Series | pd.Index):
        assert_same_pandas(one, other)
        return True
    if isinstance(one, np.ndarray):
        shape = (one.dtype, one.shape) == (other.dtype, other.shape)
        return shape and same(one.ravel().tolist(), other.ravel().tolist())
    if isinstance(one, Mapping):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return same_scalar(one, other)


def same_scalar(one: Any, other: Any) -> bool:
    if one is pd.NaT or one is pd.NA:
        return one is other
    if isinstance(one, pd.Timestamp | pd.Timedelta):
        return bool(one == other and one.unit == other.unit)
    if isinstance(one, datetime | time):
        return (one, one.fold, one.tzinfo) == (other, other.fold, other.tzinfo)
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    if isinstance(one, complex):
        return same([one.real, one.imag], [other.real, other.imag])
    if one != one:  # noqa: PLR0124  # any kind of nan
        return bool(other != other)  # noqa: PLR0124
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def assert_same_pandas(one: Any, other: Any) -> None:
    if isinstance(one, pd.Index):
        pd.testing.assert_index_equal(one, other, exact=True)
        assert getattr(one, "freq", None) == getattr(other, "freq", None)
        assert same(list(one), list(other))
        return
    if isinstance(one, pd.Series):
        pd.testing.assert_series_equal(one, other, check_index_type=True, check_freq=True)
        assert same(one.name, other.name)
        assert same(list(one), list(other)) or one.dtype != object
    else:
        pd.testing.assert_frame_equal(one, other, check_dtype=True, check_index_type=True, check_column_type=True)
        assert_same_pandas(one.columns, other.columns)
        for place in range(one.shape[1]):
            assert_same_pandas(one.iloc[:, place].reset_index(drop=True), other.iloc[:, place].reset_index(drop=True))
    assert_same_pandas(one.index, other.index)
    assert same(one.attrs, other.attrs)


SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
DAY = date(2024, 3, 20)


def objects(*items: Any) -> pd.Series:
    column = np.empty(len(items), dtype=object)
    for place, item in enumerate(items):
        column[place] = item
    return pd.Series(column, dtype=object)


COLUMNS: dict[str, Any] = {
    "int64": pd.Series([1, -(2**63), 2**63 - 1]),
    "uint64": pd.Series([0, 2**64 - 1], dtype="uint64"),
    "int8": pd.Series([-128, 127], dtype="int8"),
    "float64": pd.Series([0.1, -0.0, np.nan, np.inf, -np.inf, 5e-324]),
    "float32": pd.Series([0.1, np.nan], dtype="float32"),
    "float16": pd.Series([0.5, np.nan], dtype="float16"),
    "bool": pd.Series([True, False]),
    "str": pd.Series(["平安银行", "", None, "a\x00b", "\N{PILE OF POO}"]),
    "str all missing": pd.Series([None, None], dtype="str"),
    "str of python": pd.Series(["x", None], dtype=pd.StringDtype("python", na_value=np.nan)),
    "string": pd.Series(["x", None], dtype="string"),
    "Int64": pd.Series([1, None], dtype="Int64"),
    "boolean": pd.Series([True, None], dtype="boolean"),
    "Float64": pd.Series([1.5, None], dtype="Float64"),
    "datetime64[ns]": pd.Series(pd.to_datetime(["2024-03-20 09:30:00.123456789", None]).as_unit("ns")),
    "datetime64[us]": pd.Series(pd.to_datetime(["2024-03-20", None]).as_unit("us")),
    "datetime64[s]": pd.Series(np.array(["1600-01-01", "9999-12-31", "NaT"], dtype="M8[s]")),
    "datetime64[ms]": pd.Series(np.array(["2024-01-01"], dtype="M8[ms]")),
    "Shanghai": pd.Series(pd.to_datetime(["2024-03-20 09:30", None])).dt.tz_localize("Asia/Shanghai"),
    "UTC": pd.Series(pd.to_datetime(["2024-03-20 09:30"], utc=True)),
    "offset": pd.Series(pd.to_datetime(["2024-03-20 09:30"])).dt.tz_localize(timezone(timedelta(hours=8))),
    "timedelta": pd.Series(pd.to_timedelta(["1 days", None])),
    "timedelta64[s]": pd.Series(np.array([1, 2], dtype="m8[s]")),
    "category": pd.Series(["b", "a", None, "b"], dtype=pd.CategoricalDtype(["b", "a", "never"], ordered=True)),
    "category of ints": pd.Series([3, 1], dtype="category"),
    "category of dates": pd.Series(pd.Categorical(objects(DAY, DAY))),
    "category, empty": pd.Series([], dtype=pd.CategoricalDtype(["a", "b"])),
    "period": pd.Series(pd.PeriodIndex(["2024-01", None], freq="M")),
    "arrow decimal": pd.Series([Decimal("1.10"), None], dtype=pd.ArrowDtype(pa.decimal128(5, 2))),
    "arrow string": pd.Series(["x", None], dtype=pd.ArrowDtype(pa.string())),
    "object str": objects("a", "b"),
    "object str, None": objects("a", None),
    "object str, nan": objects("a", np.nan),
    "object str, NaT": objects("a", pd.NaT),
    "object str, NA": objects("a", pd.NA),
    "object str, None and nan": objects("a", None, np.nan),
    "object date": objects(DAY, date(1, 1, 1), date(9999, 12, 31)),
    "object date, None": objects(DAY, None),
    "object date, NaT": objects(DAY, pd.NaT),
    "object time": objects(time(9, 30), time(15, 0, 0, 1), None),
    "object datetime": objects(datetime.fromisoformat("2024-03-20 09:30"), datetime(2024, 3, 20, tzinfo=SHANGHAI)),
    "object datetime, fold": objects(datetime(2024, 11, 3, 1, 30, tzinfo=zoneinfo.ZoneInfo("America/New_York"), fold=1)),
    "object Decimal": objects(Decimal("1.10"), Decimal("1.1"), Decimal("NaN"), None),
    "object int": objects(1, 2, None),
    "object int, nan": objects(1, np.nan),
    "object int, huge": objects(2**70, -1),
    "object float": objects(1.0, np.nan, None),
    "object bool": objects(True, None),
    "object bool and int": objects(True, 1, 1.0, "1"),
    "object mixed": objects("-", 1.5, 2, None, np.nan, DAY),
    "object None": objects(None, None),
    "object nan": objects(np.nan, np.nan),
    "object NaT": objects(pd.NaT),
    "object inf": objects(np.inf, "x", -np.inf),
    "object lists": objects([1, 2], [], [[1.0, None], {"a": (1, "x")}]),
    "object lists of equal length": objects([1, 2], [3, 4]),
    "object dicts": objects({"a": 1}, {1: "int key"}, {"$date": "not a date"}, {}),
    "object tuples": objects((1, "a"), ()),
    "object sets": objects({1, 2}, frozenset({"x"})),
    "object bytes": objects(b"\x00\xff", b""),
    "object numpy scalars": objects(np.float64(1.5), np.int64(3), np.bool_(True), np.str_("x"), np.float32("nan")),
    "object numpy instants": objects(np.datetime64("2024-03-20", "D"), np.timedelta64(5, "s"), np.datetime64("NaT", "ns")),
    "object numpy arrays": objects(np.array([[1.0, 2.0]]), np.array(["a"], dtype=object), np.array([], dtype="int8")),
    "object Timestamps": objects(pd.Timestamp("2024-03-20", tz=SHANGHAI), pd.Timestamp(5, unit="s"), pd.Timestamp(7)),
    "object Timedelta": objects(pd.Timedelta("1 days 00:00:01"), pd.Timedelta(np.timedelta64(3, "s"))),
    "object Period": objects(pd.Period("2024Q1"), pd.Period("2024-03-20", freq="D")),
    "object frames": objects(pd.DataFrame({"x": [1]}), pd.Series(["a"], name="n")),
    "object surrogate": objects("\ud800", "a"),
    "object complex": objects(1 + 2j, complex("nan")),
    "object, empty": pd.Series([], dtype=object),
    "float64, empty": pd.Series([], dtype="float64"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_arrives_as_it_left(name: str) -> None:
    column = COLUMNS[name]
    assert_same_pandas(column, travelled(column))
    frame = column.to_frame(name)
    assert_same_pandas(frame, travelled(frame))


FRAMES: dict[str, Any] = {
    "no columns, no rows": pd.DataFrame(),
    "no columns, rows": pd.DataFrame(index=range(3)),
    "columns, no rows": pd.DataFrame({"日期": pd.Series([], dtype=object), "开盘": pd.Series([], dtype="float64")}),
    "columns of nothing": pd.DataFrame(columns=["a", "b"]),
    "Chinese": pd.DataFrame({"日期": [DAY], "收盘": [10.45], "成交量": [812345]}),
    "int labels": pd.DataFrame([[1, 2.5], [3, 4.5]]),
    "mixed labels": pd.DataFrame([[1, 2, 3, 4]], columns=objects("a", 1, None, DAY)),
    "duplicate labels": pd.DataFrame([[1, "x", 2.5]], columns=["a", "a", "a"]),
    "tuple labels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["l", None])),
    "date labels": pd.DataFrame([[1, 2]], columns=pd.to_datetime(["2024-01-01", "2024-02-01"])),
    "object labels": pd.DataFrame([[1, 2]], columns=pd.Index(["a", "b"], dtype=object)),
    "surrogate label": pd.DataFrame([[1]], columns=pd.Index(["\ud800"], dtype=object)),
    "named labels": pd.DataFrame([[1, 2]], columns=pd.Index(["a", "b"], name="指标")),
    "categorical labels": pd.DataFrame([[1, 2]], columns=pd.CategoricalIndex(["a", "b"], name="c")),
    "datetime index": pd.DataFrame({"x": [1, 2]}, index=pd.DatetimeIndex(["2024-01-01", "2024-01-03"], name="date")),
    "regular index": pd.DataFrame({"x": range(5)}, index=pd.date_range("2024-01-01", periods=5, freq="B", tz="Asia/Shanghai")),
    "one regular day": pd.DataFrame({"x": [1]}, index=pd.date_range("2024-01-01", periods=1, freq="D")),
    "timedelta index": pd.DataFrame({"x": range(3)}, index=pd.timedelta_range("1D", periods=3, freq="h")),
    "period index": pd.DataFrame({"x": range(3)}, index=pd.period_range("2024-01", periods=3, freq="M", name="p")),
    "filtered": pd.DataFrame({"x": range(5)})[lambda frame: frame["x"] % 2 == 1],
    "stepped range": pd.DataFrame({"x": range(3)}, index=pd.RangeIndex(10, 4, -2, name="r")),
    "text index": pd.DataFrame({"x": [1, 2]}, index=["a", None]),
    "object index of text": pd.DataFrame({"x": [1]}, index=pd.Index(["a"], dtype=object)),
    "date index": pd.DataFrame({"x": [1]}, index=pd.Index([DAY], dtype=object, name="日期")),
    "tuple index": pd.DataFrame({"x": [1]}, index=pd.Index([("a", 1)], tupleize_cols=False)),
    "multi index": pd.DataFrame(
        {"x": [1, 2, 3]},
        index=pd.MultiIndex.from_arrays([["a", "a", None], pd.to_datetime(["2024-01-01"] * 3)], names=["s", 5]),
    ),
    "multi index, unused levels": pd.DataFrame(
        {"x": [1, 2]}, index=pd.MultiIndex.from_product([["a", "b"], [1]])
    ).iloc[:1],
    "multi index, no rows": pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)])).iloc[:0],
    "duplicate index": pd.DataFrame({"x": [1, 2]}, index=[7, 7]),
    "two thousand columns": pd.DataFrame(np.arange(4000).reshape(2, 2000)),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_arrives_as_it_left(name: str) -> None:
    frame = FRAMES[name]
    assert_same_pandas(frame, travelled(frame))


def test_attributes_of_a_frame_travel() -> None:
    frame = pd.DataFrame({"x": [1]})
    frame.attrs = {"单位": "手", "fetched": DAY, "nested": {"of": (1, 2)}}
    assert travelled(frame).attrs == frame.attrs
    column = pd.Series([1], name=("a", DAY))
    column.attrs = {"n": np.int64(1)}
    assert_same_pandas(column, travelled(column))


VALUES: list[Any] = [
    None,
    True,
    7,
    7.0,
    float("nan"),
    "text",
    "",
    DAY,
    datetime(2024, 3, 20, tzinfo=UTC),
    Decimal("1.0"),
    [1, "a", None],
    {"name": "平安", "rows": [1.5, DAY], 3: "three"},
    (1, (2, 3)),
    {"$frame": 1},
    pd.NaT,
    pd.Timestamp("2024-03-20"),
    np.float64(2.5),
    np.array([1, 2]),
    pd.DatetimeIndex(["2024-03-20"]),
    {"a": pd.DataFrame({"x": [1, 2]}), "b": pd.DataFrame()},
    [pd.DataFrame({"x": ["a"]}), pd.Series([1.5], name="s")],
    (pd.DataFrame({"x": [DAY]}), "and text"),
]


@pytest.mark.parametrize("value", VALUES, ids=[repr(value)[:30].replace("\n", " ") for value in VALUES])
def test_any_other_value_arrives_as_it_left(value: Any) -> None:
    assert same(value, travelled(value))


def test_frames_may_be_written_to() -> None:
    frame = travelled(pd.DataFrame({"a": [1, 2], "b": [1.5, 2.5], "c": [True, False], "d": pd.to_datetime(["2024-01-01"] * 2)}))
    frame.loc[0, "a"] = 5
    frame["b"] *= 2
    frame["c"].array[0] = False
    frame.iloc[1, 3] = pd.NaT
    assert frame["a"].tolist() == [5, 2]


def test_subclasses_of_text_and_numbers_travel_as_what_they_are_subclasses_of() -> None:
    class Tag(str):  # as HTML parsers return
        __slots__ = ()

    assert same(travelled([Tag("x"), {Tag("k"): 1}]), ["x", {"k": 1}])


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(TypeError, match=r"column 'x' of type interval.* cannot travel"):
        encode(pd.DataFrame({"x": pd.interval_range(0, 2)}))
    with pytest.raises(TypeError, match=r"column 'x' of type object cannot travel: a .*Event cannot travel"):
        encode(pd.DataFrame({"x": objects(__import__("threading").Event())}))
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(TypeError, match="nested hundreds of levels deep"):
        encode(nested)


def test_the_table_can_be_read_without_pandas() -> None:
    frame = pd.DataFrame({"日期": [DAY, DAY], "收盘": [10.45, 10.5], "代码": ["000001", "000002"]})
    shown = pl.DataFrame(pl.from_arrow(encode(frame)))
    assert shown.columns == ["日期", "收盘", "代码"]
    assert shown["日期"].to_list() == [DAY, DAY]


def test_another_format_is_refused() -> None:
    with pytest.raises(Error, match="form None, this client reads form 1"):
        decode(pa.table({"x": [1]}))


def test_plain_values_need_no_pandas() -> None:
    code = (
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'pandas':\n"
        "            raise ModuleNotFoundError('No module named pandas', name='pandas')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fletching_server.sources.akshare_frames import encode\n"
        "from fletching._akshare_frames import decode\n"
        "assert decode(encode({'a': [1, 2.5, None]})) == {'a': [1, 2.5, None]}\n"
        "import json, pyarrow as pa\n"
        "about = json.dumps({'form': 'frame', 'format': 1})\n"
        "try:\n"
        "    decode(pa.table({'x': [1]}).replace_schema_metadata({'fletching.frame': about}))\n"
        "except ImportError as error:\n"
        "    assert 'pip install pandas' in str(error)\n"
        "else:\n"
        "    raise SystemExit('a frame without pandas')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Properties

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.timedeltas(),
    st.decimals(allow_nan=False) | st.just(Decimal("NaN")),  # pandas itself cannot compare a signalling NaN
    st.binary(),
    st.sampled_from([pd.NaT, pd.NA, np.float64("nan"), np.int32(4)]),
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner),
    max_leaves=6,
)
LABELS = st.one_of(st.text(max_size=4), st.integers(-5, 5), st.dates(), st.tuples(st.text(max_size=2), st.integers(0, 3)))


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(0, 4))

    def listed(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
        return st.lists(items, min_size=rows, max_size=rows)

    column = st.one_of(
        listed(NESTED).map(lambda items: objects(*items)),
        listed(st.text(max_size=3) | st.none()).map(lambda items: objects(*items)),
        listed(st.dates() | st.none()).map(lambda items: objects(*items)),
        listed(st.floats()).map(lambda items: pd.Series(items, dtype="float64")),
        listed(st.integers(-(2**63), 2**63 - 1)).map(lambda items: pd.Series(items, dtype="int64")),
        listed(st.booleans()).map(lambda items: pd.Series(items, dtype="bool")),
        listed(st.text(st.characters(codec="utf-8"), max_size=3) | st.none()).map(lambda items: pd.Series(items, dtype="str")),
        listed(st.integers(-(2**40), 2**40)).map(lambda items: pd.Series(np.array(items, dtype="M8[us]"))),
        listed(st.sampled_from("abc")).map(lambda items: pd.Series(items, dtype="category")),
    )
    columns = draw(st.lists(column, max_size=4))
    frame = pd.DataFrame(dict(enumerate(columns)), index=range(rows))
    frame.columns = pd.Index(objects(*draw(st.lists(LABELS, min_size=len(columns), max_size=len(columns)))), tupleize_cols=False)
    if draw(st.booleans()):
        frame.index = pd.Index(objects(*draw(listed(LABELS))), tupleize_cols=False, name=draw(st.none() | LABELS))
    return frame


@given(frames())
@settings(max_examples=150, deadline=None)
def test_any_frame_arrives_as_it_left(frame: pd.DataFrame) -> None:
    assert_same_pandas(frame, travelled(frame))


@given(NESTED)
@settings(max_examples=200, deadline=None)
def test_any_nested_value_arrives_as_it_left(value: Any) -> None:
    assert same(value, travelled(value))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@settings(max_examples=100, deadline=None)
def test_reading_a_tagged_value_fails_only_as_a_value_error(document: Any) -> None:
    try:
        value = from_tagged(document)
    except ValueError:
        return
    assert same(from_tagged(to_tagged(value)), value)

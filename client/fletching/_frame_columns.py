"""Arrow as pandas, column by column, exactly as it was at the server. Imported only where a frame has arrived.

The kinds of columns are told in the server's module of the same name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from fletching._akshare_frames import decode
from fletching_schemas.tagged import from_tagged, zone_from_text

_NOTHING: Final[dict[str | None, Any]] = {None: None, "none": None, "nan": float("nan"), "nat": pd.NaT, "na": pd.NA}


def rebuilt(table: pa.Table, about: dict[str, Any]) -> Any:
    """Return the frame, series or index in *table*, as *about* tells to put it together."""
    kinds = about["columns"]
    index = _index(about["index"], table.columns[len(kinds) :])
    if about["form"] == "index":
        return index
    # Series of a stated dtype: pandas would take an array of objects that are all text for its own text.
    series = [
        pd.Series(values, index=index, dtype=values.dtype, copy=False)
        for values in map(_values, kinds, table.columns[: len(kinds)])
    ]
    attrs = from_tagged(about["attrs"], untag)
    if about["form"] == "series":
        whole: pd.Series | pd.DataFrame = series[0].rename(from_tagged(about["name"], untag))
    else:
        whole = pd.DataFrame(dict(enumerate(series)), index=index)
        whole.columns = _unpacked(about["labels"])
    whole.attrs = attrs
    return whole


def untag(tag: str, held: Any) -> Any:
    """Return the value of pandas or numpy that the tag stands for: the hook of ``from_tagged``."""
    if (read := _READERS.get(tag)) is None:
        raise ValueError(f"this client does not know the tag {tag!r:.40}: use a client of the server's release")
    return read(held)


def _unpacked(text: str) -> Any:
    return decode(pa.ipc.open_stream(pa.py_buffer(base64.b64decode(text))).read_all())


def _array(dtype: str, shape: list[int], items: list[Any]) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "O":
        return _of_objects(items).reshape(shape)
    plain = np.array(items, dtype="i8" if kind.kind in "Mm" else kind)
    return (plain.view(kind) if kind.kind in "Mm" else plain).reshape(shape)


def _timestamp(value: int, unit: Any, zone: str | None) -> pd.Timestamp:
    instant = pd.Timestamp(np.datetime64(value, unit))
    return instant if zone is None else instant.tz_localize("UTC").tz_convert(zone_from_text(zone))


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$frame": _unpacked,
    "$nothing": lambda held: _NOTHING[held],
    "$timestamp": lambda held: _timestamp(*held),
    "$duration": lambda held: pd.Timedelta(np.timedelta64(*held)),
    "$period": lambda held: pd.Period(ordinal=held[0], freq=held[1]),
    "$numpy": lambda held: _array(held[0], [1], [from_tagged(item, untag) for item in held[1]])[0],
    "$array": lambda held: _array(held[0], held[1], [from_tagged(item, untag) for item in held[2]]),
}


def _index(about: dict[str, Any], columns: list[pa.ChunkedArray]) -> pd.Index:
    names = [from_tagged(name, untag) for name in about["names"]]
    if about["kind"] == "range":
        return pd.RangeIndex(*about["range"], name=names[0])
    if about["kind"] == "multi":
        codes = [column.to_numpy() for column in columns]
        levels = [_unpacked(level) for level in about["levels"]]
        return pd.MultiIndex(levels, codes, names=names, verify_integrity=False)
    values = _values(about["column"], columns[0])
    index = pd.Index(values, dtype=values.dtype, name=names[0], tupleize_cols=False)
    if about["freq"] is not None:
        index.freq = about["freq"]
    return index


def _values(kind: dict[str, Any], column: pa.ChunkedArray) -> Any:
    return _KINDS[kind["kind"]](kind, column)


def _numpy(kind: dict[str, Any], column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_numpy(), dtype=kind["dtype"])  # a copy: frames are for writing, Arrow's buffers are not


def _instants(kind: dict[str, Any], column: pa.ChunkedArray) -> Any:
    whole = column.cast(pa.int64()).fill_null(np.iinfo("i8").min)  # what NaT is to numpy
    values = np.array(whole.to_numpy()).view(f"{'m' if kind['kind'] == 'duration' else 'M'}8[{column.type.unit}]")
    if kind.get("zone") is None:
        return values
    return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone_from_text(kind["zone"])).array


def _text(kind: dict[str, Any], column: pa.ChunkedArray) -> Any:
    dtype = pd.StringDtype(kind["storage"], na_value=_NOTHING[kind["na"]])
    return dtype.__from_arrow__(column)


def _category(kind: dict[str, Any], column: pa.ChunkedArray) -> pd.Categorical:
    return pd.Categorical.from_codes(column.to_numpy(), categories=_unpacked(kind["categories"]), ordered=kind["ordered"])


def _period(kind: dict[str, Any], column: pa.ChunkedArray) -> Any:
    ordinals = column.fill_null(np.iinfo("i8").min).to_numpy()
    return pd.PeriodIndex.from_ordinals(ordinals, freq=kind["freq"]).array


def _objects(kind: dict[str, Any], column: pa.ChunkedArray) -> np.ndarray:
    items = column.to_pylist()
    if kind["of"] == "json":
        return _of_objects(from_tagged(json.loads(item), untag) for item in items)
    if (nothing := _NOTHING[kind["missing"]]) is not None:
        items = [nothing if item is None else item for item in items]
    return _of_objects(items)


def _of_objects(items: Iterable[Any]) -> np.ndarray:
    listed = list(items)
    values = np.empty(len(listed), dtype=object)
    for place, item in enumerate(listed):  # one by one: a list in a cell is a value, not a row
        values[place] = item
    return values


_KINDS: Final[dict[str, Callable[[dict[str, Any], pa.ChunkedArray], Any]]] = {
    "numpy": _numpy,
    "datetime": _instants,
    "duration": _instants,
    "str": _text,
    "masked": lambda kind, column: pd.api.types.pandas_dtype(kind["dtype"]).__from_arrow__(column),
    "arrow": lambda _, column: pd.arrays.ArrowExtensionArray(column),
    "period": _period,
    "category": _category,
    "object": _objects,
}

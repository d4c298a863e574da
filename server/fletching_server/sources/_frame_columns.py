"""pandas as Arrow, column by column, with what it takes to get exactly the same pandas back. Imported only where pandas is.

A column's kind says how its values lie in the table:

    numpy      dtype         numbers and booleans as they are, NaN included
    datetime   zone          instants, as UTC where there is a zone; null is NaT
    duration                 the same for timedelta64
    str        storage, na   pandas' own text
    masked     dtype         Int64, boolean and their like
    arrow                    pandas' ArrowDtype
    period     freq          ordinals
    category   categories, ordered   codes
    object     of, missing   Python objects of one type, null standing for one kind of nothing; or ``of: json``, tagged
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from fletching_schemas.tagged import to_tagged, zone_to_text
from fletching_server.sources.akshare_frames import FRAME_FORMAT, FRAME_KEY

Kind = dict[str, Any]

# Objects of exactly one of these types lie as Arrow values, in place of JSON.
_UNIFORM: Final[dict[type, tuple[str, pa.DataType]]] = {
    str: ("str", pa.large_string()),
    bool: ("bool", pa.bool_()),
    int: ("int", pa.int64()),
    float: ("float", pa.float64()),
    date: ("date", pa.date32()),
}
_NOTHING: Final = {type(None): "none", type(pd.NaT): "nat", type(pd.NA): "na"}
_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="zstd")


def table_of(value: Any) -> pa.Table | None:
    """Return a frame, series or index as a table, and None for anything else."""
    if isinstance(value, pd.DataFrame):
        return _frame_table(value, {"form": "frame", "labels": _packed(_index_table(value.columns))})
    if isinstance(value, pd.Series):
        return _frame_table(value.to_frame("value"), {"form": "series", "name": to_tagged(value.name, tag)}, value.attrs)
    return _index_table(value) if isinstance(value, pd.Index) else None


def tag(value: Any) -> dict[str, Any] | None:
    """Return the tagged form of pandas' and numpy's own values, None for others: the hook of ``to_tagged``."""
    if (table := table_of(value)) is not None:
        return {"$frame": _packed(table)}
    if value is pd.NaT or value is pd.NA:
        return {"$nothing": _NOTHING[type(value)]}
    if isinstance(value, pd.Timestamp):
        return {"$timestamp": [int(value.asm8.view("i8")), value.unit, zone_to_text(value.tzinfo)]}
    if isinstance(value, pd.Timedelta):
        return {"$duration": [int(value.asm8.view("i8")), value.unit]}
    if isinstance(value, pd.Period):
        return {"$period": [value.ordinal, value.freqstr]}
    if isinstance(value, np.generic):
        return {"$numpy": [value.dtype.str, _plain_items(np.array([value]))]}
    if isinstance(value, np.ndarray):
        return {"$array": [value.dtype.str, list(value.shape), _plain_items(value.ravel())]}
    return None


def _plain_items(values: np.ndarray) -> list[Any]:
    if values.dtype.kind not in "biufUSMmO" or values.dtype.itemsize > 8 and values.dtype.kind == "f":  # noqa: RUF021
        raise TypeError(f"numpy values of type {values.dtype} cannot travel")
    plain = values.view("i8") if values.dtype.kind in "Mm" else values
    return list(to_tagged(plain.tolist(), tag))


def _packed(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_COMPRESSED) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _frame_table(frame: pd.DataFrame, about: dict[str, Any], attrs: dict[Any, Any] | None = None) -> pa.Table:
    found = [_column(frame.iloc[:, place].array, str(label)) for place, label in enumerate(frame.columns)]
    index, aligned = _index(frame.index)
    return _table(
        [*(array for array, _ in found), *aligned],
        [*map(str, frame.columns), *(f"index_{level}" for level in range(len(aligned)))],
        about
        | {
            "columns": [kind for _, kind in found],
            "index": index,
            "attrs": to_tagged(dict(frame.attrs if attrs is None else attrs), tag),
        },
    )


def _index_table(index: pd.Index) -> pa.Table:
    about, aligned = _index(index)
    names = [f"index_{level}" for level in range(len(aligned))]
    return _table(aligned, names, {"form": "index", "columns": [], "index": about})


def _table(arrays: Sequence[pa.Array], names: Sequence[str], about: dict[str, Any]) -> pa.Table:
    told = json.dumps(about | {"format": FRAME_FORMAT}, allow_nan=False)
    # A field's name is there to be read: it is UTF-8 whatever the label was, which the metadata holds exactly.
    shown = [name.encode(errors="replace").decode() for name in names]
    schema = pa.schema([(name, array.type) for name, array in zip(shown, arrays, strict=True)], {FRAME_KEY: told})
    return pa.Table.from_arrays(list(arrays), schema=schema)


def _index(index: pd.Index) -> tuple[dict[str, Any], list[pa.Array]]:
    """Return how to make *index*, and the columns of the table that this takes."""
    names = [to_tagged(name, tag) for name in index.names]
    if isinstance(index, pd.MultiIndex):
        levels = [_packed(_index_table(level.rename(None))) for level in index.levels]
        return {"kind": "multi", "levels": levels, "names": names}, [pa.array(np.asarray(codes)) for codes in index.codes]
    if type(index) is pd.RangeIndex:
        return {"kind": "range", "range": [index.start, index.stop, index.step], "names": names}, []
    array, kind = _column(index.array, "the index")
    regular = isinstance(index, (pd.DatetimeIndex, pd.TimedeltaIndex))
    return {"kind": "flat", "column": kind, "freq": index.freqstr if regular else None, "names": names}, [array]


def _column(values: Any, label: str) -> tuple[pa.Array, Kind]:
    """Return a column's values as Arrow, and its kind; errors name the column."""
    if isinstance(values, pd.arrays.NumpyExtensionArray) and not isinstance(values.dtype, pd.StringDtype):
        values = values.to_numpy()
    try:
        array, kind = _arrow(values)
    except (TypeError, pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise TypeError(f"column {label!r:.60} of type {values.dtype} cannot travel: {str(error)[:200]}") from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array, kind


def _arrow(values: Any) -> tuple[pa.Array, Kind]:
    dtype = values.dtype
    for kind, convert in _EXTENSIONS.items():
        if isinstance(dtype, kind):
            return convert(values)
    if not isinstance(dtype, np.dtype):
        raise TypeError("there is no exact form for this type")
    if dtype.kind == "O":
        return _objects(np.asarray(values, dtype=object))
    if dtype.kind in "Mm":
        return pa.array(np.asarray(values)), {"kind": "datetime", "zone": None} if dtype.kind == "M" else {"kind": "duration"}
    if dtype.kind not in "biuf" or not dtype.isnative:
        raise TypeError("there is no exact form for these numbers")
    return pa.array(np.asarray(values), from_pandas=False), {"kind": "numpy", "dtype": dtype.str}


def _zoned(values: Any) -> tuple[pa.Array, Kind]:
    instants = pa.array(values.asi8, mask=np.asarray(values.isna()))
    return instants.cast(pa.timestamp(values.unit, "UTC")), {"kind": "datetime", "zone": zone_to_text(values.tz)}


def _category(values: pd.Categorical) -> tuple[pa.Array, Kind]:
    categories = _packed(_index_table(values.categories))
    return pa.array(values.codes), {"kind": "category", "categories": categories, "ordered": bool(values.ordered)}


def _text(values: Any) -> tuple[pa.Array, Kind]:
    kind = {"kind": "str", "storage": values.dtype.storage, "na": "na" if values.dtype.na_value is pd.NA else "nan"}
    return pa.array(values, pa.large_string()), kind


_MASKED: Final = tuple(
    type(pd.api.types.pandas_dtype(name))
    for name in ("boolean", *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)), "Float32", "Float64")
)
_EXTENSIONS: Final[dict[Any, Callable[[Any], tuple[pa.Array, Kind]]]] = {
    pd.StringDtype: _text,
    pd.DatetimeTZDtype: _zoned,
    pd.CategoricalDtype: _category,
    pd.PeriodDtype: lambda values: (
        pa.array(values.asi8, mask=np.asarray(values.isna())),
        {"kind": "period", "freq": values.freqstr},
    ),
    pd.ArrowDtype: lambda values: (pa.chunked_array(values.__arrow_array__()), {"kind": "arrow"}),
    _MASKED: lambda values: (pa.array(values), {"kind": "masked", "dtype": str(values.dtype)}),
}


def _objects(values: np.ndarray) -> tuple[pa.Array, Kind]:
    """Return Python objects as Arrow values where they are of one type, else as tagged JSON."""
    items = list(values)
    kinds = set(map(type, items))
    main = kinds & _UNIFORM.keys()
    nothing = {_NOTHING.get(kind, "") for kind in kinds - main}
    if len(main) == 2 and float in main and all(item != item for item in items if type(item) is float):  # noqa: PLR0124
        main, nothing = main - {float}, nothing | {"nan"}
    if len(main) > 1 or len(nothing) > 1 or "" in nothing:
        return _json(items)
    name, arrow = _UNIFORM[next(iter(main), str)]
    wanted = next(iter(main), str)
    try:
        array = pa.array([item if type(item) is wanted else None for item in items], arrow, from_pandas=False)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # an int of 100 bits, a lone surrogate
        return _json(items)
    return array, {"kind": "object", "of": name, "missing": next(iter(nothing), None)}


def _json(items: list[Any]) -> tuple[pa.Array, Kind]:
    texts = [json.dumps(to_tagged(item, tag), allow_nan=False) for item in items]
    return pa.array(texts, pa.large_string()), {"kind": "object", "of": "json"}

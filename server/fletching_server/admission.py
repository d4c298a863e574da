"""What rows must be before they are stored: the dataset's columns and types, unique keys, in order, in range. Pure.

A value that does not fit is an error that names column, row and value; nothing is cast with loss and nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import BadSourceData, Error
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.image import Image, build_image, session_days

_BAR: Final = ("open", "high", "low", "close")


def conform(table: pa.Table, schema: pa.Schema, fault: type[Error], what: str, *, parse: bool = True) -> pa.Table:
    """Return *table* with exactly the columns and types of *schema*; raise *fault* naming column, row and value.

    Nullable columns that are absent become null. Strings may come in any Arrow form, instants must have a time zone. With
    *parse* numbers and dates may come as text.
    """
    if unknown := [name for name in table.column_names if name not in schema.names]:
        raise fault(f"{what}: unexpected column {', '.join(unknown)}; the columns are {', '.join(schema.names)}")
    return pa.Table.from_arrays([_column(table, item, fault, what, parse) for item in schema], schema=schema)


def _column(table: pa.Table, item: pa.Field, fault: type[Error], what: str, parse: bool) -> pa.ChunkedArray:
    if item.name not in table.column_names:
        if not item.nullable:
            raise fault(f"{what}: column {item.name} is missing; it may not be null")
        return pa.chunked_array([pa.nulls(len(table), item.type)])
    column = table.column(item.name)
    if pa.types.is_timestamp(item.type) and item.type.tz and pa.types.is_timestamp(column.type) and not column.type.tz:
        raise fault(f"{what}: {item.name} has no time zone; attach one before returning it (stored instants are UTC)")
    try:
        if not parse and _is_text(column.type) and not _is_text(item.type) and len(column):
            raise pa.ArrowInvalid(f"text where a {item.type} belongs")
        cast = _cast(column, item.type)
    except pa.ArrowException as error:
        row = _first_failing(column, item.type)
        raise fault(f"{what}: {item.name}[{row}] = {column[row]} is not {item.type}: {str(error).splitlines()[0]}") from error
    if cast.null_count and not item.nullable:
        raise fault(f"{what}: {item.name}[{_first_true(cast.is_null())}] is null; it may not be")
    if pa.types.is_floating(item.type) and pc.any(pc.is_nan(cast)).as_py():
        raise fault(f"{what}: {item.name}[{_first_true(pc.is_nan(cast))}] is NaN; write null where there is no value")
    return cast


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if not len(column):  # an empty frame of pandas has columns of any type
        return pa.chunked_array([], kind)
    if pa.types.is_dictionary(column.type):  # a dictionary casts to a view only by way of its plain type
        column = column.cast(column.type.value_type)
    if not _may_become(column.type, kind):
        raise pa.ArrowInvalid(f"a {column.type} where a {kind} belongs")
    cast = column.cast(kind)
    if pa.types.is_floating(kind) and pa.types.is_floating(column.type) and not _same_numbers(column, cast):
        raise pa.ArrowInvalid(f"a {column.type} of more digits than a {kind} has")
    if pa.types.is_timestamp(column.type) and pa.types.is_date(kind) and cast.cast(column.type) != column:
        raise pa.ArrowInvalid("a time of day where a date belongs")
    return cast


def _same_numbers(column: pa.ChunkedArray, cast: pa.ChunkedArray) -> bool:
    """Return whether all values came through: Arrow narrows numbers with fractions in silence."""
    if cast.type.bit_width >= column.type.bit_width:
        return True
    same = pc.fill_null(pc.equal(cast.cast(column.type), column), fill_value=True)
    nothing = pc.fill_null(pc.is_nan(column), fill_value=True)  # which is told by itself
    return bool(pc.all(pc.or_(same, nothing), min_count=0).as_py())


def _may_become(given: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether values keep their meaning: Arrow casts any number to an instant, and any but 0 to true."""
    if _is_text(given) or pa.types.is_null(given):
        return True
    families = (_is_text, pa.types.is_temporal, pa.types.is_boolean)
    return all(family(given) == family(kind) for family in families)


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _first_failing(column: pa.ChunkedArray, kind: pa.DataType) -> int:
    """Return the first row whose value cannot be cast, by halving."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _cast(column.slice(low, middle - low), kind)
            low = middle
        except pa.ArrowException:
            high = middle
    return low


def _first_true(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, pa.scalar(value=True)).as_py())


def key_frame(table: pa.Table, columns: Sequence[str]) -> pl.DataFrame:
    """Return *columns* of *table* as Polars sees them, without copying."""
    return pl.DataFrame(pl.from_arrow(table.select(list(columns))))


def check_unique(dataset: Dataset, table: pa.Table, fault: type[Error], what: str) -> None:
    """Raise *fault* with the first repeated key; *table* is sorted by its keys, so repetitions are neighbours."""
    keys = key_frame(table, dataset.sort_keys)
    same = [now == before for now, before in map(_neighbours, keys)]
    repeated = reduce(and_, same).arg_true() + 1
    if len(repeated):
        key = ", ".join(f"{name}={value}" for name, value in keys.row(repeated[0], named=True).items())
        raise fault(f"{what}: {len(repeated)} duplicate keys, the first at row {repeated[0]}: {key}; keys are {dataset.keys}")


def admit_fetched(dataset: Dataset, table: Any, request: FetchRequest, source: str, calendar: Calendar | None = None) -> Image:
    """Return a source's answer as an image ready to be stored, or raise ``BadSourceData`` saying what is wrong with it.

    With a *calendar*, rows of days on which the exchange was closed are refused.
    """
    what = f"source {source} answered {request}"
    if not isinstance(table, pa.Table):
        raise BadSourceData(f"{what} with a {type(table).__name__}; return a pyarrow.Table")
    try:
        table.validate(full=True)  # whoever reads buffers that do not hold what they claim may crash
    except pa.ArrowException as error:
        raise BadSourceData(f"{what} with a table that is not valid Arrow data: {str(error).splitlines()[0]}") from error
    rows = conform(table, dataset.schema, BadSourceData, what)
    _check_sorted(dataset, rows, what)
    check_unique(dataset, rows, BadSourceData, what)
    image = build_image(dataset, rows)
    _check_asked(dataset, image, request, what)
    if calendar is not None and dataset.calendar is not None:
        _check_sessions(dataset, image, calendar, what)
    _check_bars(rows, what)
    return image


def _neighbours(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return *column* from its second row on, and up to its last but one: at a call per fill, expressions cost more."""
    return column.slice(1), column.slice(0, max(len(column) - 1, 0))


def _ascends(keys: pl.DataFrame) -> bool:
    """Return whether every row is surely not before the one above it; comparing neighbours is far cheaper than sorting."""
    (now, before), *earlier = map(_neighbours, reversed(keys.get_columns()))
    ordered = now >= before
    for now, before in earlier:
        ordered = (now > before) | ((now == before) & ordered)
    return ordered.null_count() == 0 and ordered.all()


def strictly_ascends(keys: pl.DataFrame) -> bool:
    """Return whether every row comes surely after the one above it, so that the rows are in order and no key is there twice."""
    *earlier, last = map(_neighbours, keys.get_columns())
    (now, before) = last
    ordered = now > before
    for now, before in reversed(earlier):
        ordered = (now > before) | ((now == before) & ordered)
    return ordered.null_count() == 0 and bool(ordered.all())


def _check_sorted(dataset: Dataset, table: pa.Table, what: str) -> None:
    keys = key_frame(table, dataset.sort_keys)
    if not _ascends(keys):
        _tell_unsorted(dataset, keys.with_row_index("row of the answer"), what)
    (symbol, above), (session, last) = map(_neighbours, key_frame(table, [dataset.symbol, dataset.session]))
    wrong = ((session < last) & (symbol == above)).arg_true() + 1
    if len(wrong):
        raise BadSourceData(f"{what}: {dataset.session} goes back at row {wrong[0]} while {dataset.time} goes on")


def _tell_unsorted(dataset: Dataset, keys: pl.DataFrame, what: str) -> None:
    ordered = keys.sort(dataset.sort_keys, maintain_order=True)["row of the answer"]
    moved = (ordered != keys["row of the answer"]).arg_true()
    if len(moved):
        raise BadSourceData(
            f"{what}: rows are not sorted by {', '.join(dataset.sort_keys)}, row {moved[0]} is out of order; "
            "sort the table by these columns before returning it"
        )


def _check_asked(dataset: Dataset, image: Image, request: FetchRequest, what: str) -> None:
    if strangers := sorted(set(image.symbols) - set(request.symbols)):
        raise BadSourceData(f"{what} with rows of {', '.join(strangers[:5])}, which was not asked; return only what is asked")
    if not dataset.range_pushdown:
        return
    outside = (image.sessions < day_number(request.start)) | (image.sessions > day_number(request.end))
    if outside.any():
        row = int(np.argmax(outside))
        day = from_day_number(int(session_days(image.table, dataset.session)[row]))
        raise BadSourceData(
            f"{what}: row {row} is of session {day}, outside the range; return only what is asked, "
            "or offer the dataset with range_pushdown=False"
        )


def _check_sessions(dataset: Dataset, image: Image, calendar: Calendar, what: str) -> None:
    closed = calendar.closed(image.sessions)
    if not closed.any():
        return
    row = int(np.argmax(closed))
    day = from_day_number(int(image.sessions[row]))
    symbol = image.table[dataset.symbol][row]
    raise BadSourceData(
        f"{what}: row {row} ({symbol}) is of {day}, when {calendar.mic} was closed by its calendar, and {int(closed.sum())} rows "
        f"are of such days. If the exchange was open, say so in the settings: [calendar.{calendar.mic}] add = [{day}]"
    )


def _check_bars(table: pa.Table, what: str) -> None:
    if not set(_BAR) <= set(table.column_names):
        return
    bars = key_frame(table, _BAR)
    opened, high, low, close = bars
    broken = (low > opened) | (low > close) | (high < opened) | (high < close)
    if len(rows := broken.arg_true()):
        values = ", ".join(f"{name}={value}" for name, value in bars.row(rows[0], named=True).items())
        raise BadSourceData(f"{what}: {len(rows)} bars break low <= open, close <= high; row {rows[0]}: {values}")

"""Rows that a filter wants, batch by batch. Pure: pyarrow has no kernels for views of text, so Polars compares.

A filter only compares a column with values of its own kind: what would first have to be converted is refused here, and left to
the client that asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import reduce
from operator import and_, eq, ge, gt, le, lt, ne, or_
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.filters import AllOf, AnyOf, Compare, Condition, Filter, IsNull, OneOf, Value, conditions

_OPERATORS: Final = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


def filter_columns(where: Filter | None) -> tuple[str, ...]:
    """Return the columns that *where* looks at, each once."""
    return tuple(dict.fromkeys(leaf.column for leaf in conditions(where))) if where else ()


def check_filter(where: Filter, dataset: Dataset) -> None:
    """Raise ``UnknownColumn`` or ``InvalidRequest`` where *where* cannot be asked of the rows of *dataset*."""
    dataset.project(filter_columns(where))
    for leaf in conditions(where):
        _check_condition(leaf, dataset)


def _check_condition(leaf: Condition, dataset: Dataset) -> None:
    if isinstance(leaf, IsNull):
        return
    kind = dataset.schema.field(leaf.column).type
    wrong = [value for value in _values(leaf) if not _comparable(value, kind)]
    if wrong:
        raise InvalidRequest(
            f"{dataset.name}.{leaf.column} is {kind} and cannot be compared with {wrong[0]!r:.60}; "
            "give a value of its kind, or filter the answer"
        )
    if isinstance(leaf, Compare) and pa.types.is_boolean(kind) and leaf.op not in {"==", "!="}:
        raise InvalidRequest(f"{dataset.name}.{leaf.column} is true or false: compare it by == or !=, not by {leaf.op}")


def _values(leaf: Compare | OneOf) -> tuple[Value, ...]:
    return (leaf.value,) if isinstance(leaf, Compare) else leaf.values


def _comparable(value: Value, kind: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, int):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if isinstance(value, float):
        return bool(pa.types.is_floating(kind))
    if isinstance(value, str):
        return bool(kind == pa.string_view())
    return bool(kind == TIMESTAMP) if isinstance(value, datetime) else bool(pa.types.is_date32(kind))


def expression(where: Filter, schema: pa.Schema) -> pl.Expr:
    """Return *where* as Polars writes it; *schema* has its columns."""
    match where:
        case AllOf(parts):
            return reduce(and_, [expression(part, schema) for part in parts])
        case AnyOf(parts):
            return reduce(or_, [expression(part, schema) for part in parts])
        case IsNull(column, negated):
            return pl.col(column).is_not_null() if negated else pl.col(column).is_null()
        case OneOf(column, values):
            return pl.col(column).is_in(_listed(values, schema.field(column).type))
        case Compare(column, op, value):
            compared: pl.Expr = _OPERATORS[op](pl.col(column), pl.lit(value))
            return compared


def _listed(values: Sequence[Value], kind: pa.DataType) -> pl.Series:
    """Return *values* as one list of the column's type; whole numbers that do not fit into it are none of its values."""
    fitting = [value for value in values if not pa.types.is_integer(kind) or _fits(value, kind)]
    if pa.types.is_floating(kind):
        fitting = [float(value) for value in fitting if not isinstance(value, (str, date))]
    return pl.Series(values=pl.from_arrow(pa.array(fitting, kind))).implode()


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.scalar(value, kind)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def filtered(
    batches: Iterable[pa.RecordBatch], where: Filter | None, limit: int | None, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield what *where* wants of *batches*, with the columns of *schema*, and no more than *limit* rows.

    Every batch that has such rows is passed on at once: whoever wants the first few should not wait for the others.
    """
    left = limit
    if left == 0:
        return
    wanted: pl.Expr | None = None
    for batch in batches:
        if where is not None and wanted is None:
            wanted = expression(where, batch.schema)
        kept = _kept(batch, wanted, schema).slice(0, left)
        if kept.num_rows:
            yield from kept.to_batches()
        if left is not None and (left := left - kept.num_rows) == 0:
            return


def _kept(batch: pa.RecordBatch, wanted: pl.Expr | None, schema: pa.Schema) -> pa.Table:
    rows = pa.Table.from_batches([batch])
    if wanted is None:
        return rows.select(schema.names)
    frame = pl.DataFrame(pl.from_arrow(rows, rechunk=False)).filter(wanted).select(schema.names)
    return frame.to_arrow(compat_level=pl.CompatLevel.newest()).cast(schema)

"""The columns of user tables: what a first write defines, and how later ones may change it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from fletching_schemas import Dataset, Period, WriteRequest, storage_schema
from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import InvalidRequest

# Which types hold every value of a type, so that older rows keep their meaning; a double holds integers up to 32 bits.
_WIDER: Final = {
    "int8": ("int16", "int32", "int64", "float", "double"),
    "int16": ("int32", "int64", "float", "double"),
    "int32": ("int64", "double"),
    "uint8": ("uint16", "uint32", "uint64", "int16", "int32", "int64", "float", "double"),
    "uint16": ("uint32", "uint64", "int32", "int64", "float", "double"),
    "uint32": ("uint64", "int64", "double"),
    "float": ("double",),
}


def new_dataset(request: WriteRequest, schema: pa.Schema) -> Dataset:
    """Return the table that a first write defines; ``InvalidRequest`` tells what it must name."""
    names = ", ".join(schema.names)
    if not request.keys:
        raise InvalidRequest(
            f"{request.table} is a new table: name its keys, the symbol's column first, then the time; columns are {names}"
        )
    absent = [name for name in (*request.keys, *([request.time] if request.time else [])) if name not in schema.names]
    if absent:
        raise InvalidRequest(f"{request.table}: there is no column {', '.join(absent)}; columns are {names}")
    time = request.time or _time_among(request.keys, schema)
    keys = request.keys if time in request.keys else (*request.keys, time)
    fields = [item.with_nullable(item.name not in keys) for item in storage_schema(schema)]
    fields = [item.with_type(TIMESTAMP) if item.type == pa.timestamp("us") else item for item in fields]
    period: Period = request.partition or "year"  # type: ignore[assignment]  # checked by the request
    return Dataset(request.table, pa.schema(fields), keys, time, None, period)


def _time_among(keys: Sequence[str], schema: pa.Schema) -> str:
    temporal = [
        name for name in keys if pa.types.is_date(schema.field(name).type) or pa.types.is_timestamp(schema.field(name).type)
    ]
    if len(temporal) != 1:
        raise InvalidRequest(
            f"name the time column: time=...; among the keys {list(keys)} {temporal or 'none'} hold dates or instants"
        )
    return temporal[0]


def matching(request: WriteRequest, dataset: Dataset, schema: pa.Schema) -> Dataset:
    """Return the table as it is after a write of rows with *schema*: as it was, unless the request lets it evolve.

    A new column may be null, and is in older rows; a type gives way to a wider one that holds all its values. Raises
    ``InvalidRequest`` naming column and types for what the table is not.
    """
    if request.keys is not None and request.keys != dataset.keys:
        raise InvalidRequest(
            f"{dataset.name} has keys {list(dataset.keys)}, this write names {list(request.keys)}; leave keys out"
        )
    if request.time is not None and request.time != dataset.time:
        raise InvalidRequest(f"{dataset.name} has time {dataset.time!r}, this write names {request.time!r}; leave time out")
    if request.partition is not None and request.partition != dataset.period:
        raise InvalidRequest(f"{dataset.name} is partitioned by {dataset.period}; leave partition out")
    stored = storage_schema(schema)
    added = [_nullable(item) for item in stored if item.name not in dataset.schema.names]
    wider = {item.name: item.type for item in stored if _widens(dataset, item)}
    if not added and not wider:
        return dataset
    if not request.evolve:
        if added:
            told = ", ".join(f"{item.name} ({item.type})" for item in added)
            raise InvalidRequest(
                f"{dataset.name} has no column {told}; it has {', '.join(dataset.schema.names)}. "
                "To add it, null in older rows, write with evolve=True"
            )
        return dataset  # values that fit are taken as they are, others are told one by one
    kept = [item.with_type(wider.get(item.name, item.type)) for item in dataset.schema]
    return replace(dataset, schema=pa.schema([*kept, *added], metadata=dataset.schema.metadata))


def _nullable(item: pa.Field) -> pa.Field:
    kind = TIMESTAMP if item.type == pa.timestamp("us") else item.type
    return item.with_nullable(True).with_type(kind)


def _widens(dataset: Dataset, item: pa.Field) -> bool:
    """Return whether *item* is a column of *dataset* with a type that holds all values of the present one, and more."""
    if item.name not in dataset.schema.names:
        return False
    present = dataset.schema.field(item.name).type
    return str(item.type) in _WIDER.get(str(present), ())

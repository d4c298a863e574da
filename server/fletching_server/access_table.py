"""Access events as Arrow: the columns of ``system.access_log``, and the way there and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, Final

import pyarrow as pa

from fletching_server.access import AccessEvent, Touched

_TOUCHED: Final = pa.struct(
    [
        ("period", pa.string()),
        ("bucket", pa.int32()),
        ("bytes", pa.int64()),
        ("tier", pa.string()),
        ("warmed", pa.bool_()),
    ]
)
EVENTS: Final = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("principal", pa.string(), nullable=False),
        pa.field("profile", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("symbols", pa.list_(pa.string()), nullable=False),
        ("first", pa.date32()),
        ("last", pa.date32()),
        pa.field("open_end", pa.bool_(), nullable=False),
        pa.field("columns", pa.list_(pa.string()), nullable=False),
        pa.field("touched", pa.list_(_TOUCHED), nullable=False),
        pa.field("upstream_calls", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("milliseconds", pa.float64(), nullable=False),
        pa.field("repeats", pa.int64(), nullable=False),
    ]
)
GROUPS: Final = pa.schema(
    [pa.field("group", pa.string(), nullable=False), pa.field("symbols", pa.list_(pa.string()), nullable=False)]
)
_MOST_WHOLE: Final = 2**31 - 1


def to_table(events: Sequence[AccessEvent]) -> pa.Table:
    """Return a row per event."""
    columns: dict[str, Any] = {name: [getattr(event, name) for event in events] for name in EVENTS.names}
    columns["at"] = [microseconds(event.at) for event in events]
    columns["upstream_calls"] = [min(event.upstream_calls, _MOST_WHOLE) for event in events]
    arrays = [
        _touched(columns[item.name])
        if item.name == "touched"
        else pa.array(columns[item.name], _plain(item.type)).cast(item.type)
        for item in EVENTS
    ]
    return pa.Table.from_arrays(arrays, schema=EVENTS)


def microseconds(at: float) -> int:
    """Return the instant *at*, in seconds since 1970, as it is stored."""
    return round(at * 1e6)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type in which Python holds values of *kind*: instants and days are numbers here."""
    return {"timestamp[us, tz=UTC]": pa.int64(), "date32[day]": pa.int32()}.get(str(kind), kind)


def _touched(lists: Sequence[Sequence[Touched]]) -> pa.Array:
    """Return the partitions of each event, made column by column: that is far faster than one by one."""
    offsets = [0, *accumulate(map(len, lists))]
    columns = list(zip(*chain.from_iterable(lists), strict=True)) or [()] * len(_TOUCHED)
    arrays = [pa.array(values, item.type) for values, item in zip(columns, _TOUCHED, strict=True)]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(arrays, fields=list(_TOUCHED)))


def to_events(rows: pa.RecordBatch) -> Iterator[AccessEvent]:
    """Yield the event of each row, as it was before ``to_table``."""
    columns = {item.name: _listed(rows.column(item.name), item) for item in EVENTS if item.name != "touched"}
    columns["at"] = [at / 1e6 for at in columns["at"]]
    columns["touched"] = _touched_lists(rows.column("touched"))
    for values in zip(*(columns[name] for name in EVENTS.names), strict=True):
        yield AccessEvent(*values)


def _listed(column: pa.Array, item: pa.Field) -> list[Any]:
    values: list[Any] = column.cast(_plain(item.type)).to_pylist()
    return [tuple(names) for names in values] if pa.types.is_list(item.type) else values


def _touched_lists(column: pa.Array) -> list[tuple[Touched, ...]]:
    found = list(map(Touched, *(field.to_pylist() for field in column.flatten().flatten())))
    ends = list(accumulate(column.value_lengths().to_pylist(), initial=0))
    return [tuple(found[start:end]) for start, end in pairwise(ends)]

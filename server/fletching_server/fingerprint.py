"""What makes rows the same rows: a checksum of their values, however they are divided into chunks. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


def fingerprint(rows: pa.Table, *told: object) -> str:
    """Return the 128-bit xxh3 checksum of the names, types and values of *rows*, and of what else is *told*."""
    found = xxhash.xxh3_128(repr((told, rows.schema.names, list(map(str, rows.schema.types)))).encode())
    for column in rows.combine_chunks().columns:
        for chunk in column.chunks:
            for part in _parts(chunk):
                found.update(part)
    return str(found.hexdigest())


def _parts(column: pa.Array) -> Iterator[Any]:
    """Yield the bytes that say what *column* holds: which values there are, their lengths where these differ, and themselves."""
    if column.null_count:
        yield _bytes(column.is_valid().cast(pa.uint8()))
    if pa.types.is_boolean(column.type):
        yield _bytes(column.cast(pa.uint8()))
    elif pa.types.is_primitive(column.type):
        yield _bytes(column)
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield _bytes(pc.binary_length(column))
        yield _text(column)
    elif pa.types.is_string_view(column.type):
        yield from _parts(column.cast(pa.large_string()))
    else:
        yield pl.Series(column).hash(seed=0).to_numpy()


def _bytes(column: pa.Array) -> memoryview:
    width = column.type.bit_width // 8
    return memoryview(column.buffers()[1])[column.offset * width : (column.offset + len(column)) * width]


def _text(column: pa.Array) -> memoryview:
    """Return the text of all values, one after the other."""
    _, offsets, text = column.buffers()
    if text is None or not len(column):
        return memoryview(b"")
    whole = memoryview(offsets).cast("B")
    ends = whole.cast("i") if pa.types.is_string(column.type) else whole.cast("q")
    return memoryview(text)[ends[column.offset] : ends[column.offset + len(column)]]

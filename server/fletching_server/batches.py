"""From slices to record batches: long runs leave as they lie, many short ones are gathered into batches of 1-2 MB.

gRPC moves batches of this size fastest; smaller ones pay per message, larger ones lose cache and pipelining. The size also
decides where the bytes arrive. A message is one block of memory in the client; before the body stand the header (a multiple
of 8 bytes, 128 to 16,383 of them), two varints and two tags: together a multiple of 8 for bodies below 2 MiB, one byte more
above. So batches below 2 MiB arrive aligned, whoever reads them, and Polars need not copy them: docs/decisions/batch-size.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa

TARGET_BYTES: Final = 1_040_000  # gathered batches have up to twice that; just below 1 MiB the client's memory is reused best
ALIGNMENT: Final = 8  # bytes; all types but decimals need no more, and inside a body buffers start at multiples of 8 anyway
_MOST_ROWS: Final = 131_072  # narrow tables: Polars and DuckDB work on pieces of about this size anyway
_VIEW: Final = pa.string_view()


def row_bytes(schema: pa.Schema) -> float:
    """Return what a row of *schema* takes by the types alone; text counts as its 16-byte view."""
    return sum(_width(item.type) for item in schema) or 1.0


def _width(kind: pa.DataType) -> float:
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # a type of variable width
        return 16.0


def rows_per_batch(table_bytes: int, rows: int, share: float = 1.0) -> int:
    """Return how many rows make a batch of the target size, where *rows* take *table_bytes*, *share* of it in the answer."""
    if not rows or not table_bytes:
        return _MOST_ROWS
    return max(1, min(_MOST_ROWS, int(TARGET_BYTES * rows / (table_bytes * share))))


def aligned_note(note: bytes) -> bytes:
    """Return a JSON *note*, padded so that the batch it rides on arrives where it would without: it precedes the body.

    It travels as a tag, its length as a varint, and itself.
    """
    padded = note
    while (1 + _varint_bytes(len(padded)) + len(padded)) % ALIGNMENT:
        padded += b" "
    return padded


def _varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def tight(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return *batch* with no more text than its own rows hold; the other columns are not copied.

    Arrow's writer sends every text buffer that a column of views refers to, whole: a slice of ten rows would travel with
    the text of the partition. Text of up to 12 bytes lies in the views, so most columns have no such buffer.
    """
    if not has_text(batch):
        return batch
    columns = [column.cast(pa.large_string()).cast(_VIEW) if _refers(column) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def has_text(rows: pa.Table | pa.RecordBatch) -> bool:
    """Return whether a column of *rows* refers to text that may lie outside of them."""
    places = [place for place, kind in enumerate(rows.schema.types) if kind == _VIEW]
    columns = [rows.column(place) for place in places]
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    return any(_refers(chunk) for chunk in chunks)


def _refers(column: pa.Array) -> bool:
    return column.type == _VIEW and len(column.buffers()) > 2  # after validity and views comes the text


def cut(slices: Iterable[pa.Table], size: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of *slices*, in order, in batches of about *size* rows; runs of at least that are not copied."""
    short: list[pa.Table] = []
    waiting = 0
    for piece in slices:
        if piece.num_rows >= size:
            yield from _gathered(short)
            short, waiting = [], 0
            yield from piece.to_batches(max_chunksize=size)
            continue
        short.append(piece)
        waiting += piece.num_rows
        if waiting >= size:
            yield from _gathered(short)
            short, waiting = [], 0
    yield from _gathered(short)


def _gathered(tables: list[pa.Table]) -> Iterator[pa.RecordBatch]:
    if not tables:
        return
    together = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
    yield from together.to_batches()

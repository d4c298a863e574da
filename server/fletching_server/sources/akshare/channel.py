"""Frames between parent and child: eight bytes of length, then an Arrow IPC stream. A note travels in its metadata."""

from __future__ import annotations

import json
import struct
from typing import IO, Any, Final, cast

import pyarrow as pa

MAX_FRAME_BYTES: Final = 256 * 1024 * 1024  # a whole market's spot table takes 2 MB, 35 years of one symbol 1 MB
LENGTH: Final = struct.Struct(">Q")
_NOTE: Final = b"fletching.note"


def noted(note: dict[str, Any]) -> pa.Table:
    """Return a frame that carries nothing but *note*."""
    return pa.table({}).replace_schema_metadata({_NOTE: json.dumps(note)})


def note_of(frame: pa.Table) -> dict[str, Any] | None:
    """Return the note in *frame*, or None where it is an answer."""
    raw = (frame.schema.metadata or {}).get(_NOTE)
    return None if raw is None else cast("dict[str, Any]", json.loads(raw))


def send(out: IO[bytes], table: pa.Table) -> None:
    """Write *table* as one frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    out.write(LENGTH.pack(body.size))
    out.write(body)
    out.flush()


def decoded(body: bytes | bytearray) -> pa.Table:
    """Return the table of one frame's body; ``pa.ArrowException`` where it is none."""
    table = pa.ipc.open_stream(pa.py_buffer(body)).read_all()
    table.validate(full=True)
    return table

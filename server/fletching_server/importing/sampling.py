"""A look at inputs before anything is decided: their first rows, the types these seem to have, and how many there may be."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.conversion import convert
from fletching_server.importing.csv_parsing import CsvLayout, parse_block
from fletching_server.importing.inference import Sample
from fletching_server.importing.inputs import Input
from fletching_server.importing.mapping import ImportMapping
from fletching_server.importing.plan import ImportPlan, check_names
from fletching_server.importing.raw import Raw
from fletching_server.importing.readers import Position, chunks
from fletching_server.importing.text import BOM, blocks, opened_text

_SAMPLE_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 64 << 10
_SAMPLE_ROWS: Final = 20_000
_UNPACKED: Final = 4  # how many times larger text is than packed text, roughly


def sampled(source: Input, mapping: ImportMapping | None) -> Sample:
    """Return the first rows of *source* in the types that they seem to have; *mapping* says how text is laid out, if known."""
    if source.format != "csv":
        return Sample(_first(source).frame.head(_SAMPLE_ROWS))
    block = _head(source)
    delimiter = mapping.delimiter if mapping else _sniffed(block)
    listed = list(mapping.columns) if mapping and isinstance(mapping.columns, tuple) else None
    reading = pa_csv.ReadOptions(
        column_names=listed,
        skip_rows=int(bool(listed and mapping and mapping.has_header)),
        encoding=mapping.encoding if mapping else "utf8",
        block_size=2 * _SAMPLE_BYTES,
    )
    try:
        table = pa_csv.read_csv(pa.py_buffer(block), reading, _parsing(delimiter, block), _converting(mapping))
    except (pa.ArrowInvalid, UnicodeError, LookupError) as error:
        raise InvalidRequest(f"cannot read {source.origin}: {str(error).splitlines()[0]}") from error
    table = table.rename_columns([name.strip() for name in table.column_names])
    check_names(source, table.column_names)
    return Sample(Raw.of_table(table).frame, delimiter, is_text=True)


def _parsing(delimiter: str, block: bytes) -> pa_csv.ParseOptions:
    return pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in block, invalid_row_handler=lambda _row: "skip")


def _converting(mapping: ImportMapping | None) -> pa_csv.ConvertOptions:
    nulls = ["", *(mapping.nulls if mapping else ())]
    truth = {"true_values": ["true", "True"], "false_values": ["false", "False"]}
    return pa_csv.ConvertOptions(null_values=nulls, strings_can_be_null=True, **truth)


def _head(source: Input) -> bytes:
    with opened_text(source) as stream:
        return next(blocks(stream, _SAMPLE_BYTES), b"").removeprefix(BOM)


def _first(source: Input) -> Raw:
    found = next(iter(chunks(source, CsvLayout(()), _SAMPLE_BYTES, Position())), None)
    return found.parse() if found else Raw(pl.DataFrame(), 0)


def _sniffed(block: bytes) -> str:
    """Return the delimiter of the first line: of the usual ones that which it has most of."""
    line = block.partition(b"\n")[0]
    return max(",;\t|", key=lambda mark: line.count(mark.encode()))


def first_rows(plan: ImportPlan, source: Input) -> pl.DataFrame:
    """Return the first rows of *source* as they will be imported."""
    if source.format != "csv":
        raw = _first(source)
    else:
        layout = plan.layout(source)
        raw = parse_block(_head(source), layout, layout.header_lines, source.origin)
    return convert(raw, source, plan.found(source), plan.mapping, plan.dataset).frame


def last_rows(plan: ImportPlan, source: Input) -> pl.DataFrame:
    """Return the last rows of *source*, or its first ones where the end cannot be read by itself."""
    if source.format != "csv" or source.compression is not None or source.bytes <= 2 * _SAMPLE_BYTES:
        return first_rows(plan, source)
    with opened_text(source) as stream:
        stream.seek(source.bytes - _TAIL_BYTES)
        block = stream.read(_TAIL_BYTES).partition(b"\n")[2]
    raw = parse_block(block, plan.layout(source), 0, source.origin)
    return convert(raw, source, plan.found(source), plan.mapping, plan.dataset).frame


def row_bytes(source: Input, sample: Sample) -> float:
    """Return how many bytes of *source* a sampled row takes."""
    size = len(_head(source)) if source.format == "csv" else sample.frame.estimated_size()
    return max(size / max(sample.frame.height, 1), 1.0)


def estimated_rows(source: Input, width: float) -> int:
    """Return how many rows *source* has: as it tells itself, or by *width*, the bytes of a row."""
    if source.format == "parquet":
        with suppress(OSError, pa.ArrowException):
            return int(pq.read_metadata(source.path).num_rows)
    return round(source.bytes * (1 if source.compression is None else _UNPACKED) / width)

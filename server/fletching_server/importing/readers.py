"""Inputs as chunks: pieces of bounded size that any thread can parse, and that are the same whenever a file is read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.csv_parsing import CsvLayout, parse_block
from fletching_server.importing.inputs import Input, opened_database
from fletching_server.importing.raw import Raw
from fletching_server.importing.text import blocks, opened_text

_SQL_VALUE_BYTES: Final = 100  # what a value takes as a Python object, with its place in a list
_DAMAGES: Final = (OSError, pa.ArrowException, sqlite3.Error)


@dataclass(frozen=True)
class Chunk:
    """A piece of an input: its number, where the next one begins, its share of the input's bytes, and how it is parsed."""

    number: int
    end: int
    bytes: int
    parse: Callable[[], Raw]


@dataclass(frozen=True)
class Position:
    """Where reading goes on: the number of the next chunk, and where it begins."""

    number: int = 0
    start: int = 0


def chunks(source: Input, layout: CsvLayout, size: int, position: Position) -> Iterator[Chunk]:
    """Yield the pieces of *source* from *position* on, of about *size* bytes; ``InvalidRequest`` where it is damaged."""
    if source.format == "csv":
        return _of_text(source, layout, size, position)
    read = {"parquet": _of_parquet, "arrow": _of_arrow, "sqlite": _of_sqlite}[source.format]
    return (chunk for chunk in read(source, size) if chunk.number >= position.number)


@contextmanager
def explained(source: Input) -> Iterator[None]:
    """Name *source* where it cannot be read."""
    try:
        yield
    except _DAMAGES as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidRequest(f"cannot read {source.origin}: {problem}; nothing of this import was published") from error


def _of_text(source: Input, layout: CsvLayout, size: int, position: Position) -> Iterator[Chunk]:
    with opened_text(source) as stream:
        _move(stream, source, position.start)
        start = position.start
        for number, block in enumerate(blocks(stream, size, layout.quote), position.number):
            header_lines = layout.header_lines if start == 0 else 0
            start += len(block)
            share = len(block) if source.compression is None else min(len(block), source.bytes // 8)
            yield Chunk(number, start, share, partial(parse_block, block, layout, header_lines, source.origin))


def _move(stream: Any, source: Input, start: int) -> None:
    """Bring *stream* to *start*; what is packed must be unpacked up to there."""
    if source.compression is None:
        stream.seek(start)
        return
    while start and (passed := stream.read(min(start, 1 << 20))):
        start -= len(passed)


def _of_parquet(source: Input, size: int) -> Iterator[Chunk]:
    """Yield row groups, several small ones together; a large one is decoded piece by piece, in the thread that asks."""
    with explained(source), pq.ParquetFile(source.path, page_checksum_verification=True, pre_buffer=False) as file:
        told, number = file.metadata, 0
        sizes = _sizes(file)
        for groups in _row_groups(sizes, size):
            share = source.bytes * len(groups) // len(sizes)
            held = sum(sizes[group] for group in groups)
            if held <= 2 * size:
                yield Chunk(number, 0, share, partial(_read_groups, source, groups))
                number += 1
                continue
            pieces = -(-held // size)
            for batch in file.iter_batches(-(-told.row_group(groups[0]).num_rows // pieces), groups, use_threads=False):
                yield Chunk(number, 0, share // pieces, partial(Raw.of_table, pa.table(batch)))
                number += 1


def _sizes(file: pq.ParquetFile) -> list[int]:
    """Return what each row group takes in memory: a dictionary makes columns much smaller in the file."""
    width = sum(8 if pa.types.is_primitive(item.type) else 16 for item in file.schema_arrow)
    groups = (file.metadata.row_group(place) for place in range(file.metadata.num_row_groups))
    return [max(group.total_byte_size, group.num_rows * width) for group in groups]


def _row_groups(sizes: list[int], most: int) -> Iterator[list[int]]:
    groups: list[int] = []
    held = 0
    for place, added in enumerate(sizes):
        if groups and held + added > most:
            yield groups
            groups, held = [], 0
        groups.append(place)
        held += added
    if groups:
        yield groups


def _read_groups(source: Input, groups: list[int]) -> Raw:
    with explained(source), pq.ParquetFile(source.path, page_checksum_verification=True, pre_buffer=False) as file:
        return Raw.of_table(file.read_row_groups(groups, use_threads=False))


def _of_arrow(source: Input, size: int) -> Iterator[Chunk]:
    """Yield record batches, large ones cut; the file is mapped, so what is not compressed costs nothing until it is used."""
    number = 0
    with explained(source), pa.memory_map(str(source.path)) as mapped:
        batches = _batches(mapped)
        for batch in batches:
            rows = max(1, batch.num_rows * size // max(batch.nbytes, size))
            for start in range(0, batch.num_rows, rows):
                part = batch.slice(start, rows)
                yield Chunk(number, 0, part.nbytes, partial(Raw.of_table, pa.table(part)))
                number += 1


def _batches(mapped: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:  # the streaming form has no footer
        mapped.seek(0)
        yield from pa.ipc.open_stream(mapped)
        return
    for place in range(file.num_record_batches):
        yield file.get_batch(place)


def _of_sqlite(source: Input, size: int) -> Iterator[Chunk]:
    name = (source.part or "").replace('"', '""')
    with explained(source), closing(opened_database(source.path)) as database:
        cursor = database.execute(f'SELECT * FROM "{name}"')  # noqa: S608  # quoted, and found in the database itself
        names = [told[0] for told in cursor.description]
        rows = max(1, size // (_SQL_VALUE_BYTES * len(names)))
        number = 0
        while found := cursor.fetchmany(rows):
            share = min(source.bytes, len(found) * len(names) * 8)
            yield Chunk(number, 0, share, partial(_of_rows, names, found))
            number += 1


def _of_rows(names: list[str], rows: list[tuple[Any, ...]]) -> Raw:
    return Raw(
        pl.DataFrame({name: _values(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}), len(rows)
    )


def _values(column: tuple[Any, ...]) -> pl.Series:
    """Return values of SQLite, which may be of several types in one column, as one type: text where nothing else fits."""
    kinds = {type(value) for value in column if value is not None}
    if kinds <= {int}:
        return pl.Series(column, dtype=pl.Int64)
    if kinds <= {int, float}:
        return pl.Series([None if value is None else float(value) for value in column], dtype=pl.Float64)
    return pl.Series([None if value is None else _text(value) for value in column], dtype=pl.String)


def _text(value: object) -> str:
    return value.decode("utf8", "replace") if isinstance(value, bytes) else str(value)

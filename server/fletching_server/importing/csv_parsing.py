"""Blocks of CSV as columns: typed at once where all values fit, as text where one does not."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.raw import Bad, Raw, row_text

REPLACED: Final = "\ufffd"  # what stands for bytes that are no text
_PARSED_BYTES: Final = 4 << 20  # of a block at a time: fits a core's cache


@dataclass(frozen=True)
class CsvLayout:
    """How text becomes columns: their *names* in file order, which of them are read, and as which *types* at once."""

    names: tuple[str, ...]
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    nulls: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf8"
    header_lines: int = 0

    @property
    def quote(self) -> bytes:
        """The character that may hide line ends."""
        return b'"'

    @property
    def read(self) -> list[str]:
        """The columns that are read."""
        return [name for name in self.names if name not in self.ignored]


def parse_block(block: bytes, layout: CsvLayout, header_lines: int, origin: str) -> Raw:
    """Return the rows of *block*, typed as the layout says where every value fits; records with too few fields are bad."""

    def as_text() -> Raw:
        text = _decoded(block, layout.encoding)
        raw = _parsed(text.encode(), replace(layout, types={}, encoding="utf8"), header_lines, origin)
        return _without_garbled(raw, layout.encoding) if REPLACED in text else raw

    try:
        return replace(_parsed(block, layout, header_lines, origin), as_text=as_text)
    except (pa.ArrowInvalid, UnicodeError):
        return as_text()


def _without_garbled(raw: Raw, encoding: str) -> Raw:
    """Return *raw* with the rows as bad ones that hold bytes which are no text."""
    garbled = raw.frame.select(
        pl.any_horizontal(pl.all().str.contains(REPLACED, literal=True).fill_null(value=False))
    ).to_series()
    places = raw.places
    bad = [Bad(int(places[row]), f"bytes that are not {encoding}", row_text(raw.frame.row(row))) for row in garbled.arg_true()]
    return replace(raw, frame=raw.frame.filter(~garbled), bad=tuple(sorted([*raw.bad, *bad])))


def _decoded(block: bytes, encoding: str) -> str:
    try:
        return block.decode(encoding, "replace")
    except LookupError as error:
        raise InvalidRequest(f"there is no encoding {encoding!r}; write 'utf8', 'gb18030' or 'latin1'") from error


def _parsed(block: bytes, layout: CsvLayout, header_lines: int, origin: str) -> Raw:
    bad: list[Bad] = []

    def remember(row: pa_csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields, not {row.expected_columns}"
        bad.append(Bad((row.number or 1) - 1 - header_lines, reason, row.text))
        return "skip"

    reading = pa_csv.ReadOptions(
        column_names=list(layout.names),
        skip_rows=header_lines,
        use_threads=False,  # chunks are parsed side by side; and only so a bad record knows its number
        block_size=max(_PARSED_BYTES, min(len(block), 64 << 20)) if b'"' in block else _PARSED_BYTES,
        encoding=layout.encoding,
    )
    parsing = pa_csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=b'"' in block, invalid_row_handler=remember)
    converting = pa_csv.ConvertOptions(
        column_types={name: layout.types.get(name, pa.string()) for name in layout.read},
        include_columns=layout.read,
        null_values=["", *layout.nulls],
        strings_can_be_null=True,
        true_values=["true", "True", "TRUE", "1"],
        false_values=["false", "False", "FALSE", "0"],
    )
    try:
        table = pa_csv.read_csv(pa.py_buffer(block), reading, parsing, converting)
    except pa.ArrowInvalid as error:
        if layout.types or re.search("conversion|UTF8", str(error)):
            raise
        raise InvalidRequest(
            f"cannot read {origin}: {str(error).splitlines()[0]}; nothing of this import was published"
        ) from error
    return Raw(_frame(table), table.num_rows + len(bad), tuple(bad))


def _frame(table: pa.Table) -> pl.DataFrame:
    """Return *table* for Polars; a column that was read as a dictionary is text that shares its few values."""
    columns = {name: _series(table.column(name)) for name in table.column_names}
    return pl.DataFrame(columns)


def _series(column: pa.ChunkedArray) -> pl.Series:
    if not pa.types.is_dictionary(column.type):
        return pl.Series(pl.from_arrow(column))
    parts = [pl.Series(pl.from_arrow(part.dictionary)).gather(pl.Series(pl.from_arrow(part.indices))) for part in column.chunks]
    return pl.concat(parts) if parts else pl.Series([], dtype=pl.String)


def header_names(line: str, delimiter: str) -> tuple[str, ...]:
    """Return the names in the header *line*."""
    return tuple(name.strip() for name in next(csv.reader([line], delimiter=delimiter), []))

"""The one form in which rows lie on disk: plain Parquet that any tool reads, sorted, with a checksum on every page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from fletching_schemas import Dataset

ROW_GROUP_ROWS: Final = 32_768  # a point read decodes one of them; yet smaller ones make the footer long and gain little
_SAMPLE: Final = 4096  # rows that tell whether a column repeats its values
_CODES: Final = pa.dictionary(pa.int32(), pa.string())
METADATA_KEY: Final = b"fletching"

# DuckDB's own reader has no option to verify page checksums; a registered dataset with this format does verify.
_FORMAT: Final = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


class Packing(NamedTuple):
    """How rows are packed: the codec, rows per group, and whether numbers that repeat are written as codes."""

    compression: str
    group_rows: int
    codes: bool


LASTING: Final = Packing("zstd", ROW_GROUP_ROWS, codes=False)
PASSING: Final = Packing("lz4", 4 * ROW_GROUP_ROWS, codes=True)  # the journal's: somebody waits for it


def encode(
    dataset: Dataset,
    table: pa.Table,
    facts: dict[str, Any],
    packing: Packing = LASTING,
    runs: tuple[Sequence[str], np.ndarray[Any, Any]] | None = None,
) -> pa.Buffer:
    """Return *table* (sorted, in the dataset's schema) as a Parquet file that tells *facts* about itself in its footer.

    *runs* are its symbols and the row at which each begins, with the row count at the end, where the caller knows them.
    """
    sink = pa.BufferOutputStream()
    with ParquetFile(
        dataset, sink, packing, coded=runs is not None, repeating=_repeating(table) if packing.codes else ()
    ) as file:
        file.add(table if runs is None else _coded(dataset, table, *runs))
        file.tell(facts)
    return sink.getvalue()


def _repeating(table: pa.Table) -> list[str]:
    """Return the columns of numbers of which few differ, such as prices in cents: as codes they are half as long."""
    step = len(table) // _SAMPLE
    if not step:
        return []
    plain = [
        name for name in table.column_names if _is_number(table.schema.field(name).type) and not table.column(name).null_count
    ]
    samples = {name: table.column(name).to_numpy()[::step] for name in plain}
    return [name for name, sample in samples.items() if 2 * len(np.unique(sample)) <= len(sample)]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _coded(dataset: Dataset, table: pa.Table, symbols: Sequence[str], offsets: np.ndarray[Any, Any]) -> pa.Table:
    """Return *table* with its symbols as a dictionary: made of the runs, which is far cheaper than turning views into text."""
    codes = pa.array(np.repeat(np.arange(len(symbols), dtype=np.int32), np.diff(offsets)))
    place = table.schema.get_field_index(dataset.symbol)
    field = table.schema.field(place).with_type(_CODES)
    return table.set_column(place, field, pa.DictionaryArray.from_arrays(codes, pa.array(symbols, pa.string())))


class ParquetFile:
    """A file on its way to *sink*: rows of *dataset* are added in order, and facts are told at the end."""

    def __init__(
        self, dataset: Dataset, sink: Any, packing: Packing = LASTING, *, coded: bool = False, repeating: Sequence[str] = ()
    ) -> None:
        """Write to *sink*; with *coded* the symbols come as a dictionary, *repeating* columns are written as codes as text is."""
        self._schema, self._group_rows = _plain_schema(dataset.schema), packing.group_rows
        if coded:
            place = self._schema.get_field_index(dataset.symbol)
            self._schema = self._schema.set(place, self._schema.field(place).with_type(_CODES))
        self._rest: list[pa.Table] = []  # rows that do not fill a row group yet
        self._writer = pq.ParquetWriter(
            sink,
            self._schema,
            compression=packing.compression,
            use_dictionary=[*repeating, *(item.name for item in self._schema if item.type in {pa.string(), _CODES})],
            write_page_checksum=True,
            write_page_index=True,
            store_schema=False,  # a foreign reader must not need Arrow's types
            sorting_columns=[pq.SortingColumn(self._schema.get_field_index(name)) for name in dataset.sort_keys],
        )

    def add(self, table: pa.Table) -> None:
        """Append the rows of *table*, which is in the dataset's schema."""
        rows = pa.concat_tables([*self._rest, table.cast(self._schema)])
        whole = len(rows) - len(rows) % self._group_rows
        if whole:
            self._writer.write_table(rows.slice(0, whole), row_group_size=self._group_rows)
        self._rest = [rows.slice(whole)]

    def tell(self, facts: dict[str, Any]) -> None:
        """Write what is left, and *facts* into the footer; nothing is added after that."""
        rest = pa.concat_tables(self._rest) if self._rest else self._schema.empty_table()
        if len(rest):
            self._writer.write_table(rest, row_group_size=self._group_rows)
        # Said here, because without store_schema the metadata of the table is not written.
        self._writer.add_key_value_metadata({**(self._schema.metadata or {}), METADATA_KEY: json.dumps(facts).encode()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    fields = [item.with_type(pa.string()) if item.type == pa.string_view() else item for item in schema]
    return pa.schema(fields, metadata=schema.metadata)


def checked_dataset(path: Path) -> pads.Dataset:
    """Return the file at *path* for scanning; a page whose checksum is wrong raises while it is read."""
    return pads.dataset(str(path), format=_FORMAT)


def decoded(data: bytes) -> pa.Table:
    """Return all rows of a file whose bytes are *data*, one chunk per column; text as views. The bytes must be good."""
    # Polars decodes text into views at once, and lays the row groups side by side on all cores.
    return pl.read_parquet(data).rechunk().to_arrow(compat_level=pl.CompatLevel.newest())


def selected(path: Path, symbol: str, symbols: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Return *columns*, as far as there are such, of the rows whose column *symbol* is among *symbols*, in the file's order.

    Only row groups whose statistics admit one of them are read; a page whose checksum is wrong raises.
    """
    wanted = pa.array(symbols, pa.string())
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        schema = pa.schema([file.schema_arrow.field(name) for name in there])
        groups = (file.read_row_group(group, there) for group in _groups_with(file.metadata, symbol, symbols))
        parts = [rows.filter(pc.is_in(rows.column(symbol), wanted)).select(there) for rows in groups]
    return pa.concat_tables([schema.empty_table(), *parts])


def _groups_with(metadata: pq.FileMetaData, symbol: str, symbols: Sequence[str]) -> Iterator[int]:
    """Yield the row groups that may hold one of *symbols*; a group that says nothing about itself may."""
    (column,) = (place for place in range(metadata.num_columns) if metadata.schema.column(place).path == symbol)
    for group in range(metadata.num_row_groups):
        told = metadata.row_group(group).column(column).statistics
        if told is None or not told.has_min_max or any(told.min <= name <= told.max for name in symbols):
            yield group


def footer_facts(path: Path) -> dict[str, Any]:
    """Return what ``encode`` was told about the file."""
    metadata = pq.read_metadata(path).metadata or {}
    facts: dict[str, Any] = json.loads(metadata.get(METADATA_KEY, b"{}"))
    return facts

"""The one form in which rows lie on disk: plain Parquet that any tool reads, sorted, with a checksum on every page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from fletching_schemas import Dataset

ROW_GROUP_ROWS: Final = 65_536  # small enough that one symbol's rows prune most of a partition
METADATA_KEY: Final = b"fletching"

# DuckDB's own reader has no option to verify page checksums; a registered dataset with this format does verify.
_FORMAT: Final = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def encode(dataset: Dataset, table: pa.Table, facts: dict[str, Any]) -> pa.Buffer:
    """Return *table* (sorted, in the dataset's schema) as a Parquet file that tells *facts* about itself in its footer."""
    plain = table.cast(_plain_schema(table.schema))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        plain.schema,
        compression="zstd",
        use_dictionary=[item.name for item in plain.schema if pa.types.is_string(item.type)],
        write_page_checksum=True,
        write_page_index=True,
        store_schema=False,  # a foreign reader must not need Arrow's types
        sorting_columns=[pq.SortingColumn(plain.schema.get_field_index(name)) for name in dataset.sort_keys],
    ) as writer:
        writer.write_table(plain, row_group_size=ROW_GROUP_ROWS)
        # Said here, because without store_schema the metadata of the table is not written.
        writer.add_key_value_metadata({**(plain.schema.metadata or {}), METADATA_KEY: json.dumps(facts).encode()})
    return sink.getvalue()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    fields = [item.with_type(pa.string()) if item.type == pa.string_view() else item for item in schema]
    return pa.schema(fields, metadata=schema.metadata)


def checked_dataset(path: Path) -> pads.Dataset:
    """Return the file at *path* for scanning; a page whose checksum is wrong raises while it is read."""
    return pads.dataset(str(path), format=_FORMAT)


def footer_facts(path: Path) -> dict[str, Any]:
    """Return what ``encode`` was told about the file."""
    metadata = pq.read_metadata(path).metadata or {}
    facts: dict[str, Any] = json.loads(metadata.get(METADATA_KEY, b"{}"))
    return facts

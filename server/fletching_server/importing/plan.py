"""What an import will do, worked out before anything is read: shown, confirmed, and part of the job's identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from fletching_schemas import Dataset
from fletching_schemas.errors import InvalidRequest
from fletching_server import disk
from fletching_server.importing.csv_parsing import CsvLayout, header_names
from fletching_server.importing.inputs import Input
from fletching_server.importing.mapping import ImportMapping, mapping_document
from fletching_server.importing.reductions import Reductions
from fletching_server.importing.text import first_line, opened_text
from fletching_server.sources.file_layout import FoundFile
from fletching_server.sources.file_mapping import MILLISECONDS
from fletching_server.sources.file_values import EPOCH_FORMATS


@dataclass(frozen=True)
class ColumnPlan:
    """One line of what is shown: where a column comes from, what it becomes, and some of its values as they are."""

    source: str
    target: str
    type: str
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportPlan:
    """An import, ready to run: inputs, mapping, table (*is_new*: it is defined by this import) and reductions.

    *kinds* are the types of the columns of text as a sample had them: what is read so at once. *free_buckets* says that
    the number of buckets is chosen by the size of what was read.
    """

    dataset: Dataset
    mapping: ImportMapping
    inputs: tuple[Input, ...]
    is_new: bool
    reductions: Reductions = field(default_factory=Reductions)
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    columns: tuple[ColumnPlan, ...] = ()
    notes: tuple[str, ...] = ()
    estimated_rows: int = 0
    free_buckets: bool = False
    chunk_bytes: int = 32 << 20

    @property
    def id(self) -> str:
        """What the same command has again: a digest of the inputs, the mapping and what is done with them."""
        told = {**self.facts(), "release": version("fletching"), "chunk_bytes": self.chunk_bytes, "table": self.dataset.to_json()}
        return disk.digest(json.dumps(told, sort_keys=True, default=str).encode())[:16]

    def facts(self) -> dict[str, Any]:
        """Return the plan as the records keep it."""
        return {
            "dataset": self.dataset.name,
            "inputs": [source.identity for source in self.inputs],
            "mapping": mapping_document(self.mapping),
            "reductions": self.reductions.facts(),
        }

    def found(self, source: Input) -> FoundFile:
        """Return what the name of *source* tells."""
        return self.mapping.found(source)

    def layout(self, source: Input) -> CsvLayout:
        """Return how the text of *source* becomes columns; its header may have another order than that of other inputs."""
        return layout_of(source, self.mapping, self.kinds, self.dataset) if source.format == "csv" else CsvLayout(())


def layout_of(source: Input, mapping: ImportMapping, kinds: Mapping[str, pa.DataType], dataset: Dataset) -> CsvLayout:
    """Return how the text of *source* becomes columns, of the types that the table needs where the sample had these *kinds*."""
    names = column_names(source, mapping)
    sources = sources_of(mapping, dataset, names)
    types = {name: kind for target, name in sources.items() if (kind := _read_as(target, kinds.get(name), mapping, dataset))}
    ignored = set(names) - set(sources.values()) if "*" in mapping.ignore else set(mapping.ignore) & set(names)
    return CsvLayout(
        names, types, frozenset(ignored), mapping.nulls, mapping.delimiter, mapping.encoding, int(mapping.has_header)
    )


def column_names(source: Input, mapping: ImportMapping) -> tuple[str, ...]:
    """Return the columns in the file's order: as listed, or those of the header."""
    if isinstance(mapping.columns, tuple):
        return mapping.columns
    with opened_text(source) as stream:
        line = first_line(stream)
    try:
        names = header_names(line.decode(mapping.encoding), mapping.delimiter)
    except (UnicodeDecodeError, LookupError) as error:
        raise InvalidRequest(f"the header of {source.origin} is not {mapping.encoding}: {error}; set encoding") from error
    check_names(source, names)
    return names


def check_names(source: Input, names: Sequence[str]) -> None:
    """Raise ``InvalidRequest`` where two columns of *source* have the same name."""
    if len(set(names)) != len(names):
        raise InvalidRequest(f"the header of {source.origin} holds a name twice: {', '.join(names)}; list columns in a mapping")


def sources_of(mapping: ImportMapping, dataset: Dataset, names: tuple[str, ...]) -> dict[str, str]:
    """Return the file's column for each column of the table that has one."""
    given = mapping.columns if isinstance(mapping.columns, dict) else {}
    free = [name for name in names if name not in given.values() and name not in mapping.ignore]
    return {**given, **{name: name for name in free if name in dataset.schema.names and name not in given}}


def _read_as(target: str, kind: pa.DataType | None, mapping: ImportMapping, dataset: Dataset) -> pa.DataType | None:
    """Return the type as which a column of text is read at once; None: as text."""
    if target not in dataset.schema.names or kind is None:
        return None
    wanted = dataset.schema.field(target).type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if target == dataset.time and mapping.time_format is not None:
        counted = mapping.time_format in {MILLISECONDS, *EPOCH_FORMATS}
        return (pa.int64() if pa.types.is_integer(kind) else pa.float64()) if counted and is_number else None
    if pa.types.is_string_view(wanted):
        return pa.dictionary(pa.int32(), pa.string()) if target == dataset.symbol else None
    if pa.types.is_floating(wanted):
        return pa.float64()
    if pa.types.is_integer(wanted):
        return pa.float64() if pa.types.is_floating(kind) else pa.int64()
    if pa.types.is_date32(wanted):
        return kind if pa.types.is_date32(kind) else None
    return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) and pa.types.is_timestamp(wanted) else None

"""How the columns of files become those of a table: the TOML of ``--mapping``, and the TOML that shows what was inferred.

It has the words of the ``files`` source (``sources.file_mapping``), so one mapping serves to read files in place and to import
them; ``path`` is needed only where the file's name tells something, and is compared with its last parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pydantic import Field

from fletching_schemas import Dataset, Notation, normalise_symbol
from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.inputs import Input
from fletching_server.sources.file_layout import FoundFile, PathPattern
from fletching_server.sources.file_mapping import (
    MILLISECONDS,
    TYPES,
    DatasetMapping,
    load_toml,
    read_mapping,
    ready_mapping,
    ready_names,
    validated,
)

_OWN_FIELDS: Final = ("factors", "reuse", "member", "format", "first_session", "symbols_per_call", "fresh_seconds", "adjusted_by")


class ImportMapping(DatasetMapping):
    """One table in files: what it is, and how text becomes values. Symbols stay as they are, unless ``notation`` is given."""

    path: PathPattern | None = None  # type: ignore[assignment]  # a source must have one
    notation: Notation = "verbatim"
    buckets: int | None = Field(default=None, ge=1, le=4096)

    def _path_problem(self) -> str | None:
        if self.path is not None:
            return super()._path_problem()
        if self.symbol is not None:
            return "symbol is made of the file's name: path says how, such as '{code}.csv'"
        if self.time_format == MILLISECONDS:
            return f"time_format = '{MILLISECONDS}' counts from midnight: path needs the day, {{date:%Y%m%d}}"
        return None

    def _session_problem(self, dataset: Dataset) -> str | None:
        has_day = pa.types.is_date32(dataset.schema.field(dataset.time).type)
        return "label_shift moves a timestamp; the time of this dataset is a date" if self.label_shift and has_day else None

    def dataset(self, prefix: str = "") -> Dataset:
        """Return the table, in as many buckets as were asked for."""
        return replace(super().dataset(prefix), buckets=self.buckets or 1)

    def found(self, source: Input) -> FoundFile:
        """Return what the name of *source* tells; ``InvalidRequest`` where it does not match ``path``."""
        named = FoundFile(source.path, member=source.part if source.compression == "zip" else None)
        if self.path is None:
            return named
        parts, segments = list(source.path.absolute().parts), self.path.text.split("/")
        found: FoundFile | None = named
        for segment, name in zip(reversed(segments), reversed(parts), strict=False):
            found = found and PathPattern(segment).match(found, name)
        if found is None or len(segments) >= len(parts):
            raise InvalidRequest(f"{source.path} does not match path = {self.path.text!r} of the mapping")
        return found

    def symbol_of(self, found: FoundFile) -> str | None:
        """Return the symbol that the file's name gives; None where a column does."""
        if self.symbol is None:
            return None
        names = found.names | {name.upper(): text.upper() for name, text in found.names.items()}
        return normalise_symbol(self.symbol.format_map(names), self.notation)


def load_mapping(given: str | Path, dataset: str) -> ImportMapping:
    """Return the mapping of *dataset* in the file *given*, or in the ready one of that name.

    The file is a single mapping, or has several as ``[[dataset]]``, as those of the ``files`` source do.
    """
    if str(given) in ready_names():
        return _chosen(ready_mapping(str(given)), dataset, f"mapping {given}")
    values = load_toml(Path(given))
    if "dataset" in values or "mapping" in values:
        return _chosen(read_mapping({"root": ".", **values}, str(given)).chosen(), dataset, str(given))
    return validated(ImportMapping, {**values, "name": dataset}, str(given))


def _chosen(entries: tuple[DatasetMapping, ...], dataset: str, origin: str) -> ImportMapping:
    found = next((entry for entry in entries if entry.name == dataset), None)
    if found is None:
        raise InvalidRequest(f"{origin} has no dataset {dataset!r}; it has {', '.join(entry.name for entry in entries)}")
    said = found.model_dump(exclude_unset=True, by_alias=True, exclude=set(_OWN_FIELDS))
    return validated(ImportMapping, {"notation": found.notation, **said, "label_shift": _duration(found)}, origin)


def _duration(entry: DatasetMapping) -> str:
    return f"{int(entry.label_shift.total_seconds())}s"


def type_name(kind: pa.DataType) -> str:
    """Return the word of a mapping for *kind*; ``InvalidRequest`` for a type that files cannot be mapped to."""
    for name, known in TYPES.items():
        if known == kind:
            return name
    raise InvalidRequest(
        f"a column of type {kind} cannot be imported; those of {', '.join(TYPES)} can. Use cache.write for others"
    )


def served(schema: pa.Schema) -> dict[str, str]:
    """Return *schema* in the words of a mapping."""
    return {item.name: type_name(item.type) + "!" * (not item.nullable) + _unit(item) for item in schema}


def _unit(item: pa.Field) -> str:
    unit = (item.metadata or {}).get(b"unit", b"").decode()
    return f" [{unit}]" if unit else ""


def to_toml(mapping: ImportMapping) -> str:
    """Return *mapping* as a file that ``load_mapping`` reads; defaults are left out."""
    plain, tables = [], []
    for name, value in mapping_document(mapping).items():
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *(f"{_key(inner)} = {_value(said)}" for inner, said in value.items())]
        else:
            plain.append(f"{name} = {_value(value)}")
    return "\n".join([f"# How files become the table {mapping.name}: see docs/import.md", *plain, *tables]) + "\n"


def mapping_document(mapping: ImportMapping) -> dict[str, Any]:
    """Return what *mapping* says, without its name and what it does not say."""
    said = mapping.model_dump(exclude_defaults=True, by_alias=True, exclude={"name"})
    if mapping.path is not None:
        said["path"] = mapping.path.text
    if mapping.label_shift:
        said["label_shift"] = _duration(mapping)
    return {name: value for name, value in said.items() if value not in ((), {}, None)}


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)

"""The rows of one file as a frame with a dataset's columns: reading, naming, dating and checking them."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from fletching_schemas.errors import BadSourceData
from fletching_server.sources.file_factors import cumulative_steps
from fletching_server.sources.file_mapping import MILLISECONDS, DatasetMapping
from fletching_server.sources.file_values import EPOCH_FORMATS, FileColumn, divided

if TYPE_CHECKING:
    from fletching_schemas import Dataset
    from fletching_server.sources.file_layout import FoundFile

MAX_MEMBER_BYTES: Final = 4 * 1024**3  # a zip of a few kilobytes may claim to hold any amount
_BLOCK_BYTES: Final = 16 * 1024**2
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def members(found: FoundFile, mapping: DatasetMapping) -> list[FoundFile]:
    """Return *found* once per zip member that the mapping reads, in the archive's order; itself if it is no zip.

    Raises ``BadSourceData`` for a damaged archive.
    """
    if found.path.suffix.lower() != ".zip":
        return [found]
    try:
        with zipfile.ZipFile(found.path) as archive:
            names = [item.filename for item in archive.infolist() if not item.is_dir()]
    except (*_ZIP_ERRORS, OSError) as error:
        raise BadSourceData(f"{found.path}: not a readable zip: {error}") from error
    if mapping.member is None:
        return [replace(found, member=name) for name in names]
    matched = [(name, mapping.member.match(found, name)) for name in names]
    return [replace(match, member=name) for name, match in matched if match]


def read_rows(found: FoundFile, mapping: DatasetMapping, dataset: Dataset) -> pl.DataFrame:
    """Return all rows of a file or zip member in file order, with the dataset's columns but for symbol and seq.

    The symbol column is there where the file holds one. Raises ``BadSourceData`` naming file, row, column and value.
    """
    raw = _read_parquet(found) if _is_parquet(found, mapping) else _read_csv(found, mapping)
    if mapping.factors:
        raw = cumulative_steps(raw, found.origin)
    return FileRows(raw, found, mapping, dataset).frame()


def _is_parquet(found: FoundFile, mapping: DatasetMapping) -> bool:
    name = found.member or found.path.name
    return mapping.format == "parquet" if mapping.format else name.lower().endswith((".parquet", ".pq"))


def _content(found: FoundFile) -> bytes:
    try:
        if found.member is None:
            return found.path.read_bytes()
        with zipfile.ZipFile(found.path) as archive:
            if (claimed := archive.getinfo(found.member).file_size) > MAX_MEMBER_BYTES:
                raise BadSourceData(f"{found.origin}: {claimed:,} bytes unpacked; the limit is {MAX_MEMBER_BYTES:,}")
            return archive.read(found.member)
    except (*_ZIP_ERRORS, OSError, KeyError) as error:
        if isinstance(error, BadSourceData):
            raise
        raise BadSourceData(f"{found.origin}: cannot be read: {error}") from error


def _read_parquet(found: FoundFile) -> pl.DataFrame:
    try:
        return pl.read_parquet(io.BytesIO(_content(found)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadSourceData(f"{found.origin}: not a readable Parquet file: {error}") from error


def _read_csv(found: FoundFile, mapping: DatasetMapping) -> pl.DataFrame:
    """Return every column as text; only an empty field and the mapping's ``nulls`` are null."""
    content, bad = _content(found), []
    listed = list(mapping.columns) if isinstance(mapping.columns, tuple) else None

    def remember(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    try:
        names = listed or _header(content, mapping)
        # One thread: only then does an invalid row know its number.
        reading = pa_csv.ReadOptions(
            column_names=listed,
            skip_rows=int(listed is not None and mapping.has_header),
            encoding=mapping.encoding,
            use_threads=False,
            block_size=_BLOCK_BYTES,
        )
        parsing = pa_csv.ParseOptions(delimiter=mapping.delimiter, invalid_row_handler=remember)
        table = pa_csv.read_csv(pa.BufferReader(content), reading, parsing, _as_text(names, mapping.nulls))
        return pl.DataFrame(table)
    except (pa.ArrowInvalid, UnicodeError, LookupError, pl.exceptions.PolarsError) as error:
        raise BadSourceData(f"{found.origin}: {_csv_problem(error, bad)}") from error


def _header(content: bytes, mapping: DatasetMapping) -> list[str]:
    text = io.TextIOWrapper(io.BytesIO(content), mapping.encoding, newline="")
    return next(csv.reader([text.readline().removeprefix("\ufeff")], delimiter=mapping.delimiter), [])


def _as_text(names: list[str], nulls: tuple[str, ...]) -> pa_csv.ConvertOptions:
    return pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, null_values=["", *nulls], strings_can_be_null=True
    )


def _csv_problem(error: Exception, bad: list[pa_csv.InvalidRow]) -> str:
    if not bad:
        return f"not a readable CSV file: {error}"
    row = bad[0]
    return f"line {row.number:,} has {row.actual_columns} fields, not {row.expected_columns}: {row.text!r:.120}"


MakeColumn = Callable[[pl.Series, str, int], FileColumn]


class FileRows:
    """One file's raw columns, on their way to the dataset's; *column* makes what converts each and minds what does not fit."""

    def __init__(
        self, raw: pl.DataFrame, found: FoundFile, mapping: DatasetMapping, dataset: Dataset, column: MakeColumn = FileColumn
    ) -> None:
        self._raw, self._found, self._mapping, self._dataset = raw, found, mapping, dataset
        self._make = column
        self._sources = self._resolved()
        self._session: pl.Series | None = None

    def frame(self) -> pl.DataFrame:
        """Return the dataset's columns that file, file name and constants give; those left out are nulls."""
        columns = {self._dataset.time: self._time()}
        if self._dataset.session != self._dataset.time:
            columns[self._dataset.session] = self._session_of_rows()
        for item in self._dataset.schema:
            if item.name in self._sources and item.name not in columns:
                columns[item.name] = self._value(item)
            elif item.name in self._mapping.constants:
                columns[item.name] = self._constant(item)
        self._check_complete(columns)
        return pl.DataFrame({name: values.alias(name) for name, values in columns.items()})

    def _resolved(self) -> dict[str, str]:
        """Return the file's column for each of the dataset's; every column of the file is mapped or ignored."""
        present, ignored = self._raw.columns, self._mapping.ignore
        given = self._mapping.columns if isinstance(self._mapping.columns, dict) else {}
        if absent := sorted(set(given.values()) - set(present)):
            raise BadSourceData(f"{self._found.origin} has no column {', '.join(absent)}; it has {', '.join(present)}")
        free = [name for name in present if name not in given.values() and name not in ignored]
        known = [name for name in free if name in self._dataset.schema.names and name not in given]
        if (extra := sorted(set(free) - set(known))) and "*" not in ignored:
            raise BadSourceData(
                f"{self._found.origin}: column {', '.join(extra)} is neither mapped nor a column of "
                f"{self._dataset.name}; name it in columns or in ignore"
            )
        return {**given, **{name: name for name in known}}

    def _column(self, name: str) -> FileColumn:
        return self._named(self._raw[self._sources[name]])

    def _named(self, values: pl.Series) -> FileColumn:
        is_headed = self._mapping.has_header and not _is_parquet(self._found, self._mapping)
        return self._make(values, self._found.origin, int(is_headed))

    def _refuse(self, name: str, values: pl.Series, wrong: pl.Series, why: str) -> None:
        self._named(values.alias(self._sources.get(name, name))).refuse(wrong, why)

    def _time(self) -> pl.Series:
        name, form, zone = self._dataset.time, self._mapping.time_format, self._mapping.time_zone
        if pa.types.is_date32(self._dataset.schema.field(name).type):
            return self._column(name).dates(form) if name in self._sources else self._day_of_name(name)
        if name not in self._sources:
            raise BadSourceData(f"{self._found.origin} has no column for {name}; it has {', '.join(self._raw.columns)}")
        if form == MILLISECONDS:
            local = self._column(name).since_midnight(self._day_of_name(name), zone)
        elif form in EPOCH_FORMATS:
            local = self._column(name).since_epoch(EPOCH_FORMATS[form]).dt.convert_time_zone(zone)
        else:
            local = self._column(name).instants(form, zone)
        self._session = local.dt.date()  # before the shift: the bar that ends at midnight belongs to the day before
        return local.dt.convert_time_zone("UTC") + self._mapping.label_shift

    def _day_of_name(self, wanted: str) -> pl.Series:
        if (day := self._found.day) is None:
            raise BadSourceData(f"{self._found.origin}: neither its columns nor its name give {wanted}")
        return pl.repeat(day, self._raw.height, dtype=pl.Date, eager=True)

    def _session_of_rows(self) -> pl.Series:
        name = self._dataset.session
        if name in self._sources:
            return self._column(name).dates(None)
        if self._found.day or self._session is None:
            return self._day_of_name(name)
        return self._session

    def _value(self, item: pa.Field) -> pl.Series:
        column = self._column(item.name)
        values = column.converted(item.type)
        is_scaled = item.name in self._mapping.price_columns and self._mapping.price_scale != 1
        return divided(values, self._mapping.price_scale) if is_scaled else values

    def _constant(self, item: pa.Field) -> pl.Series:
        values = pl.repeat(self._mapping.constants[item.name], self._raw.height, eager=True).alias(item.name)
        return FileColumn(values, "constants").converted(item.type)

    def _check_complete(self, columns: dict[str, pl.Series]) -> None:
        """Refuse a row without a value that it needs, or outside the days that its file's name speaks of."""
        given = {self._dataset.symbol} if self._mapping.symbol else set()
        for item in self._dataset.schema:
            if item.nullable or item.name in given or item.name == self._mapping.seq:
                continue
            if item.name not in columns:
                raise BadSourceData(f"{self._found.origin}: nothing gives {item.name}, which is never empty; map it")
            self._refuse(item.name, columns[item.name], columns[item.name].is_null(), "is missing")
        if (self._found.first, self._found.last) == (date.min, date.max):
            return
        session = columns[self._dataset.session]
        session = session.dt.date() if isinstance(session.dtype, pl.Datetime) else session
        outside = ~session.is_between(self._found.first, self._found.last)
        self._refuse(self._dataset.session, session, outside, "lies outside the days of the file's name")

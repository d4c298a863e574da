"""The cold tier: rows of stored files, whole or only those wanted, from bytes whose checksums were found right in this read.

A whole file is decoded by Polars, a few symbols are picked out of their row groups by pyarrow, and what is wide and yet does not
deserve memory is streamed through DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from fletching_schemas import Dataset
from fletching_server import disk, parquet
from fletching_server.calendars import from_day_number
from fletching_server.image import Image, Window, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.store import DamagedFile, Store

# So many symbols are picked out of their row groups by pyarrow, without SQL to plan; above, DuckDB streams the range they lie in.
_MOST_PICKED = 256
_COMPARE = {">=": pc.greater_equal, "<=": pc.less_equal}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SETTINGS = (
    "SET TimeZone = 'UTC'",  # else instants carry the machine's zone and schemas compare unequal
    "SET produce_arrow_string_view = true",  # views need both of these
    "SET arrow_output_version = '1.4'",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",  # files arrive as registered datasets, by name only
    "SET enable_progress_bar = false",
    "SET lock_configuration = true",
)


class ColdTier:
    """Reads of stored files; one DuckDB connection, one cursor per read."""

    def __init__(self, store: Store, max_bytes: int, threads: int = 0) -> None:
        self._store = store
        options: dict[str, Any] = {"memory_limit": f"{max(max_bytes // (1 << 20), 64)}MB"}
        if threads:
            options["threads"] = threads
        self._connection = duckdb.connect(config=options)
        for setting in _SETTINGS:
            self._connection.execute(setting)

    def whole(self, dataset: Dataset, file: StoredFile) -> Image:
        """Return all rows of *file*; ``DamagedFile`` where its bytes are not those that were written."""
        with self._blaming(file):
            data = self._store.path(file).read_bytes()
            if disk.digest(data) != file.digest:  # of the very bytes that are decoded, so no page needs its own check
                raise DamagedFile(file, "has changed since it was first read")
            return build_image(dataset, brought_up(parquet.decoded(data), dataset.schema), checked=True)

    def select(self, dataset: Dataset, file: StoredFile, symbols: Sequence[str], window: Window, columns: Sequence[str]) -> Image:
        """Return the rows of *symbols* in *window*, with *columns* and the columns that place a row."""
        needed = list(dict.fromkeys([*dataset.keys, dataset.session, *columns]))
        with self._blaming(file):
            if len(symbols) <= _MOST_PICKED:
                return build_image(dataset, self._picked(dataset, file, symbols, window, needed))
            where, values = _condition(dataset, symbols, window)
            order = ", ".join(_quoted(key) for key in dataset.sort_keys)
            return build_image(dataset, self._query(dataset, file, needed, f"WHERE {where} ORDER BY {order}", values))

    def _picked(
        self, dataset: Dataset, file: StoredFile, symbols: Sequence[str], window: Window, columns: Sequence[str]
    ) -> pa.Table:
        rows = parquet.selected(self._store.path(file), dataset.symbol, symbols, columns)
        for name, sign, bound in _bounds(dataset, window):
            column = rows.column(name)
            rows = rows.filter(_COMPARE[sign](column, pa.scalar(bound, column.type)))
        return brought_up(rows, pa.schema([dataset.schema.field(name) for name in columns]))

    @contextmanager
    def _blaming(self, file: StoredFile) -> Iterator[None]:
        """Raise ``DamagedFile`` where *file* is to blame for what goes wrong: a broken footer fails in any library's way."""
        try:
            yield
        except DamagedFile:
            raise
        except Exception:
            self._store.verify(file)
            raise

    def _query(self, dataset: Dataset, file: StoredFile, columns: Sequence[str], clause: str, values: list[Any]) -> pa.Table:
        path = self._store.path(file)
        cursor = self._connection.cursor()
        try:
            stored = parquet.checked_dataset(path)
            cursor.register("file", stored)
            listed = ", ".join(_quoted(name) for name in columns if name in stored.schema.names)
            # Everything but quoted names travels as a parameter.
            table = cursor.sql(f"SELECT {listed} FROM file {clause}", params=values).to_arrow_table()  # noqa: S608
        finally:
            cursor.close()
        return brought_up(table, pa.schema([dataset.schema.field(name) for name in columns]))

    def close(self) -> None:
        """Free DuckDB's memory. The connection must be gone before the interpreter ends, or DuckDB complains on stderr."""
        self._connection.close()
        del self._connection


def brought_up(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return *rows* in *schema*; a column that the table did not have when they were written is null."""
    if rows.schema.names == schema.names:
        return rows.cast(schema)
    there = set(rows.schema.names)
    columns = [
        rows.column(item.name).cast(item.type) if item.name in there else pa.nulls(len(rows), item.type) for item in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _condition(dataset: Dataset, symbols: Sequence[str], window: Window) -> tuple[str, list[Any]]:
    # Callers pass runs of neighbours: what else lies between is dropped by the image's index.
    parts, values = [f"{_quoted(dataset.symbol)} BETWEEN ? AND ?"], [min(symbols), max(symbols)]
    for name, sign, bound in _bounds(dataset, window):
        parts.append(f"{_quoted(name)} {sign} ?")
        values.append(bound)
    return " AND ".join(parts), values


def _bounds(dataset: Dataset, window: Window) -> list[tuple[str, str, Any]]:
    """Return what *window* says of which columns, as (column, sign, value)."""
    first, last = _session_bounds(dataset, window)
    instants = ((">=", window.first_instant), ("<=", window.last_instant))
    found = [(dataset.time, sign, _EPOCH + timedelta(microseconds=bound)) for sign, bound in instants if bound is not None]
    return [(dataset.session, ">=", first), (dataset.session, "<=", last), *found]


def _session_bounds(dataset: Dataset, window: Window) -> tuple[Any, Any]:
    first, last = from_day_number(window.first_day), from_day_number(window.last_day)
    if pa.types.is_date32(dataset.schema.field(dataset.session).type):
        return first, last
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1, microseconds=-1)
    return start, end

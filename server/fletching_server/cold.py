"""The cold tier: stored files read through DuckDB, only the wanted rows and columns, every page checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server import parquet
from fletching_server.calendars import from_day_number
from fletching_server.image import Image, Window, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.store import DamagedFile, Store

# Above this many symbols a list of equalities costs more than reading the range that holds them.
_MOST_LISTED = 256
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
            return build_image(dataset, self._query(dataset, file, dataset.schema.names, "", []))

    def select(self, dataset: Dataset, file: StoredFile, symbols: Sequence[str], window: Window, columns: Sequence[str]) -> Image:
        """Return the rows of *symbols* in *window*, with *columns* and the columns that place a row."""
        needed = list(dict.fromkeys([*dataset.keys, dataset.session, *columns]))
        where, values = _condition(dataset, symbols, window)
        order = ", ".join(_quoted(key) for key in dataset.sort_keys)
        with self._blaming(file):
            return build_image(dataset, self._query(dataset, file, needed, f"WHERE {where} ORDER BY {order}", values))

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
            cursor.register("file", parquet.checked_dataset(path))
            listed = ", ".join(_quoted(name) for name in columns)
            # Everything but quoted names travels as a parameter.
            table = cursor.sql(f"SELECT {listed} FROM file {clause}", params=values).to_arrow_table()  # noqa: S608
        finally:
            cursor.close()
        schema = pa.schema([dataset.schema.field(name) for name in columns])
        return table.cast(schema)

    def close(self) -> None:
        """Free DuckDB's memory. The connection must be gone before the interpreter ends, or DuckDB complains on stderr."""
        self._connection.close()
        del self._connection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _condition(dataset: Dataset, symbols: Sequence[str], window: Window) -> tuple[str, list[Any]]:
    symbol = _quoted(dataset.symbol)
    if len(symbols) <= _MOST_LISTED:
        parts = [f"{symbol} IN ({', '.join('?' * len(symbols))})"]
        values: list[Any] = list(symbols)
    else:  # callers pass runs of neighbours: what else lies between is dropped by the image's index
        parts, values = [f"{symbol} BETWEEN ? AND ?"], [min(symbols), max(symbols)]
    first, last = _session_bounds(dataset, window)
    parts.append(f"{_quoted(dataset.session)} BETWEEN ? AND ?")
    values += [first, last]
    for bound, sign in ((window.first_instant, ">="), (window.last_instant, "<=")):
        if bound is not None:
            parts.append(f"{_quoted(dataset.time)} {sign} ?")
            values.append(_EPOCH + timedelta(microseconds=bound))
    return " AND ".join(parts), values


def _session_bounds(dataset: Dataset, window: Window) -> tuple[Any, Any]:
    first, last = from_day_number(window.first_day), from_day_number(window.last_day)
    if pa.types.is_date32(dataset.schema.field(dataset.session).type):
        return first, last
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1, microseconds=-1)
    return start, end

"""One write: check the rows against the table, order them, store them as a synced segment, commit, acknowledge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, Period, WriteRequest, WriteResult, storage_schema
from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import CorruptFile, InvalidRequest, StoreError
from fletching_server.admission import check_unique, conform, key_frame
from fletching_server.almanac import Calendars
from fletching_server.changes import Define, Swap
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.hot import HotTier
from fletching_server.image import Image, Window, build_image
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store

_TRIES: Final = 20  # a commit that lost a race against another one is prepared again

# What does not come back from Parquet, DuckDB or Polars as it was.
_UNKEPT: Final = (
    pa.types.is_decimal256,
    pa.types.is_fixed_size_list,
    pa.types.is_float16,
    pa.types.is_interval,
    pa.types.is_null,
    pa.types.is_run_end_encoded,
    pa.types.is_union,
)


class Writes:
    """The write path of one engine."""

    def __init__(self, store: Store, hot: HotTier, cold: ColdTier, desk: Desk, calendars: Calendars, stats: Stats) -> None:
        self._store, self._hot, self._cold = store, hot, cold
        self._desk, self._calendars, self._stats = desk, calendars, stats

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are on stable storage and visible to every later read, all of them or none."""
        _check_types(rows)
        state = self._store.catalogue.state(request.table)
        source = self._desk.source(request.table)
        if source or (state and not state.is_table):
            raise InvalidRequest(
                f"{request.table} is filled from source {source.name if source else state and state.source}; "
                "write to a table of your own"
            )
        dataset = _matching(request, state.dataset) if state else new_dataset(request, rows.schema)
        image = self._prepared(request, dataset, rows)
        if state is None:
            try:
                self._store.commit(Define(dataset, None, new=True))
            except LookupError:  # two first writes: this one goes into the table that the other has made
                return self.write(request, rows)
        segment = self._store.publish(dataset, image, "segment", sync=True)
        try:
            seq = self._commit(request, dataset, image, segment)
        except InvalidRequest:  # refused before anything was committed
            self._store.discard(segment)
            raise
        self._hot.offer(segment.id, image)
        self._stats.add(writes=1, written_rows=rows.num_rows)
        return WriteResult(request.table, rows.num_rows, state is None, seq)

    def _prepared(self, request: WriteRequest, dataset: Dataset, rows: pa.Table) -> Image:
        what = f"write to {dataset.name}"
        table = conform(_in_utc(rows), dataset.schema, InvalidRequest, what)
        frame = pl.DataFrame(pl.from_arrow(table))
        if request.mode == "upsert":  # the last row of a key wins, as it would in two writes
            frame = frame.unique(subset=list(dataset.keys), keep="last", maintain_order=True)
        frame = frame.sort(dataset.sort_keys, maintain_order=True)
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest()).cast(dataset.schema)
        check_unique(dataset, table, InvalidRequest, what)
        try:
            return build_image(dataset, table)
        except ValueError as error:
            raise InvalidRequest(f"{what}: {error}; {dataset.session} must not go back while {dataset.time} goes on") from error

    def _commit(self, request: WriteRequest, dataset: Dataset, image: Image, segment: StoredFile) -> int:
        adjacent = self._calendars.get(dataset.calendar).adjacent
        for _ in range(_TRIES):
            with self._store.pinned(dataset.name) as state:
                if request.mode == "append":
                    self._refuse_held_keys(dataset, state, image)
                removed = state.files if request.mode == "replace" else ()
                expected = state.generation if request.mode == "append" else None
                swap = Swap(dataset.name, (segment,), removed, adjacent, expected_generation=expected)
                try:
                    seq = self._store.commit(swap, retired=removed)
                except LookupError:
                    continue
            self._hot.drop({file.id for file in removed})
            return seq
        raise StoreError(f"write to {dataset.name}: {_TRIES} other writes came first each time; try again")

    def _refuse_held_keys(self, dataset: Dataset, state: DatasetState, image: Image) -> None:
        """Raise where a key of *image* is stored already; only files that may hold one are looked at."""
        if not image.table.num_rows:
            return
        window = Window(*image.days)
        keys = key_frame(image.table, dataset.keys)
        for file in state.files:
            if file.first_day > window.last_day or file.last_day < window.first_day or not set(file.symbols) & set(image.symbols):
                continue
            try:
                held = self._cold.select(dataset, file, image.symbols, window, ())
            except DamagedFile as damage:
                raise CorruptFile(f"append to {dataset.name}: {damage}; restore this file from a backup") from damage
            common = keys.join(key_frame(held.table, dataset.keys), on=list(dataset.keys), how="semi")
            if len(common):
                raise InvalidRequest(
                    f"append to {dataset.name}: {len(common)} keys are there already, the first is "
                    f"{common.row(0, named=True)}; use mode='upsert' to replace their rows"
                )


def new_dataset(request: WriteRequest, schema: pa.Schema) -> Dataset:
    """Return the table that a first write defines; ``InvalidRequest`` tells what it must name."""
    names = ", ".join(schema.names)
    if not request.keys:
        raise InvalidRequest(
            f"{request.table} is a new table: name its keys, the symbol's column first, then the time; columns are {names}"
        )
    absent = [name for name in (*request.keys, *([request.time] if request.time else [])) if name not in schema.names]
    if absent:
        raise InvalidRequest(f"{request.table}: there is no column {', '.join(absent)}; columns are {names}")
    time = request.time or _time_among(request.keys, schema)
    keys = request.keys if time in request.keys else (*request.keys, time)
    fields = [item.with_nullable(item.name not in keys) for item in storage_schema(schema)]
    fields = [item.with_type(TIMESTAMP) if item.type == pa.timestamp("us") else item for item in fields]
    period: Period = request.partition or "year"  # type: ignore[assignment]  # checked by the request
    return Dataset(request.table, pa.schema(fields), keys, time, None, period)


def _time_among(keys: Sequence[str], schema: pa.Schema) -> str:
    temporal = [
        name for name in keys if pa.types.is_date(schema.field(name).type) or pa.types.is_timestamp(schema.field(name).type)
    ]
    if len(temporal) != 1:
        raise InvalidRequest(
            f"name the time column: time=...; among the keys {list(keys)} {temporal or 'none'} hold dates or instants"
        )
    return temporal[0]


def _matching(request: WriteRequest, dataset: Dataset) -> Dataset:
    if request.keys is not None and request.keys != dataset.keys:
        raise InvalidRequest(
            f"{dataset.name} has keys {list(dataset.keys)}, this write names {list(request.keys)}; leave keys out"
        )
    if request.time is not None and request.time != dataset.time:
        raise InvalidRequest(f"{dataset.name} has time {dataset.time!r}, this write names {request.time!r}; leave time out")
    if request.partition is not None and request.partition != dataset.period:
        raise InvalidRequest(f"{dataset.name} is partitioned by {dataset.period}; leave partition out")
    return dataset


def _in_utc(rows: pa.Table) -> pa.Table:
    """Return *rows* with instants that have no time zone taken as UTC, as the write's documentation says."""
    fields = [
        item.with_type(pa.timestamp(item.type.unit, tz="UTC"))
        if pa.types.is_timestamp(item.type) and item.type.tz is None
        else item
        for item in rows.schema
    ]
    return rows.cast(pa.schema(fields))


def _check_types(rows: pa.Table) -> None:
    """Refuse what cannot be kept as plain Parquet, and buffers that do not hold what they claim."""
    for item in rows.schema:
        children = [child.type for child in _children(item.type)]
        if isinstance(item.type, pa.BaseExtensionType) or any(test(item.type) for test in _UNKEPT):
            raise InvalidRequest(f"column {item.name} has type {item.type}, which a table cannot keep; cast it to a plain type")
        if any(test(child) for child in children for test in (*_UNKEPT, pa.types.is_dictionary)):
            raise InvalidRequest(f"column {item.name} nests a {item.type}; unnest it or cast it to plain types")
    try:
        rows.validate(full=True)
    except pa.ArrowException as error:
        raise InvalidRequest(f"the rows are not valid Arrow data: {str(error).splitlines()[0]}") from error


def _children(kind: pa.DataType) -> list[pa.Field]:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return fields + [deeper for item in fields for deeper in _children(item.type)]

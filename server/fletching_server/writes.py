"""One write: check the rows against the table, order them, store them as a synced segment, commit, acknowledge."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, WriteRequest, WriteResult
from fletching_schemas.errors import CorruptFile, Error, InternalError, InvalidRequest, StoreError, copy_of
from fletching_server.admission import check_unique, conform, key_frame, strictly_ascends
from fletching_server.changes import Write, WriteKey
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.evolution import matching, new_dataset
from fletching_server.fingerprint import fingerprint
from fletching_server.group_commit import GroupCommit
from fletching_server.history import Written
from fletching_server.hot import HotTier
from fletching_server.image import Image, Window, build_image
from fletching_server.snapshot import DatasetState
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store

_TRIES: Final = 20  # a commit that lost a race against another one is prepared again

_LARGE_BYTES: Final = 32 << 20
_GROUP_BYTES: Final = 64 << 20  # so much at most shares a file

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


@dataclass(eq=False)
class _Entry:
    """One write that waits for its turn, and what its writer is told."""

    request: WriteRequest
    rows: pa.Table
    digest: str
    told: WriteResult | BaseException | None = None

    @property
    def plain(self) -> bool:
        """Whether it may share a file with others: it neither looks at what is there nor changes what the table is."""
        return self.request.mode == "upsert" and not self.request.evolve


class Writes:
    """The write path of one engine: writes into one table that arrive together are checked, stored and synced together."""

    def __init__(self, store: Store, hot: HotTier, cold: ColdTier, desk: Desk, stats: Stats) -> None:
        self._store, self._hot, self._cold = store, hot, cold
        self._desk, self._stats = desk, stats
        self._lock = threading.Lock()
        self._lines: dict[str, GroupCommit[_Entry]] = {}
        self._later = ThreadPoolExecutor(1, thread_name_prefix="written-rows")

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are on stable storage and visible to every later read, all of them or none.

        A write whose key is known has happened already: what it did is returned, and nothing is done.
        """
        check_types(rows)
        self._check_writable(request.table, self._store.catalogue.state(request.table))
        rows = _decoded(rows).combine_chunks()
        entry = _Entry(request, _in_utc(rows), fingerprint(rows, request.table, request.mode))
        with self._lock:
            line = self._lines.setdefault(request.table, GroupCommit(self._settle, _together))
        line.run(entry)
        if not isinstance(entry.told, WriteResult):
            raise entry.told or InternalError(f"a write to {request.table} was forgotten")
        return entry.told

    def _check_writable(self, table: str, state: DatasetState | None) -> None:
        source = self._desk.source(table)
        if source or (state and not state.is_table):
            raise InvalidRequest(
                f"{table} is filled from source {source.name if source else state and state.source}; write to a table of your own"
            )

    # A group of writes, in the thread of the one that leads it

    def _settle(self, group: list[_Entry]) -> None:
        """Store *group*, and tell each of its writers what became of it."""
        try:
            if left := self._unrepeated(group):
                self._store_all(left)
        except InvalidRequest as error:
            if len(group) == 1:
                _fail(group, error)
            else:  # one of them; each by itself is told what is wrong with it
                for entry in group:
                    if entry.told is None:
                        self._settle([entry])
        except BaseException as error:  # noqa: BLE001  # each writer gets it
            _fail(group, error)

    def _unrepeated(self, group: list[_Entry]) -> list[_Entry]:
        """Return the writes of *group* that have not happened yet; the others are told what they did."""
        done = self._store.catalogue.written([entry.request.key for entry in group if entry.request.key is not None])
        for entry in group if done else ():
            if (held := done.get(entry.request.key or "")) is not None:
                _repeat(entry, held)
        return [entry for entry in group if entry.told is None]

    def _store_all(self, group: list[_Entry]) -> None:
        """Store *group* as one segment, on the table as it is: nobody else writes meanwhile, but folds and deletions happen."""
        request, rows = group[0].request, pa.concat_tables([entry.rows for entry in group])
        keys = tuple(WriteKey(e.request.key, e.digest, len(e.rows)) for e in group if e.request.key is not None)
        for _ in range(_TRIES):
            with self._pinned(request.table) as state:
                self._check_writable(request.table, state)
                dataset = _target([entry.request for entry in group], state, rows.schema)
                image = _prepared(request, dataset, rows)
                if request.mode == "append" and state is not None:
                    self._refuse_held_keys(dataset, state, image)
                try:
                    seq = self._commit(_change(request, dataset, state, keys), image, dataset)
                except LookupError:  # nothing was committed
                    continue
                if state is not None and (request.mode == "replace" or dataset is not state.dataset):
                    self._hot.drop({file.key for file in state.files})
            self._stats.add(writes=len(group), written_rows=len(rows))
            for entry in group:
                entry.told = WriteResult(request.table, len(entry.rows), state is None, seq)
            return
        raise StoreError(f"write to {request.table}: {_TRIES} other commits came first each time; try again")

    def _commit(self, change: Write, image: Image, dataset: Dataset) -> int:
        """Publish *image* and commit *change* with it; ``LookupError`` where the table is not what it was."""
        segment = self._store.publish(dataset, image, "segment", sync=True, tells={"clears": change.replaces})
        try:
            seq = self._store.commit(replace(change, added=(segment,)))
        except LookupError:
            self._store.discard(segment)
            raise
        if self._hot.shares and image.nbytes > _LARGE_BYTES:  # a copy into shared memory, for which no writer need wait
            self._later.submit(self._hot.offer, self._hot.item(segment), image)
        else:
            self._hot.offer(self._hot.item(segment), image)
        return seq

    def close(self) -> None:
        """Return once nothing is under way any more."""
        self._later.shutdown(cancel_futures=True)

    @contextmanager
    def _pinned(self, table: str) -> Iterator[DatasetState | None]:
        if self._store.catalogue.state(table) is None:
            yield None
            return
        with self._store.pinned(table) as state:
            yield state

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


def _together(waiting: deque[_Entry]) -> int:
    """Return how many go together: upserts of the same columns, which replace each other's rows in order."""
    first, size, keys = waiting[0], 0, set()
    for count, entry in enumerate(waiting):
        size += entry.rows.nbytes
        apart = not (first.plain and entry.plain) or entry.rows.schema != first.rows.schema or size > _GROUP_BYTES
        if count and (apart or entry.request.key in keys):  # the same write twice at once: the second finds the first done
            return count
        keys |= {entry.request.key} if entry.request.key is not None else set()
    return len(waiting)


def _target(requests: Sequence[WriteRequest], state: DatasetState | None, schema: pa.Schema) -> Dataset:
    """Return the table as it is after *requests*; the very object of *state* where they do not change it."""
    if state is None:
        dataset = new_dataset(requests[0], schema)
        requests = requests[1:]
    else:
        dataset = state.dataset
    for request in {(each.keys, each.time, each.partition): each for each in requests}.values():
        dataset = matching(request, dataset, schema)
    return dataset


def _change(request: WriteRequest, dataset: Dataset, state: DatasetState | None, keys: tuple[WriteKey, ...]) -> Write:
    same = state is not None and dataset is state.dataset
    rests = state is not None and (request.mode == "append" or not same)  # on its keys, or on its columns
    return Write(
        request.table,
        (),
        None if same else dataset,
        new=state is None,
        replaces=request.mode == "replace",
        expected_generation=state.generation if state is not None and rests else None,
        expected_shape=state.shape if state is not None else None,
        keys=keys,
    )


def _fail(group: list[_Entry], error: BaseException) -> None:
    """Tell *error* to those writers of *group* that have not been told anything; each gets an object of its own."""
    for entry in group:
        if entry.told is None:
            entry.told = copy_of(error) if isinstance(error, Error) else error


def _repeat(entry: _Entry, held: Written) -> None:
    """Tell the writer what the same write did before, or that its key stands for another one."""
    request = entry.request
    if (held.dataset, held.digest) == (request.table, entry.digest):
        entry.told = WriteResult(held.dataset, held.rows, held.created, held.seq)
        return
    entry.told = InvalidRequest(
        f"write to {request.table}: the key {request.key!r:.40} was used for another write, to {held.dataset}; "
        "make up a new one for each write, or leave it out"
    )


def _prepared(request: WriteRequest, dataset: Dataset, rows: pa.Table) -> Image:
    """Return *rows* as they are stored: in the table's columns, in order, each key once; ``InvalidRequest`` else."""
    what = f"write to {dataset.name}"
    table = conform(rows, dataset.schema, InvalidRequest, what, parse=False)
    ordered = strictly_ascends(key_frame(table, dataset.sort_keys))
    if not ordered:
        frame = pl.DataFrame(pl.from_arrow(table))
        if request.mode == "upsert":  # the last row of a key wins, as it would in two writes
            frame = frame.unique(subset=list(dataset.keys), keep="last", maintain_order=True)
        frame = frame.sort(dataset.sort_keys, maintain_order=True)
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest()).cast(dataset.schema)
        check_unique(dataset, table, InvalidRequest, what)
    try:
        return build_image(dataset, table, checked=ordered and dataset.session == dataset.time)
    except ValueError as error:
        raise InvalidRequest(f"{what}: {error}; {dataset.session} must not go back while {dataset.time} goes on") from error


def _decoded(rows: pa.Table) -> pa.Table:
    """Return *rows* with categories as what they stand for: Arrow itself does not decode those that Polars makes."""
    for place, item in enumerate(rows.schema):
        if pa.types.is_dictionary(item.type) and item.type.value_type == pa.string_view():
            chunks = [chunk.dictionary.cast(pa.large_string()).take(chunk.indices) for chunk in rows.column(place).chunks]
            rows = rows.set_column(place, item.with_type(pa.large_string()), pa.chunked_array(chunks, pa.large_string()))
    return rows


def _in_utc(rows: pa.Table) -> pa.Table:
    """Return *rows* with instants that have no time zone taken as UTC, as the write's documentation says."""
    schema = _schema_in_utc(rows.schema)
    return rows if schema is None else rows.cast(schema)


@lru_cache(maxsize=256)
def _schema_in_utc(schema: pa.Schema) -> pa.Schema | None:
    naive = [item for item in schema if pa.types.is_timestamp(item.type) and item.type.tz is None]
    if not naive:
        return None
    fields = [item.with_type(pa.timestamp(item.type.unit, tz="UTC")) if item in naive else item for item in schema]
    return pa.schema(fields)


def check_types(rows: pa.Table) -> None:
    """Refuse what cannot be kept as plain Parquet, and buffers that do not hold what they claim."""
    _check_schema(rows.schema)
    try:
        rows.validate(full=True)
    except pa.ArrowException as error:
        raise InvalidRequest(f"the rows are not valid Arrow data: {str(error).splitlines()[0]}") from error


@lru_cache(maxsize=256)  # whoever writes, writes the same columns again and again
def _check_schema(schema: pa.Schema) -> None:
    for item in schema:
        children = [child.type for child in _children(item.type)]
        if isinstance(item.type, pa.BaseExtensionType) or any(test(item.type) for test in _UNKEPT):
            raise InvalidRequest(f"column {item.name} has type {item.type}, which a table cannot keep; cast it to a plain type")
        if any(test(child) for child in children for test in (*_UNKEPT, pa.types.is_dictionary)):
            raise InvalidRequest(f"column {item.name} nests a {item.type}; unnest it or cast it to plain types")


def _children(kind: pa.DataType) -> list[pa.Field]:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return fields + [deeper for item in fields for deeper in _children(item.type)]

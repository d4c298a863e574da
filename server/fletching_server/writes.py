"""One write: check the rows against the table, order them, store them as a synced segment, commit, acknowledge."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, WriteRequest, WriteResult
from fletching_schemas.errors import CorruptFile, Error, InvalidRequest, StoreError, copy_of
from fletching_server import disk
from fletching_server.admission import check_unique, conform, key_frame, strictly_ascends
from fletching_server.changes import Write, WriteKey
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.evolution import matching, new_dataset
from fletching_server.group_commit import GroupCommit
from fletching_server.history import Written
from fletching_server.hot import HotTier
from fletching_server.image import Image, Window, build_image
from fletching_server.pieces import merge_tables
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store

_TRIES: Final = 20  # a commit that lost a race against another one is prepared again

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


class _Stale(Exception):  # noqa: N818  # what happened, not an error
    """The table is another one than when the write was prepared."""


@dataclass(frozen=True)
class _Entry:
    """One write that waits for its turn: its rows as they came, and as *dataset* stores them.

    *base* is what the table was when this was prepared; None where there was none.
    """

    request: WriteRequest
    rows: pa.Table
    dataset: Dataset
    image: Image
    digest: str
    base: Dataset | None
    done: Future[WriteResult] = field(default_factory=Future)

    @property
    def alone(self) -> bool:
        """Whether it is committed by itself: it looks at what is there, or makes the table another one."""
        return self.request.mode != "upsert" or self.dataset != self.base


class Writes:
    """The write path of one engine: writes into one table that arrive together share a file and its syncs."""

    def __init__(self, store: Store, hot: HotTier, cold: ColdTier, desk: Desk, stats: Stats) -> None:
        self._store, self._hot, self._cold = store, hot, cold
        self._desk, self._stats = desk, stats
        self._lock = threading.Lock()
        self._lines: dict[str, GroupCommit[_Entry]] = {}

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are on stable storage and visible to every later read, all of them or none.

        A write whose key is known has happened already: what it did is returned, and nothing is done.
        """
        check_types(rows)
        entry = self._entry(request, _in_utc(rows))
        with self._lock:
            line = self._lines.setdefault(request.table, GroupCommit(self._settle, _together))
        line.run(entry)
        return entry.done.result()

    def _entry(self, request: WriteRequest, rows: pa.Table) -> _Entry:
        """Return the write as it is stored in the table as it is now."""
        state = self._store.catalogue.state(request.table)
        self._check_writable(request, state)
        dataset = matching(request, state.dataset, rows.schema) if state else new_dataset(request, rows.schema)
        base = state.dataset if state else None
        return _Entry(request, rows, dataset, _prepared(request, dataset, rows), _digest(request, rows), base)

    def _check_writable(self, request: WriteRequest, state: DatasetState | None) -> None:
        source = self._desk.source(request.table)
        if source or (state and not state.is_table):
            raise InvalidRequest(
                f"{request.table} is filled from source {source.name if source else state and state.source}; "
                "write to a table of your own"
            )

    # A group of writes, in the thread of the one that leads it

    def _settle(self, group: list[_Entry]) -> None:
        """Store *group*, and tell each of its writers what became of it."""
        try:
            left = self._unrepeated(group)
            if left:
                seq, created = self._stored(left)
                self._tell(left, seq, created=created)
        except _Stale:
            for entry in left:  # the table changed after it was looked at
                self._settle_again(entry)
        except BaseException as error:  # noqa: BLE001  # each writer gets it
            _fail(group, error)

    def _settle_again(self, entry: _Entry) -> None:
        """Store *entry* by itself, on the table as it is now: nobody else writes meanwhile, but folds and deletions happen."""
        try:
            for _ in range(_TRIES):
                renewed = replace(self._entry(entry.request, entry.rows), done=entry.done)
                with suppress(_Stale):
                    seq, created = self._stored([renewed])
                    self._tell([renewed], seq, created=created)
                    return
            raise StoreError(f"write to {entry.request.table}: {_TRIES} other commits came first each time; try again")
        except BaseException as error:  # noqa: BLE001  # its writer gets it
            _fail([entry], error)

    def _unrepeated(self, group: list[_Entry]) -> list[_Entry]:
        """Return the writes of *group* that have not happened yet; the others are told what they did."""
        done = self._store.catalogue.written([entry.request.key for entry in group if entry.request.key is not None])
        for entry in group:
            if (held := done.get(entry.request.key or "")) is not None:
                _repeat(entry, held)
        return [entry for entry in group if not entry.done.done()]

    def _tell(self, group: list[_Entry], seq: int, *, created: bool) -> None:
        self._stats.add(writes=len(group), written_rows=sum(entry.rows.num_rows for entry in group))
        for entry in group:
            entry.done.set_result(WriteResult(entry.request.table, entry.rows.num_rows, created, seq))

    def _stored(self, group: list[_Entry]) -> tuple[int, bool]:
        """Write the rows of *group* as one segment and commit it; return the commit, and whether the table is new.

        ``_Stale`` where the table is not what the group was prepared for.
        """
        request, dataset, base = group[0].request, group[0].dataset, group[0].base
        with self._pinned(request.table) as state:
            if (state and state.dataset) != base:
                raise _Stale
            if request.mode == "append" and state is not None:
                self._refuse_held_keys(dataset, state, group[0].image)
            image = group[0].image if len(group) == 1 else _merged(dataset, group)
            segment = self._store.publish(dataset, image, "segment", sync=True)
            rests = state is not None and (request.mode == "append" or dataset != base)  # on its keys, or on its columns
            change = Write(
                request.table,
                (segment,),
                None if dataset == base else dataset,
                new=state is None,
                replaces=request.mode == "replace",
                expected_generation=state.generation if state is not None and rests else None,
                keys=tuple(WriteKey(e.request.key, e.digest, e.rows.num_rows) for e in group if e.request.key is not None),
            )
            seq = self._commit(change, segment)
            if state is not None and (change.replaces or change.definition is not None):
                self._hot.drop({file.key for file in state.files})
        self._hot.offer(segment.id, image)
        return seq, state is None

    def _commit(self, change: Write, segment: StoredFile) -> int:
        try:
            return self._store.commit(change)
        except LookupError as error:  # nothing was committed
            self._store.discard(segment)
            raise _Stale from error

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
    """Return how many go together: upserts into the same columns, which replace each other's rows in order."""
    first, size, keys = waiting[0], 0, set()
    for count, entry in enumerate(waiting):
        size += entry.image.nbytes
        apart = first.alone or entry.alone or entry.dataset != first.dataset or size > _GROUP_BYTES
        if count and (apart or entry.request.key in keys):  # the same write twice at once: the second finds the first done
            return count
        keys |= {entry.request.key} if entry.request.key is not None else set()
    return len(waiting)


def _merged(dataset: Dataset, group: list[_Entry]) -> Image:
    return build_image(dataset, merge_tables(dataset, [entry.image.table for entry in group]))


def _fail(group: list[_Entry], error: BaseException) -> None:
    """Tell *error* to those writers of *group* that have not been told anything; each gets an object of its own."""
    for entry in group:
        if not entry.done.done():
            entry.done.set_exception(copy_of(error) if isinstance(error, Error) else error)


def _repeat(entry: _Entry, held: Written) -> None:
    """Tell the writer what the same write did before, or that its key stands for another one."""
    request = entry.request
    if (held.dataset, held.digest) == (request.table, entry.digest):
        entry.done.set_result(WriteResult(held.dataset, held.rows, held.created, held.seq))
        return
    entry.done.set_exception(
        InvalidRequest(
            f"write to {request.table}: the key {request.key!r:.40} was used for another write, to {held.dataset}; "
            "make up a new one for each write, or leave it out"
        )
    )


def _prepared(request: WriteRequest, dataset: Dataset, rows: pa.Table) -> Image:
    """Return *rows* as they are stored: in the table's columns, in order, each key once; ``InvalidRequest`` else."""
    what = f"write to {dataset.name}"
    table = conform(rows, dataset.schema, InvalidRequest, what)
    keys = key_frame(table, dataset.sort_keys)
    if not strictly_ascends(keys):
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


def _digest(request: WriteRequest, rows: pa.Table) -> str:
    """Return what a key stands for: table, mode and rows, however these are divided into chunks."""
    told = [request.table, request.mode, rows.num_rows, *rows.schema.names]
    numbers = pl.DataFrame(pl.from_arrow(rows)).hash_rows(seed=0).to_numpy()
    return disk.digest(json.dumps(told).encode() + numbers.tobytes())


def _in_utc(rows: pa.Table) -> pa.Table:
    """Return *rows* with instants that have no time zone taken as UTC, as the write's documentation says."""
    fields = [
        item.with_type(pa.timestamp(item.type.unit, tz="UTC"))
        if pa.types.is_timestamp(item.type) and item.type.tz is None
        else item
        for item in rows.schema
    ]
    return rows.cast(pa.schema(fields))


def check_types(rows: pa.Table) -> None:
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

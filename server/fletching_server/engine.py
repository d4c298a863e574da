"""The engine: one object over one store, and the verbs of the interface. No logic lives here."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from fletching_schemas import Action, Dataset, PartRequest, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.errors import InvalidRequest, ServerClosing
from fletching_schemas.requests import is_system
from fletching_server.actions import Actions
from fletching_server.answering import Answer
from fletching_server.assembly import Parts, assembled
from fletching_server.clock import Clock, SystemClock
from fletching_server.settings import Settings
from fletching_server.sources import Source


class Engine:
    """One cache over one store, safe to use from any thread. Close it; it is a context manager.

    Raises ``StoreInUse``, ``StoreVersion``, ``StoreUnwritable`` or ``StoreError`` where the store cannot be opened, and
    ``InvalidRequest`` where two sources offer the same dataset. With *shares* what lies in memory lies there so that other
    processes can map it, which takes a copy when it is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source] = (),
        clock: Clock | None = None,
        *,
        recover: bool = True,
        shares: bool = False,
    ) -> None:
        self.settings = settings
        self.planes: dict[str, dict[str, Any]] = {}  # where else it can be asked: its edges write, ``health`` tells
        self.clock = clock or SystemClock()
        self._closed = False
        with ExitStack() as opened:
            self._show(assembled(settings, sources, self.clock, opened, recover=recover, shares=shares))
            self._closing = opened.pop_all()
        atexit.register(self.close)  # a notebook that never closes its cache still ends in order

    def _show(self, parts: Parts) -> None:
        """Keep the parts: those that the verbs need, and those that the edges and the commands look at."""
        ground, upstream, read_path, housekeeping = parts.ground, parts.upstream, parts.read_path, parts.housekeeping
        self.stats, self.calendars, self.store, self.access = ground.stats, ground.calendars, ground.store, ground.access
        self.hot, self.cold, self.system = ground.hot, ground.cold, ground.system
        self.desk, self.quarantine, self.tracking = upstream.desk, upstream.quarantine, read_path.tracking
        self.warmer, self.evidence = parts.ahead.warmer, parts.ahead.evidence
        self.quota, self.scrubber, self.hot_list = housekeeping.quota, housekeeping.scrubber, housekeeping.hot_list
        self._reads, self._filtered, self._writes = read_path.reads, read_path.filtered, parts.write_path.writes
        self._parts, self._actions = parts, Actions(parts, self.planes)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerClosing("the cache is closed; open it again")

    # The verbs

    def read(self, request: ReadRequest | PartRequest, plane: str = "embedded", principal: str = "") -> Answer:
        """Return the answer to *request*; its rows move as it is read. See ``Reads.read``."""
        self._check_open()
        self.evidence.look()
        if isinstance(request, PartRequest):
            return self._reads.read(request, plane, principal, request.read)
        if is_system(request.dataset):
            return self.system.read(request, plane)
        return self._filtered.read(request, plane, principal)

    def parts(self, request: ReadRequest, most: int) -> list[PartRequest]:
        """Return the parts in which the answer to *request* may be read side by side; none where it is better read whole."""
        self._check_open()
        plain = all(asked is None for asked in (request.adjust, request.where, request.limit, request.as_of))
        plain = plain and not is_system(request.dataset)
        most = min(most, self.settings.most_endpoints)
        return self._reads.parts(replace(request, progress_id=None), most) if most > 1 and plain else []

    def names(self) -> list[str]:
        """Return the names of all datasets, sorted."""
        return [state.dataset.name for state in self.store.catalogue.states()]

    def schema(self, dataset: str) -> Dataset:
        """Return what *dataset* promises; ``UnknownDataset`` names what there is."""
        return self.system.dataset(dataset) if is_system(dataset) else self.store.state(dataset).dataset

    def describe(self, request: ReadRequest) -> tuple[pa.Schema, int]:
        """Return the schema of the answer to *request*, and how many rows it will have (-1: only reading can tell)."""
        self._check_open()
        return (self.system.plan(request).schema, -1) if is_system(request.dataset) else self._filtered.describe(request)

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are durable. See ``Writes.write``."""
        self._check_open()
        if rows.nbytes > self.settings.max_write_bytes:
            raise InvalidRequest(
                f"a write of {rows.nbytes:,} bytes; at most {int(self.settings.max_write_bytes):,} (max_write_bytes): "
                "write in parts"
            )
        return self._writes.write(request, rows)

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers: a table for ``TABLE_ACTIONS``, a JSON object for the others."""
        self._check_open()
        return self._actions.act(action, body)

    def verify(self) -> list[str]:
        """Return what is wrong with the store and with the books in memory; an empty list is the good answer."""
        return self._actions.problems()

    def close(self) -> None:
        """Stop filling and folding, and give the store back; a second call does nothing."""
        self._closed = True
        atexit.unregister(self.close)
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

"""Looking in from outside: tables of datasets and coverage, what a read would do, counters and health."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from fletching_schemas import ReadRequest
from fletching_schemas.datasets import TIMESTAMP
from fletching_server.almanac import Calendars
from fletching_server.calendars import from_day_number
from fletching_server.clock import Clock
from fletching_server.desk import Desk
from fletching_server.gaps import World, fetch_requests, sweepable, unknown
from fletching_server.hot import HotTier
from fletching_server.plan import held_symbols, resolve
from fletching_server.reads import Reads
from fletching_server.snapshot import DatasetState
from fletching_server.spans import UNCONFIRMED, Span, overlapping
from fletching_server.stats import Stats
from fletching_server.store import Store
from fletching_server.telling import told_gaps

_DATASETS = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("calendar", pa.string()),
        ("period", pa.string()),
        ("keys", pa.string()),
        ("symbols", pa.int64()),
        ("rows", pa.int64()),
        ("disk_bytes", pa.int64()),
        ("hot_bytes", pa.int64()),
        ("files", pa.int64()),
        ("first", pa.date32()),
        ("last", pa.date32()),
        ("description", pa.string()),
    ]
)
_COVERAGE = pa.schema(
    [
        ("symbol", pa.string()),
        ("first", pa.date32()),
        ("last", pa.date32()),
        ("sessions", pa.int64()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("fetched_at", TIMESTAMP),
    ]
)


class Inspection:
    """What one engine tells about itself."""

    def __init__(
        self, store: Store, hot: HotTier, reads: Reads, desk: Desk, calendars: Calendars, clock: Clock, stats: Stats
    ) -> None:
        self._store, self._hot, self._reads, self._desk = store, hot, reads, desk
        self._calendars, self._clock, self._stats = calendars, clock, stats
        self._started = clock.now()

    def datasets(self) -> pa.Table:
        """Return a row per dataset: what it is, how much is held where, and which sessions; days are sessions."""
        return pa.Table.from_pylist([self._dataset_row(state) for state in self._store.catalogue.states()], _DATASETS)

    def _dataset_row(self, state: DatasetState) -> dict[str, Any]:
        dataset, files = state.dataset, state.files
        filled = [file for file in files if file.rows]
        return {
            "name": dataset.name,
            "kind": "table" if state.is_table else "sourced",
            "source": state.source,
            "calendar": dataset.calendar,
            "period": dataset.period,
            "keys": ", ".join(dataset.keys),
            "symbols": len(held_symbols(state)),
            "rows": sum(file.rows for file in files),
            "disk_bytes": sum(file.bytes for file in files),
            "hot_bytes": sum(file.memory_bytes for file in files if self._hot.holds(file.key)),
            "files": len(files),
            "first": from_day_number(min(file.first_day for file in filled)) if filled else None,
            "last": from_day_number(max(file.last_day for file in filled)) if filled else None,
            "description": dataset.description,
        }

    def coverage(self, request: ReadRequest) -> pa.Table:
        """Return what is known about each run of sessions in the range: *final*, *provisional*, *empty* or *missing*."""
        state = self._store.state(request.dataset)
        calendar = self._calendars.get(state.dataset.calendar)
        # Looking asks nobody: without symbols it tells of those of which anything is known.
        plan = resolve(request, state, World(calendar, self._clock.now(), None, fillable=True))
        absent = unknown(plan.gaps, state, calendar)
        rows = []
        for symbol in plan.symbols:
            spans: list[Span] = overlapping(state.coverage.get(symbol, ()), plan.wanted)
            missing = [Span(*run, "missing", "", 0.0) for run in absent.get(symbol, ())]  # type: ignore[arg-type]
            rows += [
                {
                    "symbol": symbol,
                    "first": from_day_number(span.first),
                    "last": from_day_number(span.last),
                    "sessions": len(calendar.between(span.first, span.last)),
                    "state": "provisional" if span.state == UNCONFIRMED else span.state,
                    "reason": span.reason or None,
                    "fetched_at": int(span.fetched_at * 1e6) if span.fetched_at else None,
                }
                for span in sorted([*spans, *missing])
            ]
        return pa.Table.from_pylist(rows, _COVERAGE)

    def explain(self, request: ReadRequest) -> dict[str, Any]:
        """Return what a read would do now, without doing it: files and tiers, gaps, and the calls they would cost."""
        plan, files = self._reads.explain(request)
        state = self._reads.pictures.picture(request)
        source = None if request.as_of is not None else self._desk.source(request.dataset)
        sweep = sweepable(state.dataset, plan.calendar, self._clock.now())
        calls = fetch_requests(state.dataset, plan.gaps, sweep) if source else []
        gaps = told_gaps(plan, state, "missing")
        return {
            "dataset": request.dataset,
            "generation": state.generation,
            "columns": plan.schema.names,
            "symbols": len(plan.symbols),
            "first": from_day_number(plan.window.first_day).isoformat(),
            "last": from_day_number(plan.window.last_day).isoformat(),
            "files": [
                {"path": file.path, "kind": file.kind, "tier": tier, "rows": file.rows, "bytes": file.memory_bytes}
                for file, tier in files
            ],
            "upstream_calls": [str(call) for call in calls],
            "source": source.name if source else None,
            "gaps": [str(gap) for gap in gaps[:100]],
            "gaps_omitted": max(0, len(gaps) - 100),
        }

    def stats(self) -> dict[str, Any]:
        """Return counters since the start, memory and disk in bytes, times in seconds or, where named so, ms."""
        states = self._store.catalogue.states()
        return {
            **self._stats.snapshot(),
            **self._hot.facts(),
            **self._desk.facts(),
            **self._desk.guard.facts(),
            "disk_bytes": self._store.disk_bytes(),
            "history_bytes": self._store.history_bytes(),
            "datasets": len(states),
            "files": sum(len(state.files) for state in states),
            "arrow_bytes": pa.total_allocated_bytes(),
        }

    def health(self) -> dict[str, Any]:
        """Return that it serves, since when, what and from where."""
        return {
            "status": "serving",
            "version": version("fletching"),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "uptime_seconds": (self._clock.now() - self._started).total_seconds(),
            "process": os.getpid(),
            "store": str(self._store.root),
            "sources": self._desk.names(),
            "datasets": [state.dataset.name for state in self._store.catalogue.states()],
        }

"""Filtered and limited reads: the request narrowed to what the filter reaches, and the rest of the filter on the way out.

A filter on all symbols is not a list of symbols that somebody names: what it says of symbols that do not exist, or are written
in another notation, is that no row is wanted, and that is no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fletching_schemas import ReadInfo, ReadRequest
from fletching_schemas.errors import SourceError
from fletching_server.adjusted import AdjustedReads
from fletching_server.almanac import Calendars
from fletching_server.answering import Answer
from fletching_server.calendars import from_day_number
from fletching_server.clock import Clock
from fletching_server.desk import Desk
from fletching_server.filtering import check_filter, filter_columns, filtered
from fletching_server.narrowing import Narrowed, narrow
from fletching_server.progress import Progress
from fletching_server.reading import Reading
from fletching_server.reads import Reads
from fletching_server.snapshot import DatasetState
from fletching_server.store import Store


class FilteredReads:
    """The read path of one engine as its edges see it: raw or adjusted, then filtered and limited."""

    def __init__(
        self, store: Store, reads: Reads, adjusted: AdjustedReads, desk: Desk, calendars: Calendars, clock: Clock
    ) -> None:
        self._store, self._reads, self._adjusted, self._desk = store, reads, adjusted, desk
        self._calendars, self._clock = calendars, clock

    def read(self, request: ReadRequest, plane: str, principal: str = "") -> Answer:
        """Return the answer to *request*. See ``Reads.read``.

        With a filter or a limit ``ReadInfo.rows`` and ``bytes`` count the rows of the answer, ``tiers`` those that were looked
        at for them. A limit ends the answer early; gaps are closed before, as without it. Raises ``UnknownColumn`` and
        ``InvalidRequest`` where the filter does not suit the dataset.
        """
        if request.where is None and request.limit is None:
            return self._unfiltered(request, plane, principal, request)
        narrowed = self.narrowed(request)
        if narrowed.nothing:
            return self._nothing(request, narrowed.request, plane, principal)
        inner, schema = narrowed.request, self._reads.pictures.picture(request).dataset.project(request.columns)
        if inner.columns is not None and narrowed.rest is not None:
            inner = replace(inner, columns=tuple(dict.fromkeys((*inner.columns, *filter_columns(narrowed.rest)))))
        raw = self._unfiltered(inner, plane, principal, request)
        if narrowed.rest is None and request.limit is None:
            return raw
        return _selected(raw, narrowed, request.limit, schema)

    def _unfiltered(self, request: ReadRequest, plane: str, principal: str, demand: ReadRequest) -> Answer:
        return (self._reads if request.adjust is None else self._adjusted).read(request, plane, principal, demand)

    def _nothing(self, demand: ReadRequest, request: ReadRequest, plane: str, principal: str) -> Answer:
        """Return an answer without rows, after the checks that any other answer would have passed."""
        if request.adjust is not None:
            self._adjusted.explain(request)
        plan, _ = self._reads.explain(replace(request, on_miss="cached", adjust=None, adjust_ref=None))
        info, held = ReadInfo(request.dataset, plane), ExitStack()
        reading = Reading(info, self._clock.monotonic(), Progress(), self._clock.now(), principal, demand=demand)
        held.callback(self._reads.finish, reading, request, replace(plan, files=()))
        return Answer(plan.schema, plan.schema.empty_table(), info, held, 1, plan, reading=reading)

    def describe(self, request: ReadRequest) -> tuple[pa.Schema, int]:
        """Return the schema of the answer to *request*, and how many rows it will have (-1: only reading can tell)."""
        if request.where is None and request.limit is None:
            return self._reads.describe(request)
        schema, _ = self._reads.describe(self.narrowed(request).request)
        return schema, -1

    # Narrowing

    def narrowed(self, request: ReadRequest) -> Narrowed:
        """Return what is read for *request*, and what is left of its filter."""
        if request.where is None:
            return Narrowed(replace(request, limit=None))
        state = self._reads.pictures.picture(request)
        dataset = state.dataset
        dataset.project(request.columns)
        check_filter(request.where, dataset)
        calendar = self._calendars.get(dataset.calendar)
        found = narrow(request, dataset, calendar, self._clock.now(), is_table=state.is_table)
        if found.nothing:
            return found
        inner = found.request
        if found.listed is not None:
            there = self._there(request, state, found.listed)
            if not there:
                return Narrowed(inner, nothing=True)
            inner = replace(inner, symbols=tuple(sorted(there)))
        return replace(found, request=self._with_reference(request, inner))

    def _there(self, request: ReadRequest, state: DatasetState, symbols: frozenset[str]) -> frozenset[str]:
        """Return those of *symbols* that a read of all symbols would have."""
        held = symbols.intersection(state.symbols)
        if state.is_table or request.on_miss == "cached" or self._desk.source(request.dataset) is None:
            return held
        known = symbols.issubset(state.coverage)
        if known and self._desk.lists_at_a_cost(request.dataset):
            return symbols
        try:
            listed = self._desk.listed(request.dataset)
        except SourceError:
            if request.on_miss == "fill" and not known:
                raise
            return held
        if listed is None:  # nobody can tell: they are asked for by name
            return symbols if request.on_miss == "fill" else held
        return symbols & listed

    def _with_reference(self, request: ReadRequest, inner: ReadRequest) -> ReadRequest:
        """Return *inner* with the reference session that *request* has: without one it is the last of the whole range."""
        if request.adjust != "qfq" or request.adjust_ref is not None or inner.end == request.end:
            return inner
        whole = replace(inner, start=request.start, end=request.end, on_miss="cached", adjust=None)
        plan, _ = self._reads.explain(whole)
        return replace(inner, adjust_ref=from_day_number(plan.wanted.last))

    @staticmethod
    def told(request: ReadRequest, narrowed: Narrowed) -> dict[str, Any]:
        """Return what explaining *request* adds: the range and symbols taken from its filter, the rest, and the limit."""
        if request.where is None and request.limit is None:
            return {}
        inner = narrowed.request
        taken = {
            "symbols": None if inner.symbols == request.symbols else list(inner.symbols or ())[:100],
            "start": None if inner.start == request.start or inner.start is None else inner.start.isoformat(),
            "end": None if inner.end == request.end or inner.end is None else inner.end.isoformat(),
        }
        rest = None if narrowed.rest is None else str(narrowed.rest)
        found: dict[str, Any] = {"narrowed": taken, "filter": rest, "limit": request.limit, "nothing": narrowed.nothing}
        if narrowed.nothing:
            found |= {"symbols": 0, "files": [], "upstream_calls": [], "gaps": [], "gaps_omitted": 0}
        return found


def _selected(raw: Answer, narrowed: Narrowed, limit: int | None, schema: pa.Schema) -> Answer:
    """Return the answer that has of *raw* what the rest of the filter wants, up to *limit*; it ends when that is reached."""
    info = raw.info
    if raw.whole is not None and narrowed.rest is None:
        rows = raw.whole.slice(0, limit)
        share = rows.num_rows / max(raw.whole.num_rows, 1)
        info.rows, info.bytes = rows.num_rows, round(info.bytes * share)
        return Answer(schema, rows, info, raw.held, raw.batch_rows, raw.plan, reading=raw.reading)
    tally = _Tally()
    raw.held.callback(tally.tell, info)  # before the read is counted as ended: what was begun last ends first
    rows_left = tally.counting(filtered(raw, narrowed.rest, limit, schema))
    return Answer(schema, rows_left, info, raw.held, raw.batch_rows, raw.plan, reading=raw.reading)


class _Tally:
    """How many rows and bytes an answer has."""

    def __init__(self) -> None:
        self._rows = self._bytes = 0

    def counting(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield *batches*, counted."""
        for batch in batches:
            self._rows += batch.num_rows
            self._bytes += batch.nbytes
            yield batch

    def tell(self, info: ReadInfo) -> None:
        """Put what was counted into *info*."""
        info.rows, info.bytes = self._rows, self._bytes

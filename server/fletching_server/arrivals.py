"""What a source's answer goes through: asked, checked, compared with what was held, written, and committed with its facts.

An answer that fails a check is not stored: it is kept aside for somebody to look at, and nothing is learned from it. Settled
rows that come back changed are recorded with both values, and what is served then is the dataset's rule.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import structlog

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import BadSourceData, SourceError
from fletching_server.admission import admit_fetched
from fletching_server.almanac import Calendars
from fletching_server.calendars import Calendar, day_number
from fletching_server.changes import Fill
from fletching_server.clock import Clock
from fletching_server.coverage import Circumstances, facts_of_fill
from fletching_server.desk import Desk
from fletching_server.gathering import Gathering
from fletching_server.hot import HotTier
from fletching_server.image import Image, build_image
from fletching_server.quarantine import Quarantine
from fletching_server.restatement import Comparison, compare, kept
from fletching_server.snapshot import DatasetState, Fact, StoredFile
from fletching_server.spans import FINAL, UNCONFIRMED, Days, Span, overlapping
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store
from fletching_server.uses import Uses

log = structlog.get_logger(__name__)

_TO_COME: Final = "?"  # in place of the id of a file that is not written yet
_TOLD: Final = ("function", "arguments", "version", "unit_check")
_MOST_TOLD: Final = 4000


@dataclass(frozen=True)
class Errand:
    """One call to make: what is asked, for whom, and whether anybody waits for it.

    What is fetched *early*, because somebody is expected to ask, lies on disk until then and takes nobody's memory.
    """

    request: FetchRequest
    principal: str = ""
    background: bool = False
    early: bool = False

    @property
    def days(self) -> Days:
        """The asked sessions as day numbers."""
        return Days(day_number(self.request.start), day_number(self.request.end))

    def part(self, symbols: Sequence[str]) -> Errand:
        """Return the same errand for some of its symbols."""
        return replace(self, request=replace(self.request, symbols=tuple(symbols)))


class Arrivals:
    """Fetches, and stores what arrives."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        gathering: Gathering,
        desk: Desk,
        calendars: Calendars,
        clock: Clock,
        stats: Stats,
        quarantine: Quarantine,
        uses: Uses,
    ) -> None:
        self._store, self._hot, self._gathering, self._desk = store, hot, gathering, desk
        self._calendars, self._clock, self._stats = calendars, clock, stats
        self._quarantine, self._uses = quarantine, uses

    def bring(self, errand: Errand) -> int:
        """Return how many rows came, once they are stored together with what was learned; raises the source's error otherwise."""
        request, dataset = errand.request, self._desk.offers[errand.request.dataset]
        started, asked_at = self._clock.monotonic(), self._clock.now()
        self._stats.add(upstream_calls=1)
        answer = self._desk.fetch(request, background=errand.background)
        fetched = self._clock.monotonic()
        self._uses.filled(dataset.name, fetched - started)
        source = self._desk.source(request.dataset)
        provider = source.name if source else ""
        calendar = self._calendars.get(dataset.calendar)
        try:
            image = admit_fetched(dataset, answer, request, provider, calendar)
            self._store_answer(errand, dataset, calendar, image, provider, asked_at, _told(answer))
        except BadSourceData as error:
            self._quarantine.keep(request, answer, error)
            raise
        rows: int = image.table.num_rows
        stored = self._clock.monotonic()
        self._stats.add(filled_rows=rows, fetch_seconds=fetched - started, store_seconds=stored - fetched)
        return rows

    def _store_answer(
        self,
        errand: Errand,
        dataset: Dataset,
        calendar: Calendar,
        image: Image,
        provider: str,
        at: datetime,
        told: Mapping[str, str | None],
    ) -> None:
        """Write the segment first, then one commit that holds it together with its coverage."""
        request, state = errand.request, self._store.state(errand.request.dataset)
        image, seen = self._compared(errand, dataset, image)
        circumstances = Circumstances(
            calendar,
            at,
            {symbol: state.coverage.get(symbol, ()) for symbol in request.symbols},
            self._lives(request),
            self._existing(request),
            _confirmed(errand, state, seen, calendar.settled_through(at)),
        )
        facts = facts_of_fill(dataset, image, request, circumstances, _TO_COME)
        if _is_sweep(dataset, request):
            facts += self._carried(errand, dataset, calendar, image, at)
        told_of_file = {"source": state.source, "coverage": [fact.told() for fact in facts]}
        segment = self._segment(dataset, image, request, state, told_of_file)
        resting = segment.id if segment else None
        facts = tuple(replace(fact, file=resting) if fact.file == _TO_COME else fact for fact in facts)
        fill_id = segment.id if segment else uuid.uuid4().hex
        self._store.commit(
            Fill(
                dataset.name,
                fill_id,
                segment,
                facts,
                calendar.adjacent,
                provider,
                at.timestamp(),
                errand.days,
                request.symbols,
                told,
                seen.changes,
                seen.count,
                dataset.restatement,
            )
        )
        if segment and not errand.early:
            self._hot.offer(self._hot.item(segment), image)

    def _segment(
        self, dataset: Dataset, image: Image, request: FetchRequest, state: DatasetState, tells: Mapping[str, Any]
    ) -> StoredFile | None:
        """Return the published file; without rows there is one only where it says that those held are no more."""
        if dataset.accumulates:
            return self._store.publish(dataset, image, "segment", sync=False, tells=tells) if image.table.num_rows else None
        days = Days(day_number(request.start), day_number(request.end))
        replaces = any(
            file.rows and file.reach.first <= days.last and file.reach.last >= days.first and file.share_of(request.symbols)
            for file in state.files
        )
        if not image.table.num_rows and not replaces:
            return None
        return self._store.publish(dataset, image, "segment", sync=False, asked=request, tells=tells)

    # Looking at settled cells for the second time

    def _compared(self, errand: Errand, dataset: Dataset, image: Image) -> tuple[Image, Comparison]:
        """Return the image to store and how it differs from what was held of settled cells."""
        with ExitStack() as held:
            state = held.enter_context(self._store.pinned(dataset.name))
            settled = {} if dataset.accumulates else _settled(errand, state)
            if not settled:
                return image, Comparison()
            try:
                before = self._gathering.rows(state, sorted(settled), errand.days)
            except DamagedFile:  # the next read of it mends it; there is nothing to compare with
                return image, Comparison()
        seen = compare(dataset, before, image.table, settled)
        if not seen.count:
            return image, seen
        self._stats.add(restated_rows=seen.count)
        log.warning("settled rows were restated", request=str(errand.request), rows=seen.count, rule=dataset.restatement)
        if dataset.restatement == "refuse":
            raise BadSourceData(
                f"{errand.request}: {seen.count} settled rows came back with other values, first {seen.changes[0].key}: "
                f"{seen.changes[0].before} became {seen.changes[0].after}; this dataset refuses restatements, so those held stay"
            )
        if dataset.restatement == "keep":
            return build_image(dataset, kept(dataset, before, image.table, settled)), seen
        return image, seen

    def _carried(self, errand: Errand, dataset: Dataset, calendar: Calendar, image: Image, at: datetime) -> tuple[Fact, ...]:
        """Return what a sweep confirms of the session before: each bar carries the close that it follows.

        Where that differs from what is held there was a split, a dividend or a correction: such a cell waits for its own look.
        """
        session = calendar.back(errand.days.first, 2)
        if "pre_close" not in dataset.schema.names or not calendar.knows(np.array([session])).all():
            return ()
        with self._store.pinned(dataset.name) as state:
            waiting = [symbol for symbol in image.symbols if _waits(state, symbol, session)]
            try:
                held = self._gathering.rows(state, waiting, Days(session, session))
            except DamagedFile:
                return ()
        names = [dataset.symbol, "close"]
        before = dict(zip(*(held[name].to_pylist() for name in names), strict=True))
        told = dict(zip(*(image.table[name].to_pylist() for name in (dataset.symbol, "pre_close")), strict=True))
        span = Span(session, session, FINAL, "", at.timestamp())
        return tuple(
            Fact(symbol, span, None) for symbol in waiting if before.get(symbol) is not None and before[symbol] == told[symbol]
        )

    def _existing(self, request: FetchRequest) -> Collection[str]:
        """Return the symbols that the source lists, where it has told already."""
        return self._desk.known_listing(request.dataset) or frozenset()

    def _lives(self, request: FetchRequest) -> Mapping[str, Any]:
        try:
            return self._desk.lives(request.dataset)
        except SourceError:  # reasons become less precise, nothing else
            return {}


def _is_sweep(dataset: Dataset, request: FetchRequest) -> bool:
    return len(request.symbols) > dataset.symbols_per_call and request.start == request.end


def _waits(state: DatasetState, symbol: str, session: int) -> bool:
    """Return whether rows of *session* are held that have been seen once."""
    spans = overlapping(state.coverage.get(symbol, ()), Days(session, session))
    return any(span.state == UNCONFIRMED and not span.reason for span in spans)


def _settled(errand: Errand, state: DatasetState) -> dict[str, list[Days]]:
    """Return the asked cells of each symbol that had settled when they were fetched before."""
    settled = {}
    for symbol in errand.request.symbols:
        spans = overlapping(state.coverage.get(symbol, ()), errand.days)
        if runs := [Days(span.first, span.last) for span in spans if span.state in {FINAL, UNCONFIRMED}]:
            settled[symbol] = runs
    return settled


def _confirmed(errand: Errand, state: DatasetState, seen: Comparison, last: int) -> frozenset[str]:
    """Return the symbols whose last settled session was held and came back as it was."""
    cell = Days(last, last)
    return frozenset(
        symbol
        for symbol in errand.request.symbols
        if any(span.state == UNCONFIRMED for span in overlapping(state.coverage.get(symbol, ()), cell))
        and not seen.changed(symbol, last)
    )


def _told(answer: pa.Table) -> dict[str, str | None]:
    """Return what the source says about its answer, as far as it is well-formed: it is a record, never acted upon."""
    raw = (answer.schema.metadata or {}).get(b"provenance") if isinstance(answer, pa.Table) else None
    try:
        told = json.loads(raw) if raw and len(raw) <= _MOST_TOLD else {}
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        return {}
    texts = {name: told[name] for name in _TOLD if told.get(name) is not None}
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in texts.items()}

"""Closing gaps: every missing cell is fetched once, however many ask, and kept together with what that taught us.

A *flight* is one call to a source for some symbols and a run of sessions. Whoever needs a cell that is on a flight joins
it; the rest is flown. The look at the present coverage happens under the same lock as joining, because of this order of
events: A plans and sees a gap; B's flight lands and leaves the board; A finds no flight to join. Without looking again A
would fetch what B has just stored.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import Error, InternalError, ServerClosing
from fletching_server.admission import admit_fetched
from fletching_server.calendars import Calendars, day_number
from fletching_server.changes import Fill
from fletching_server.clock import Clock
from fletching_server.coverage import facts_of_fill
from fletching_server.desk import Desk
from fletching_server.hot import HotTier
from fletching_server.plan import Gaps, earliest_day, fetch_requests, share_of, uncovered
from fletching_server.snapshot import DatasetState
from fletching_server.spans import Days, missing
from fletching_server.stats import Stats
from fletching_server.store import Store

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class _Flight:
    request: FetchRequest
    days: Days
    landed: Future[None] = field(default_factory=Future)


class Fills:
    """The flights of one engine."""

    def __init__(
        self, store: Store, hot: HotTier, desk: Desk, calendars: Calendars, clock: Clock, stats: Stats, concurrency: int
    ) -> None:
        self._store, self._hot, self._desk, self._calendars, self._clock, self._stats = (
            store,
            hot,
            desk,
            calendars,
            clock,
            stats,
        )
        self._lock = threading.Lock()
        self._board: dict[tuple[str, str], list[_Flight]] = defaultdict(list)
        # A pool per source: one that hangs must not keep another's calls waiting.
        self._pools = {
            name: ThreadPoolExecutor(desk.calls_at_once(name, concurrency), thread_name_prefix=f"fill-{name}")
            for name in desk.names()
        }

    def close_gaps(self, state: DatasetState, gaps: Gaps, oldest: float) -> tuple[int, int]:
        """Return (calls made, calls joined) once all *gaps* are filled; the first failure is raised, and never kept."""
        own, joined = self._embark(state.dataset, gaps, oldest)
        for flight in own:
            self._launch(flight)
        for flight in (*own, *joined):
            _wait(flight)
        return len(own), len(joined)

    def _launch(self, flight: _Flight) -> None:
        try:
            self._pools[self._provider(flight)].submit(self._fly, flight)
        except RuntimeError:  # the pool takes no more; whoever waits is told
            self._land(flight, ServerClosing("the cache is closing; nothing more is fetched"))

    def _embark(self, dataset: Dataset, gaps: Gaps, oldest: float) -> tuple[list[_Flight], list[_Flight]]:
        """Return the flights to make and those to join; afterwards every gap is on the board or covered."""
        calendar = self._calendars.get(dataset.calendar)
        joined: dict[int, _Flight] = {}
        with self._lock:
            left: dict[str, list[Days]] = {}
            coverage = self._store.state(dataset.name).coverage
            for symbol, run in _each(gaps):
                flying = [f for f in self._board.get((dataset.name, symbol), ()) if _overlap(f.days, run)]
                joined |= {id(flight): flight for flight in flying}
                absent = missing(coverage.get(symbol, ()), run, oldest)
                if runs := [days for part in absent for days in uncovered(part, [f.days for f in flying], calendar)]:
                    left.setdefault(symbol, []).extend(runs)
            if not dataset.range_pushdown:  # such a call brings the whole history anyway: keep what is paid for
                whole = Days(earliest_day(dataset, calendar), calendar.today(self._clock.now()))
                left = {symbol: [whole] for symbol in left}
            own = [_Flight(request, _days(request)) for request in fetch_requests(dataset, left)]
            for flight in own:
                for symbol in flight.request.symbols:
                    self._board[dataset.name, symbol].append(flight)
        return own, list(joined.values())

    def _provider(self, flight: _Flight) -> str:
        source = self._desk.source(flight.request.dataset)
        return source.name if source else ""

    def _fly(self, flight: _Flight) -> None:
        try:
            self._fetch(flight)
        except Error as error:
            self._land(flight, error)
        except BaseException as error:
            log.exception("fill failed", request=str(flight.request))
            self._land(flight, InternalError(f"storing {flight.request} failed: {type(error).__name__}; see the server's log"))
            raise
        else:
            self._land(flight, None)

    def _land(self, flight: _Flight, error: Error | None) -> None:
        """Take the flight off the board, then wake all who wait: whoever comes now looks at the coverage it left."""
        with self._lock:
            if flight not in self._board.get((flight.request.dataset, flight.request.symbols[0]), ()):
                return  # it was closed down
            for symbol in flight.request.symbols:
                key = (flight.request.dataset, symbol)
                self._board[key].remove(flight)
                if not self._board[key]:
                    del self._board[key]
        if error is None:
            flight.landed.set_result(None)
        else:
            self._stats.add(failed_fills=1)
            flight.landed.set_exception(error)

    def _fetch(self, flight: _Flight) -> None:
        """Fetch, check, store: the segment's file first, then one commit that holds it together with its coverage."""
        request = flight.request
        dataset = self._desk.offers[request.dataset]
        started, fetched_at = self._clock.monotonic(), self._clock.now()
        self._stats.add(upstream_calls=1)
        answer = self._desk.fetch(request)
        fetched = self._clock.monotonic()
        provider = self._provider(flight)
        image = admit_fetched(dataset, answer, request, provider)
        needed = image.table.num_rows or self._held(request)  # without rows it says that those held are no more
        segment = self._store.publish(dataset, image, "segment", sync=False, asked=request) if needed else None
        calendar = self._calendars.get(dataset.calendar)
        fill_id = segment.id if segment else uuid.uuid4().hex
        facts = facts_of_fill(dataset, image, request, calendar, fetched_at, segment.id if segment else None)
        days, symbols = _days(request), request.symbols
        self._store.commit(
            Fill(dataset.name, fill_id, segment, facts, calendar.adjacent, provider, fetched_at.timestamp(), days, symbols)
        )
        if segment:
            self._hot.offer(segment.id, image)
        rows, stored = image.table.num_rows, self._clock.monotonic()
        self._stats.add(filled_rows=rows, fetch_seconds=fetched - started, store_seconds=stored - fetched)

    def _held(self, request: FetchRequest) -> bool:
        """Return whether a file may hold rows of the asked cells."""
        days, files = _days(request), self._store.state(request.dataset).files
        return any(file.rows and _overlap(file.reach, days) and share_of(file, request.symbols) for file in files)

    def busy(self) -> int:
        """Return how many flights are under way or wait for their turn."""
        with self._lock:
            return len({id(flight) for flights in self._board.values() for flight in flights})

    def close(self) -> None:
        """Take no more flights; those that have not started fail, and the others are waited for."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:  # only now: a flight may have been put on the board, and cancelled, during the shutdown
            waiting = {id(flight): flight for flights in self._board.values() for flight in flights}
        for flight in waiting.values():
            self._land(flight, ServerClosing("the cache is closing; nothing more is fetched"))


def _wait(flight: _Flight) -> None:
    """Wait for *flight*, and raise its error as this caller's own: one exception object must not run in many threads."""
    try:
        flight.landed.result()
    except Error as error:
        raise type(error)(error.message) from error


def _each(gaps: Gaps) -> Iterator[tuple[str, Days]]:
    for symbol, runs in gaps.items():
        for run in runs:
            yield symbol, run


def _overlap(one: Days, other: Days) -> bool:
    return one.first <= other.last and one.last >= other.first


def _days(request: FetchRequest) -> Days:
    return Days(day_number(request.start), day_number(request.end))

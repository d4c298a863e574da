"""Closing gaps: every missing cell is fetched once, however many ask, and kept together with what that taught us.

A *flight* is one call to a source for some symbols and a run of sessions. Whoever needs a cell that is on a flight joins
it; the rest is flown. The look at the present coverage happens under the same lock as joining, because of this order of
events: A plans and sees a gap; B's flight lands and leaves the board; A finds no flight to join. Without looking again A
would fetch what B has just stored.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final, Self

import structlog

from fletching_schemas import Dataset
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    InternalError,
    ServerClosing,
    SourceChanged,
    UnknownSymbol,
)
from fletching_server.almanac import Calendars
from fletching_server.arrivals import Arrivals, Errand
from fletching_server.clock import Clock
from fletching_server.desk import Desk
from fletching_server.gaps import Gaps, fetch_requests, sweepable, uncovered, whole_history
from fletching_server.guard import Turns
from fletching_server.progress import Progress
from fletching_server.settings import Settings
from fletching_server.snapshot import DatasetState
from fletching_server.spans import Days, Horizon, missing
from fletching_server.stats import Stats
from fletching_server.store import Store

log = structlog.get_logger(__name__)

_MOST_REFRESHED: Final = 64  # symbols that one read has refreshed in the background: a sample, where a market is due
_REST_SECONDS: Final = 300.0  # after a refresh in the background failed; whoever needs the cell still asks at once

_MOST_REFUSED: Final = 3

Failures = dict[str, Error]


@dataclass(eq=False)
class _Flight:
    """One call under way or waiting for its turn; called, it flies."""

    errand: Errand
    fly: Callable[[_Flight], None]
    landed: Future[Failures] = field(default_factory=Future)
    calls: int = 0
    rows: int = 0
    flew_behind: bool = False  # it was taken when people had gone first, and under the limits of the background

    def __call__(self) -> None:
        self.fly(self)

    @property
    def key(self) -> tuple[str, str]:
        return self.errand.request.dataset, self.errand.request.symbols[0]


@dataclass
class Outcome:
    """What closing gaps took, and the symbols whose cells could not be fetched."""

    calls: int = 0
    joined: int = 0
    rows: int = 0
    failed: Failures = field(default_factory=dict)

    def __iadd__(self, other: Outcome) -> Self:
        self.calls += other.calls
        self.joined += other.joined
        self.rows += other.rows
        self.failed |= other.failed
        return self


class Fills:
    """The flights of one engine."""

    def __init__(
        self, store: Store, arrivals: Arrivals, desk: Desk, calendars: Calendars, clock: Clock, stats: Stats, settings: Settings
    ) -> None:
        self._store, self._arrivals, self._desk = store, arrivals, desk
        self._calendars, self._clock, self._stats = calendars, clock, stats
        self._lock = threading.Lock()
        self._board: dict[tuple[str, str], list[_Flight]] = defaultdict(list)
        self._resting: dict[tuple[str, str], float] = {}
        # Turns per source, or family of hosts: one that hangs must not keep another's calls waiting.
        lanes, behind = desk.lanes(settings.source_calls), settings.warm_calls_at_once
        self._turns = {lane: Turns(f"fill-{lane}", width, behind) for lane, width in lanes.items()}

    def close_gaps(
        self, state: DatasetState, gaps: Gaps, horizon: Horizon, progress: Progress, principal: str = "", *, early: bool = False
    ) -> Outcome:
        """Return once all *gaps* are filled or have failed: what it took, and which symbols failed why.

        *early*: nobody has asked for them yet, so people go first.
        """
        own, joined = self._embark(state.dataset, gaps, horizon, principal, background=early, early=early)
        for flight in (*own, *joined):
            progress.add(due=1)
            flight.landed.add_done_callback(lambda landed: progress.add(**_ended(landed)))
        for flight in own:
            self._launch(flight)
        for flight in () if early else joined:
            self._promote(flight)
        outcome = Outcome(joined=len(joined))
        refused: dict[str, Sequence[Days]] = {}
        for flight in (*own, *joined):
            failures = {symbol: error for symbol, error in flight.landed.result().items() if symbol in gaps}
            if flight.flew_behind and not early:  # what is refused to the background is not to people: they ask themselves
                refused |= {symbol: gaps[symbol] for symbol in failures}
            else:
                outcome.failed |= failures
        outcome.calls, outcome.rows = (sum(counts) for counts in ([f.calls for f in own], [f.rows for f in own]))
        if refused:
            outcome += self.close_gaps(state, refused, horizon, progress, principal)
        return outcome

    def refresh(self, state: DatasetState, due: Gaps, horizon: Horizon) -> None:
        """Have *due* cells fetched once more, when nobody else needs the source; returns at once."""
        now, name = self._clock.monotonic(), state.dataset.name
        rested = [symbol for symbol in due if self._resting.get((name, symbol), now) <= now][:_MOST_REFRESHED]
        due = {symbol: due[symbol] for symbol in rested}
        own, _ = self._embark(state.dataset, due, horizon, "", background=True)
        for flight in own:
            flight.landed.add_done_callback(lambda landed: self._rest(name, landed.result()))
            self._launch(flight)

    def waiting(self) -> int:
        """Return how many calls wait for their turn."""
        return sum(turns.waiting() for turns in self._turns.values())

    def _rest(self, dataset: str, failures: Failures) -> None:
        for symbol in failures:
            self._resting[dataset, symbol] = self._clock.monotonic() + _REST_SECONDS

    def _promote(self, flight: _Flight) -> None:
        """Let a flight that nobody waited for until now have its turn with those that somebody waits for."""
        if flight.errand.background:
            flight.errand = replace(flight.errand, background=False, early=False)  # which nobody sees where it flies already
            self._turns[self._lane(flight)].promote(flight)

    def _launch(self, flight: _Flight) -> None:
        try:
            turns = self._turns[self._lane(flight)]
            turns.submit(flight.errand.principal, flight, background=flight.errand.background)
        except RuntimeError:  # no more turns are given; whoever waits is told
            self._land(flight, self._all(flight, ServerClosing("the cache is closing; nothing more is fetched")))

    def _embark(
        self, dataset: Dataset, gaps: Gaps, horizon: Horizon, principal: str, *, background: bool = False, early: bool = False
    ) -> tuple[list[_Flight], list[_Flight]]:
        """Return the flights to make and those to join; afterwards every gap is on the board or covered."""
        calendar, now = self._calendars.get(dataset.calendar), self._clock.now()
        joined: dict[int, _Flight] = {}
        with self._lock:
            left: dict[str, list[Days]] = {}
            coverage = self._store.state(dataset.name).coverage
            for symbol, run in _each(gaps):
                flying = [f for f in self._board.get((dataset.name, symbol), ()) if _overlap(f.errand.days, run)]
                joined |= {id(flight): flight for flight in flying}
                absent = missing(coverage.get(symbol, ()), run, horizon)
                if runs := [days for part in absent for days in uncovered(part, [f.errand.days for f in flying], calendar)]:
                    left.setdefault(symbol, []).extend(runs)
            if not dataset.range_pushdown:  # such a call brings the whole history anyway: keep what is paid for
                whole = whole_history(dataset, calendar, now)
                left = {symbol: [whole] for symbol in left}
            calls = fetch_requests(dataset, left, sweepable(dataset, calendar, now))
            own = [_Flight(Errand(request, principal, background, early), self._fly) for request in calls]
            for flight in own:
                for symbol in flight.errand.request.symbols:
                    self._board[dataset.name, symbol].append(flight)
        return own, list(joined.values())

    def _lane(self, flight: _Flight) -> str:
        return self._desk.lane(flight.errand.request.dataset)

    def _fly(self, flight: _Flight) -> None:
        errand = flight.errand
        flight.flew_behind = errand.background
        try:
            failures = self._bring(flight, errand)
        except BaseException as error:
            request = errand.request
            log.exception("fill failed", request=str(request))
            bug = InternalError(f"storing {request} failed: {type(error).__name__}; see the server's log")
            self._land(flight, self._all(flight, bug))
            raise
        self._land(flight, failures)

    def _bring(self, flight: _Flight, errand: Errand, refused: int = 0) -> Failures:
        """Return what failed; where the fault lies with a symbol and not with the upstream, the others are asked without it.

        A source that refuses several parts in a row (*refused*) is at fault itself, and is not asked for each symbol.
        """
        symbols = errand.request.symbols
        flight.calls += 1
        try:
            flight.rows += self._arrivals.bring(errand)
        except SourceChanged as error:
            return dict.fromkeys(symbols, error)
        except (BadSourceData, UnknownSymbol) as error:
            most = self._desk.offers[errand.request.dataset].symbols_per_call
            if not 1 < len(symbols) <= most or refused >= _MOST_REFUSED:
                return dict.fromkeys(symbols, error)
            return self._halved(flight, errand, error, refused + 1)
        except Error as error:
            return dict.fromkeys(symbols, error)
        return {}

    def _halved(self, flight: _Flight, errand: Errand, error: Error, refused: int) -> Failures:
        symbols = errand.request.symbols
        middle = len(symbols) // 2
        failed = self._bring(flight, errand.part(symbols[:middle]), refused)
        failed |= self._bring(flight, errand.part(symbols[middle:]), refused if len(failed) == middle else 0)
        return dict.fromkeys(symbols, error) if len(failed) == len(symbols) else failed

    def _land(self, flight: _Flight, failures: Failures) -> None:
        """Take the flight off the board, then wake all who wait: whoever comes now looks at the coverage it left."""
        with self._lock:
            if flight not in self._board.get(flight.key, ()):
                return  # it was closed down
            for symbol in flight.errand.request.symbols:
                key = (flight.errand.request.dataset, symbol)
                self._board[key].remove(flight)
                if not self._board[key]:
                    del self._board[key]
        if failures:
            self._stats.add(failed_fills=1)
        flight.landed.set_result(failures)

    @staticmethod
    def _all(flight: _Flight, error: Error) -> Failures:
        return dict.fromkeys(flight.errand.request.symbols, error)

    def busy(self) -> int:
        """Return how many flights are under way or wait for their turn."""
        with self._lock:
            return len({id(flight) for flights in self._board.values() for flight in flights})

    def close(self) -> None:
        """Take no more flights; those that have not started fail, and the others are waited for."""
        for turns in self._turns.values():
            turns.close()
        with self._lock:  # only now: a flight may have been put on the board, and cancelled, during the shutdown
            waiting = {id(flight): flight for flights in self._board.values() for flight in flights}
        for flight in waiting.values():
            self._land(flight, self._all(flight, ServerClosing("the cache is closing; nothing more is fetched")))


def _ended(landed: Future[Failures]) -> dict[str, int]:
    return {"done": 1, "failed": int(bool(landed.result()))}


def _each(gaps: Gaps) -> Iterator[tuple[str, Days]]:
    for symbol, runs in gaps.items():
        for run in runs:
            yield symbol, run


def _overlap(one: Days, other: Days) -> bool:
    return one.first <= other.last and one.last >= other.first

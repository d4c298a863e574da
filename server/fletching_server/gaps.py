"""Which cells nobody vouches for, and the calls that fetch them. Pure.

Missing sessions that are neighbours on the exchange's calendar are one run, however many holidays lie between; a symbol is
not asked for before its listing, after its delisting, or beyond what its source can still deliver.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from fletching_schemas import Dataset, FetchRequest, ReadRequest
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.coverage import DELISTED, NOT_LISTED_YET
from fletching_server.missing import Ledger
from fletching_server.snapshot import DatasetState, Life
from fletching_server.spans import ANY_AGE, Days, Horizon, Spans, missing, subtract

OUT_OF_REACH: Final = "out_of_reach"
_CLOCK_SLACK: Final = 60.0  # seconds by which facts may lie ahead of the clock before they are distrusted
_QUIET: Final = timedelta(hours=1)  # before the next opening, quotes are reset: they are no longer those of the last session
_EVER: Final = Days(-(10**6), 10**6)
_UNKNOWN_LIFE: Final = Life()
_MOST_LEDGERS: Final = 4  # of one picture: megabytes each
MANY: Final = 64  # symbols from which on arrays are faster than a loop

Gaps = Mapping[str, Sequence[Days]]


@dataclass(frozen=True)
class World:
    """What resolving needs to know besides the request and the picture.

    ``listed`` are the symbols the source says it has (None: it cannot tell), ``fillable`` whether it can be asked now,
    ``lives`` when symbols were listed and delisted, as far as the source tells.
    """

    calendar: Calendar
    now: datetime
    listed: Collection[str] | None
    fillable: bool
    lives: Mapping[str, Life] = field(default_factory=dict)


@dataclass(frozen=True)
class Bars:
    """Cells that need not or cannot be asked for: outside a symbol's life, or before what the source still has."""

    lives: Mapping[str, Life] = field(default_factory=dict)
    reach: int = _EVER.first

    def of(self, symbol: str) -> list[tuple[Days, str]]:
        """Return the runs of days that are barred for *symbol*, each with the reason."""
        life = self.lives.get(symbol, _UNKNOWN_LIFE)
        bars = [(Days(_EVER.first, self.reach - 1), OUT_OF_REACH)] if self.reach > _EVER.first else []
        if life.first is not None:
            bars.insert(0, (Days(_EVER.first, life.first - 1), NOT_LISTED_YET))
        if life.last is not None:
            bars.insert(0, (Days(life.last + 1, _EVER.last), DELISTED))
        return bars

    def open(self, symbol: str) -> Days:
        """Return the days for which *symbol* may be asked."""
        life = self.lives.get(symbol, _UNKNOWN_LIFE)
        first = self.reach if life.first is None else max(self.reach, life.first)
        return Days(first, _EVER.last if life.last is None else life.last)

    def __bool__(self) -> bool:
        return bool(self.lives) or self.reach > _EVER.first


@dataclass(frozen=True)
class Cells:
    """The cells of one request that need somebody: *gaps* before it can be answered, *due* in the background."""

    gaps: Gaps = field(default_factory=dict)
    due: Gaps = field(default_factory=dict)


def horizons(request: ReadRequest, dataset: Dataset, world: World, symbols: int) -> tuple[Horizon, Horizon]:
    """Return how old facts may be: for the answer, and before they are refreshed in the background.

    What the request says itself (``max_age``, ``profile``) is a demand: nothing older is served meanwhile. Where a market is
    swept, second looks at settled sessions wait for the background: a call per symbol would undo the sweep.
    """
    now, tolerated = world.now.timestamp(), request.tolerated_age
    fresh = now - (dataset.fresh_seconds if tolerated is None else tolerated)
    confirm = world.calendar.settled_at(world.now)
    if request.max_age is not None:
        confirm = max(confirm, now - request.max_age)
    stale = dataset.stale_seconds if tolerated is None else 0.0
    settled = world.calendar.settled_through(world.now)
    swept = 0 < dataset.sweep_symbols <= symbols and request.max_age is None
    sure = float("-inf") if swept else confirm - stale
    answer = Horizon(fresh - stale, sure, now + _CLOCK_SLACK, settled=settled)
    return answer, Horizon(fresh, confirm, answer.latest, now - dataset.verify_days * 86400, settled)


def bars(dataset: Dataset, world: World) -> Bars:
    """Return what need not be asked of *dataset*."""
    if dataset.recent_sessions is None:
        return Bars(world.lives)
    present = present_session(dataset, world.calendar, world.now)
    return Bars(world.lives, world.calendar.back(present, dataset.recent_sessions))


def cells(request: ReadRequest, state: DatasetState, world: World, symbols: Sequence[str], wanted: Days, barred: Bars) -> Cells:
    """Return what is missing or due of *wanted* for each of *symbols*."""
    if wanted.last < wanted.first:
        return Cells()
    if not world.fillable:
        return Cells(_absent(request, state, world, symbols, wanted))
    answer, refresh = horizons(request, state.dataset, world, len(symbols))
    if len(symbols) >= MANY:
        return _cells_of_many(state, world, symbols, wanted, barred, answer, refresh)
    gaps, due = {}, {}
    for symbol in symbols:
        spans, askable = state.coverage.get(symbol, ()), _both(wanted, barred.open(symbol)) if barred else wanted
        runs = missing(spans, askable, answer)
        if runs and (sessions := snapped(runs, world.calendar)):
            gaps[symbol] = sessions
        if spans and (sessions := _due(spans, askable, runs, refresh, world.calendar)):
            due[symbol] = sessions
    return Cells(gaps, due)


def _due(spans: Spans, askable: Days, runs: Sequence[Days], refresh: Horizon, calendar: Calendar) -> list[Days]:
    old = missing(spans, askable, refresh)
    return [] if old == runs else snapped((part for run in old for part in subtract(run, runs)), calendar)


def _cells_of_many(
    state: DatasetState, world: World, symbols: Sequence[str], wanted: Days, barred: Bars, answer: Horizon, refresh: Horizon
) -> Cells:
    """Return the same for a whole market: at once, and symbol by symbol only where something is due."""
    ledger = _ledger(state, world.calendar, tuple(symbols))
    opened = [barred.open(symbol) for symbol in symbols] if barred else []
    gaps = ledger.missing(wanted, answer, opened)
    due = {}
    for symbol in ledger.differing(answer, refresh):
        askable = _both(wanted, barred.open(symbol))
        if sessions := _due(state.coverage[symbol], askable, gaps.get(symbol, ()), refresh, world.calendar):
            due[symbol] = sessions
    return Cells(gaps, due)


def _ledger(state: DatasetState, calendar: Calendar, symbols: tuple[str, ...]) -> Ledger:
    """Return the ledger of a whole market: the next plan on the same picture asks for it again."""
    key = ("ledger", calendar, symbols)
    if (known := state.memo.get(key)) is None:
        if len(state.memo) >= _MOST_LEDGERS:
            state.memo.clear()
        known = state.memo[key] = Ledger.of(calendar, symbols, state.coverage)
    return known


def _both(one: Days, other: Days) -> Days:
    return Days(max(one.first, other.first), min(one.last, other.last))


def _absent(request: ReadRequest, state: DatasetState, world: World, symbols: Iterable[str], wanted: Days) -> Gaps:
    """Return the cells never heard of where nobody can be asked: then an open end means "what there is"."""
    gaps: dict[str, list[Days]] = {}
    for symbol in symbols:
        spans = state.coverage.get(symbol, ())
        first = spans[0].first if spans and request.start is None else wanted.first
        last = spans[-1].last if spans and request.end is None else wanted.last
        if left := snapped(missing(spans, Days(first, last), ANY_AGE), world.calendar):
            gaps[symbol] = left
    return gaps


def unknown(gaps: Gaps, state: DatasetState, calendar: Calendar) -> Gaps:
    """Return those of *gaps* of which nothing is known at all, not even something old."""
    left: dict[str, list[Days]] = {}
    for symbol, runs in gaps.items():
        absent = [part for run in runs for part in missing(state.coverage.get(symbol, ()), run, ANY_AGE)]
        if sessions := snapped(absent, calendar):
            left[symbol] = sessions
    return left


def snapped(runs: Iterable[Days], calendar: Calendar) -> list[Days]:
    """Return *runs* cut to sessions; those without any are gone."""
    cut = (calendar.snap(run.first, run.last) for run in runs)
    return [Days(*sessions) for sessions in cut if sessions]


def uncovered(run: Days, flying: Sequence[Days], calendar: Calendar) -> list[Days]:
    """Return the sessions of *run* for which no call is under way."""
    return snapped(subtract(run, sorted(flying)), calendar)


def earliest_day(dataset: Dataset, calendar: Calendar) -> int:
    """Return the first day that the source or, where it does not say, the calendar knows."""
    first = calendar.first_number
    return max(first, day_number(dataset.first_session)) if dataset.first_session else first


def present_session(dataset: Dataset, calendar: Calendar, now: datetime) -> int:
    """Return the last day of which there can be rows: of daily tables the session that has opened last.

    Tables of instants also have rows before the opening, and on the evening that belongs to tomorrow's session.
    """
    opened = calendar.opened_through(now)
    return opened if dataset.session == dataset.time else max(opened, calendar.today(now))


def whole_history(dataset: Dataset, calendar: Calendar, now: datetime) -> Days:
    """Return the sessions that a call brings whatever it asks for: all, or the recent ones that the source still has."""
    present = present_session(dataset, calendar, now)
    if dataset.recent_sessions is None:
        return Days(earliest_day(dataset, calendar), present)
    return Days(max(earliest_day(dataset, calendar), calendar.back(present, dataset.recent_sessions)), present)


def sweepable(dataset: Dataset, calendar: Calendar, now: datetime) -> int | None:
    """Return the session whose bars a sweep over all symbols would bring now; None where it would bring none, or others'."""
    if not dataset.sweep_symbols or calendar.opens_next(now) - now.timestamp() < _QUIET.total_seconds():
        return None
    return calendar.opened_through(now)


def fetch_requests(dataset: Dataset, gaps: Gaps, sweep: int | None = None) -> list[FetchRequest]:
    """Return the calls that close *gaps*: one per run of sessions and group of symbols that share it, newest first.

    Where enough symbols miss the one session *sweep*, a single call asks for all of them.
    """
    by_run: dict[Days, list[str]] = defaultdict(list)
    for symbol, runs in gaps.items():
        for run in runs:
            by_run[run].append(symbol)
    calls: list[FetchRequest] = []
    for run, symbols in sorted(by_run.items(), key=lambda item: (-item[0].last, item[0].first)):
        swept = run == (sweep, sweep) and len(symbols) >= max(dataset.sweep_symbols, 1)
        size = len(symbols) if swept else dataset.symbols_per_call
        first, last = from_day_number(run.first), from_day_number(run.last)
        calls += [
            FetchRequest(dataset.name, tuple(symbols[start : start + size]), first, last)
            for start in range(0, len(symbols), size)
        ]
    return calls

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
from fletching_server.snapshot import DatasetState, Life
from fletching_server.spans import ANY_AGE, Days, Horizon, missing, subtract

OUT_OF_REACH: Final = "out_of_reach"
_CLOCK_SLACK: Final = 60.0  # seconds by which facts may lie ahead of the clock before they are distrusted
_QUIET: Final = timedelta(hours=1)  # before the next opening, quotes are reset: they are no longer those of the last session
_EVER: Final = Days(-(10**6), 10**6)

Gaps = Mapping[str, Sequence[Days]]
Barred = Mapping[str, Sequence[tuple[Days, str]]]


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
class Cells:
    """The cells of one request that need somebody: *gaps* before it can be answered, *due* in the background.

    *barred* are cells of which nothing is known and which need not or cannot be asked for, with the reason.
    """

    gaps: Gaps = field(default_factory=dict)
    due: Gaps = field(default_factory=dict)
    barred: Barred = field(default_factory=dict)


def horizons(request: ReadRequest, dataset: Dataset, world: World) -> tuple[Horizon, Horizon]:
    """Return how old facts may be: for the answer, and before they are refreshed in the background.

    What the request says itself (``max_age``, ``profile``) is a demand: nothing older is served meanwhile.
    """
    now, tolerated = world.now.timestamp(), request.tolerated_age
    fresh = now - (dataset.fresh_seconds if tolerated is None else tolerated)
    confirm = world.calendar.settled_at(world.now)
    if request.max_age is not None:
        confirm = max(confirm, now - request.max_age)
    stale = dataset.stale_seconds if tolerated is None else 0.0
    settled = world.calendar.settled_through(world.now)
    answer = Horizon(fresh - stale, confirm - stale, now + _CLOCK_SLACK, settled=settled)
    return answer, Horizon(fresh, confirm, answer.latest, now - dataset.verify_days * 86400, settled)


def cells(request: ReadRequest, state: DatasetState, world: World, symbols: Iterable[str], wanted: Days) -> Cells:
    """Return what is missing or due of *wanted* for each of *symbols*."""
    if wanted.last < wanted.first:
        return Cells()
    if not world.fillable:
        return Cells(_absent(request, state, world, symbols, wanted))
    answer, refresh = horizons(request, state.dataset, world)
    gaps: dict[str, list[Days]] = {}
    due: dict[str, list[Days]] = {}
    barred: dict[str, list[tuple[Days, str]]] = {}
    for symbol in symbols:
        spans = state.coverage.get(symbol, ())
        runs = missing(spans, wanted, answer)
        if runs:
            bars = _bars(state.dataset, world, world.lives.get(symbol))
            if askable := snapped(_outside(runs, bars), world.calendar):
                gaps[symbol] = askable
            if bars:
                barred[symbol] = _told(missing(spans, wanted, ANY_AGE), bars, world.calendar)
        if spans and (old := missing(spans, wanted, refresh)) != runs:
            left = (part for run in old for part in subtract(run, runs))
            if sessions := snapped(left, world.calendar):
                due[symbol] = sessions
    return Cells(gaps, due, barred)


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


def _bars(dataset: Dataset, world: World, life: Life | None) -> list[tuple[Days, str]]:
    """Return the runs of days that need not be asked for, each with the reason."""
    bars = []
    if life and life.first is not None:
        bars.append((Days(_EVER.first, life.first - 1), NOT_LISTED_YET))
    if life and life.last is not None:
        bars.append((Days(life.last + 1, _EVER.last), DELISTED))
    if dataset.recent_sessions is not None:
        reach = world.calendar.back(present_session(dataset, world.calendar, world.now), dataset.recent_sessions)
        bars.append((Days(_EVER.first, reach - 1), OUT_OF_REACH))
    return bars


def _outside(runs: Iterable[Days], bars: Sequence[tuple[Days, str]]) -> Iterable[Days]:
    for bar, _ in bars:
        runs = [part for run in runs for part in subtract(run, [bar])]
    return runs


def _told(runs: Sequence[Days], bars: Sequence[tuple[Days, str]], calendar: Calendar) -> list[tuple[Days, str]]:
    """Return the parts of *runs* that *bars* hold, each with the first reason that applies."""
    told: list[tuple[Days, str]] = []
    for bar, reason in bars:
        inside = [Days(max(run.first, bar.first), min(run.last, bar.last)) for run in runs]
        told += [(run, reason) for run in snapped((run for run in inside if run.first <= run.last), calendar)]
        runs = list(_outside(runs, [(bar, reason)]))
    return told


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

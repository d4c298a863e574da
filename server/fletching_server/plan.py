"""What a request resolves to, before any data moves: schema, symbols, window, files, and the cells nobody vouches for.

Pure: request, picture, calendar and instant in; plan out. No I/O, no clock, no lock.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import pyarrow as pa

from fletching_schemas import Dataset, FetchRequest, Gap, ReadRequest, normalise_symbol
from fletching_schemas.errors import OutOfCalendar, UnknownSymbol
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.image import Window
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import PROVISIONAL, Days, Span, missing, overlapping, subtract

FURTHEST_AHEAD = timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Gaps = Mapping[str, Sequence[Days]]


@dataclass(frozen=True)
class Plan:
    """One read, resolved.

    ``symbols`` are canonical and sorted; ``window`` says which rows of theirs are wanted; ``files`` are those that may
    hold some; ``gaps`` are the runs of sessions, per symbol, that coverage does not vouch for.
    """

    dataset: Dataset
    schema: pa.Schema
    symbols: tuple[str, ...]
    window: Window
    files: tuple[StoredFile, ...]
    gaps: Gaps
    oldest: float
    future: Days | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the schema, in order: pyarrow makes them anew each time it is asked."""
        return tuple(self.schema.names)

    @property
    def wanted(self) -> Days:
        """The wanted sessions as a run of days; empty (last before first) where the range holds none."""
        return Days(self.window.first_day, self.window.last_day)


@dataclass(frozen=True)
class World:
    """What resolving needs to know besides the request and the picture.

    ``listed`` are the symbols the source says it has (None: it cannot tell), ``fillable`` whether it can be asked now.
    """

    calendar: Calendar
    now: datetime
    listed: Collection[str] | None
    fillable: bool


def resolve(request: ReadRequest, state: DatasetState, world: World) -> Plan:
    """Return the plan of *request* on the picture *state*.

    Raises ``UnknownColumn``, ``UnknownSymbol``, ``OutOfCalendar`` and ``InvalidRequest``.
    """
    schema = state.dataset.project(request.columns)
    symbols = _symbols(request, state, world)
    window, future = _window(request, state, world)
    tolerated = request.tolerated_age if request.tolerated_age is not None else state.dataset.fresh_seconds
    oldest = world.now.timestamp() - tolerated
    gaps = {} if state.is_table else _gaps(request, state, world, symbols, window, oldest)
    files = _files(state, symbols, window, everything=request.symbols is None)
    return Plan(state.dataset, schema, symbols, window, files, gaps, oldest, future)


# Symbols


def held_symbols(state: DatasetState) -> set[str]:
    """Return the symbols of which anything is held or known."""
    return set(state.symbols)


def _symbols(request: ReadRequest, state: DatasetState, world: World) -> tuple[str, ...]:
    if request.symbols is None:
        return state.symbols if world.listed is None else tuple(sorted(world.listed))
    names = named_symbols(request, state.dataset) or ()
    if world.listed is not None or state.is_table or not world.fillable:
        _check_known(names, state, world)
    return names


def named_symbols(request: ReadRequest, dataset: Dataset) -> tuple[str, ...] | None:
    """Return the symbols that *request* names, canonical and sorted; None where it asks for all."""
    if request.symbols is None:
        return None
    near = request.end or request.start  # tells the decade of a contract that is written with one digit of its year
    near = near.date() if isinstance(near, datetime) else near
    return tuple(sorted({normalise_symbol(name, dataset.notation, near=near) for name in request.symbols}))


def _check_known(names: Sequence[str], state: DatasetState, world: World) -> None:
    unknown = [name for name in names if name not in state.coverage]
    if world.listed is not None:
        unknown = [name for name in unknown if name not in world.listed]
    unknown = [name for name in unknown if not any(_has(file, name) for file in state.files)]
    if not unknown:
        return
    there = sorted(set(world.listed or ()) | held_symbols(state))
    close = difflib.get_close_matches(unknown[0], there, n=3, cutoff=0.5) or there[:3]
    raise UnknownSymbol(
        f"{state.dataset.name} has no symbol {', '.join(unknown[:5])}; it has {len(there):,}"
        + (f", for instance {', '.join(close)}" if close else "")
    )


def _has(file: StoredFile, symbol: str) -> bool:
    place = bisect_left(file.symbols, symbol)
    return place < len(file.symbols) and file.symbols[place] == symbol


# Time


def _window(request: ReadRequest, state: DatasetState, world: World) -> tuple[Window, Days | None]:
    """Return the wanted rows, and the part of the range that lies in the future."""
    calendar = world.calendar
    low, high = _extent(state, world)
    first, first_instant = _bound(request.start, state.dataset, calendar, low)
    last, last_instant = _bound(request.end, state.dataset, calendar, high)
    if isinstance(request.end, datetime) and calendar.overnight:
        # An evening belongs to the next session: its rows carry that date.
        following = calendar.snap(last + 1, last + 14)
        last = following[0] if following else last
    if state.is_table:
        return Window(first, last, first_instant, last_instant), None
    _check_range(request, state.dataset, world)
    today = calendar.today(world.now)
    ahead = calendar.snap(max(first, today + 1), last) if last > today else None
    sessions = calendar.snap(max(first, low), min(last, today)) or (max(first, low), max(first, low) - 1)
    return Window(*sessions, first_instant, last_instant), Days(*ahead) if ahead else None


def _extent(state: DatasetState, world: World) -> tuple[int, int]:
    """Return the days between which a read without start or end lies."""
    if state.is_table:
        days = [(file.first_day, file.last_day) for file in state.files] or [(0, -1)]
        return min(first for first, _ in days), max(last for _, last in days)
    return earliest_day(state.dataset, world.calendar), world.calendar.today(world.now)


def earliest_day(dataset: Dataset, calendar: Calendar) -> int:
    """Return the first day that the source or, where it does not say, the calendar knows."""
    first = calendar.first_number
    return max(first, day_number(dataset.first_session)) if dataset.first_session else first


def _bound(moment: date | datetime | None, dataset: Dataset, calendar: Calendar, default: int) -> tuple[int, int | None]:
    """Return the day of one end of the range, and the instant where it names one within the day."""
    if moment is None:
        return default, None
    if not isinstance(moment, datetime):
        return day_number(moment), None
    instant = moment if moment.tzinfo else moment.replace(tzinfo=calendar.zone)
    day = day_number(instant.astimezone(calendar.zone).date())
    if pa.types.is_date32(dataset.schema.field(dataset.time).type):
        return day, None
    return day, (instant - _EPOCH) // timedelta(microseconds=1)


def _check_range(request: ReadRequest, dataset: Dataset, world: World) -> None:
    calendar = world.calendar
    furthest = world.now.date() + FURTHEST_AHEAD
    for what, moment in (("start", request.start), ("end", request.end)):
        day = moment.date() if isinstance(moment, datetime) else moment
        if day is not None and not calendar.first <= day <= furthest:
            raise OutOfCalendar(
                f"{what}={day} of {dataset.name} lies outside the calendar {calendar.name}, which goes from "
                f"{calendar.first} to {furthest}; ask within that, or leave {what} out"
            )


# Cells


def _gaps(request: ReadRequest, state: DatasetState, world: World, symbols: Iterable[str], window: Window, oldest: float) -> Gaps:
    wanted = Days(window.first_day, window.last_day)
    if wanted.last < wanted.first:
        return {}
    gaps: dict[str, list[Days]] = {}
    for symbol in symbols:
        spans = state.coverage.get(symbol, ())
        if not world.fillable and spans:  # nobody can be asked: an open end means "what there is"
            first = spans[0].first if request.start is None else wanted.first
            runs = missing(spans, Days(first, spans[-1].last if request.end is None else wanted.last), float("-inf"))
        else:
            runs = missing(spans, wanted, oldest)
        if runs and (left := snapped(runs, world.calendar)):
            gaps[symbol] = left
    return gaps


def unknown(plan: Plan, state: DatasetState, calendar: Calendar) -> Gaps:
    """Return those of the plan's gaps of which nothing is known at all, not even something old."""
    gaps: dict[str, list[Days]] = {}
    for symbol, runs in plan.gaps.items():
        absent = [left for run in runs for left in missing(state.coverage.get(symbol, ()), run, float("-inf"))]
        if left := snapped(absent, calendar):
            gaps[symbol] = left
    return gaps


def snapped(runs: Iterable[Days], calendar: Calendar) -> list[Days]:
    """Return *runs* cut to sessions; those without any are gone."""
    cut = (calendar.snap(run.first, run.last) for run in runs)
    return [Days(*sessions) for sessions in cut if sessions]


def fetch_requests(dataset: Dataset, gaps: Gaps) -> list[FetchRequest]:
    """Return the calls that close *gaps*: one per run of sessions and group of symbols that share it, newest first."""
    by_run: dict[Days, list[str]] = defaultdict(list)
    for symbol, runs in gaps.items():
        for run in runs:
            by_run[run].append(symbol)
    size = dataset.symbols_per_call
    return [
        FetchRequest(dataset.name, tuple(symbols[start : start + size]), from_day_number(run.first), from_day_number(run.last))
        for run, symbols in sorted(by_run.items(), key=lambda item: (-item[0].last, item[0].first))
        for start in range(0, len(symbols), size)
    ]


# Files


def _files(state: DatasetState, symbols: Sequence[str], window: Window, *, everything: bool) -> tuple[StoredFile, ...]:
    near = [file for file in state.files if file.reach.first <= window.last_day and file.reach.last >= window.first_day]
    if not everything:
        near = [file for file in near if share_of(file, symbols) > 0]
    return tuple(near)


def share_of(file: StoredFile, symbols: Sequence[str]) -> float:
    """Return which share of the file's symbols is among *symbols*."""
    if len(symbols) < len(file.symbols):
        common = sum(_has(file, symbol) for symbol in symbols)
    else:
        common = len(set(symbols) & set(file.symbols))
    return common / max(len(file.symbols), 1)


# Telling


def told_gaps(plan: Plan, state: DatasetState, unfilled_reason: str) -> list[Gap]:
    """Return the sessions of the range without rows, each with its reason, by symbol and time."""
    told: list[Gap] = []
    for symbol in plan.symbols:
        spans = overlapping(state.coverage.get(symbol, ()), plan.wanted)
        told += [_gap(symbol, span, span.reason) for span in spans if span.reason]
        told += [_gap(symbol, run, unfilled_reason) for run in plan.gaps.get(symbol, ())]
        if plan.future:
            told.append(_gap(symbol, plan.future, "future"))
    return sorted(told, key=lambda gap: (gap.symbol, gap.first))


def _gap(symbol: str, days: Days | Span, reason: str) -> Gap:
    return Gap(symbol, from_day_number(days.first), from_day_number(days.last), reason)


def oldest_fetch(plan: Plan, state: DatasetState) -> float | None:
    """Return when the oldest unsettled cell of the range was fetched, in seconds since 1970; None where all are final."""
    ages = [
        span.fetched_at
        for symbol in plan.symbols
        for span in state.coverage.get(symbol, ())
        if span.state == PROVISIONAL and span.first <= plan.wanted.last and span.last >= plan.wanted.first
    ]
    return min(ages, default=None)


def uncovered(run: Days, flying: Sequence[Days], calendar: Calendar) -> list[Days]:
    """Return the sessions of *run* for which no call is under way."""
    return snapped(subtract(run, sorted(flying)), calendar)

"""What a request resolves to, before any data moves: schema, symbols, window, files, and the cells nobody vouches for.

Pure: request, picture, calendar and instant in; plan out. No I/O, no clock, no lock. ``gaps`` works out the cells.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import pyarrow as pa

from fletching_schemas import Dataset, PartRequest, ReadRequest, normalise_symbol
from fletching_schemas.errors import AnswerChanged, OutOfCalendar, UnknownSymbol
from fletching_server.batches import row_bytes
from fletching_server.calendars import Calendar, day_number
from fletching_server.gaps import Bars, Cells, Gaps, World, bars, cells, earliest_day, horizons, present_session
from fletching_server.image import Window
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Days, Horizon

FURTHEST_AHEAD = timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """One read, resolved.

    ``symbols`` are canonical and sorted; ``window`` says which rows of theirs are wanted; ``files`` are those that may
    hold some; ``gaps`` are the runs of sessions, per symbol, that coverage does not vouch for, ``due`` those that are
    refreshed in the background, ``bars`` say which need not or cannot be asked for. ``horizon`` is how old
    facts may be for the answer, ``refresh`` before they are due. A ``lasting`` plan holds until something is
    committed, or the next session opens or settles; ``asked`` is the request that it was made for.
    """

    dataset: Dataset
    schema: pa.Schema
    symbols: tuple[str, ...]
    window: Window
    files: tuple[StoredFile, ...]
    gaps: Gaps
    due: Gaps
    bars: Bars
    horizon: Horizon
    refresh: Horizon
    calendar: Calendar
    future: Days | None = None
    lasting: bool = False
    asked: ReadRequest | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the schema, in order: pyarrow makes them anew each time it is asked."""
        return tuple(self.schema.names)

    @cached_property
    def held_bytes(self) -> int:
        """What all of its files take in memory."""
        return sum(file.memory_bytes for file in self.files)

    @property
    def wanted(self) -> Days:
        """The wanted sessions as a run of days; empty (last before first) where the range holds none."""
        return Days(self.window.first_day, self.window.last_day)


def resolve(request: ReadRequest, state: DatasetState, world: World) -> Plan:
    """Return the plan of *request* on the picture *state*.

    Raises ``UnknownColumn``, ``UnknownSymbol``, ``OutOfCalendar`` and ``InvalidRequest``.
    """
    schema = state.dataset.project(request.columns)
    symbols = _symbols(request, state, world)
    window, future = _window(request, state, world)
    barred = bars(state.dataset, world)
    wanted = Days(window.first_day, window.last_day)
    found = Cells() if state.is_table else cells(request, state, world, symbols, wanted, barred)
    files = _files(state, symbols, window, everything=request.symbols is None)
    told = (found.gaps, found.due, barred, *horizons(request, state.dataset, world, len(symbols)))
    return Plan(state.dataset, schema, symbols, window, files, *told, world.calendar, future)


# Parts


def estimated_bytes(plan: Plan) -> float:
    """Return about how many bytes the answer has, by the files' sizes: rows are taken to lie evenly."""
    width = row_bytes(plan.schema) / row_bytes(plan.dataset.schema)
    return sum(file.memory_bytes * file.share_of(plan.symbols) * _share_of_days(file, plan.wanted) * width for file in plan.files)


def _share_of_days(file: StoredFile, wanted: Days) -> float:
    common = min(file.last_day, wanted.last) - max(file.first_day, wanted.first) + 1
    return max(0, common) / max(1, file.last_day - file.first_day + 1)


def divided(plan: Plan, generation: int, asked: PartRequest) -> Plan:
    """Return the part of *plan* that *asked* names: a run of its symbols. All parts in order are the whole plan.

    Raises ``AnswerChanged`` where *generation* is not that of the other parts, or something must be fetched first: that
    would change it.
    """
    if generation != asked.generation or (plan.gaps and asked.read.on_miss != "cached"):
        raise AnswerChanged(f"{plan.dataset.name} changed after the read was divided into {asked.parts} parts: read again")
    count = len(plan.symbols)
    symbols = plan.symbols[count * asked.part // asked.parts : count * (asked.part + 1) // asked.parts]
    files = tuple(file for file in plan.files if file.share_of(symbols) > 0)
    gaps, due = ({name: runs[name] for name in symbols if name in runs} for runs in (plan.gaps, plan.due))
    return replace(plan, symbols=symbols, files=files, gaps=gaps, due=due)


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
    unknown = [name for name in unknown if not any(file.has(name) for file in state.files)]
    if not unknown:
        return
    there = sorted(set(world.listed or ()) | held_symbols(state))
    close = difflib.get_close_matches(unknown[0], there, n=3, cutoff=0.5) or there[:3]
    raise UnknownSymbol(
        f"{state.dataset.name} has no symbol {', '.join(unknown[:5])}; it has {len(there):,}"
        + (f", for instance {', '.join(close)}" if close else "")
    )


# Time


def _window(request: ReadRequest, state: DatasetState, world: World) -> tuple[Window, Days | None]:
    """Return the wanted rows, and the part of the range that lies in the future."""
    calendar = world.calendar
    low, high = _extent(state, world)
    first, first_instant = bound(request.start, state.dataset, calendar, low)
    last, last_instant = bound(request.end, state.dataset, calendar, high)
    if isinstance(request.end, datetime) and calendar.overnight:
        # An evening belongs to the next session: its rows carry that date.
        following = calendar.snap(last + 1, last + 14)
        last = following[0] if following else last
    if state.is_table:
        return Window(first, last, first_instant, last_instant), None
    _check_range(request, state.dataset, world)
    present = present_session(state.dataset, calendar, world.now)
    ahead = calendar.snap(max(first, present + 1), last) if last > present else None
    sessions = calendar.snap(max(first, low), min(last, present)) or (max(first, low), max(first, low) - 1)
    return Window(*sessions, first_instant, last_instant), Days(*ahead) if ahead else None


def _extent(state: DatasetState, world: World) -> tuple[int, int]:
    """Return the days between which a read without start or end lies."""
    if state.is_table:
        days = [(file.first_day, file.last_day) for file in state.files] or [(0, -1)]
        return min(first for first, _ in days), max(last for _, last in days)
    return earliest_day(state.dataset, world.calendar), present_session(state.dataset, world.calendar, world.now)


def bound(moment: date | datetime | None, dataset: Dataset, calendar: Calendar, default: int) -> tuple[int, int | None]:
    """Return the day of one end of a range, and the instant where it names one within the day."""
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


# Files


def _files(state: DatasetState, symbols: Sequence[str], window: Window, *, everything: bool) -> tuple[StoredFile, ...]:
    near = [file for file in state.files if file.reach.first <= window.last_day and file.reach.last >= window.first_day]
    if not everything:
        near = [file for file in near if file.share_of(symbols) > 0]
    return tuple(near)

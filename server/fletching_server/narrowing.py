"""What a filter says about symbols and time, taken into the request: the planner then touches nothing else.

A filter's *reach* is the symbols, the sessions and the instants outside of which it wants nothing. It is never too small: what
is not understood reaches everywhere. Conditions that the narrowed request answers by itself are not looked at again. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from fletching_schemas import Dataset, ReadRequest, normalise_symbol
from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.filters import AllOf, AnyOf, Compare, Filter, IsNull, OneOf, Value, all_of, conjuncts
from fletching_schemas.requests import MAX_SYMBOL_LENGTH, MAX_SYMBOLS
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.plan import FURTHEST_AHEAD, bound, named_symbols

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_DAY, _LAST_DAY = day_number(date.min), day_number(date.max)
_STEPS: Final = {"==": (0, 0), ">=": (0, None), ">": (1, None), "<=": (None, 0), "<": (None, -1)}


@dataclass(frozen=True)
class Between:
    """Whole numbers from *low* to *high*, inclusive; None: without an end."""

    low: int | None = None
    high: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing lies between."""
        return self.low is not None and self.high is not None and self.low > self.high

    def within(self, other: Between) -> bool:
        """Return whether all that lies here lies in *other* too."""
        low = other.low is None or (self.low is not None and self.low >= other.low)
        return low and (other.high is None or (self.high is not None and self.high <= other.high))


_EVER: Final = Between()


@dataclass(frozen=True)
class Reach:
    """Where the rows that a filter wants can lie: symbols, sessions as day numbers, instants as microseconds since 1970."""

    symbols: frozenset[str] | None = None
    days: Between = _EVER
    instants: Between = _EVER

    @property
    def empty(self) -> bool:
        """Whether no row can be wanted."""
        return self.symbols == frozenset() or self.days.empty or self.instants.empty


_EVERYWHERE: Final = Reach()


def reach(where: Filter, dataset: Dataset) -> Reach:
    """Return where the rows that *where* wants can lie."""
    match where:
        case AllOf(parts):
            inner = [reach(part, dataset) for part in parts]
            return Reach(
                _joint([each.symbols for each in inner]),
                _overlap(each.days for each in inner),
                _overlap(each.instants for each in inner),
            )
        case AnyOf(parts):
            inner = [each for part in parts if not (each := reach(part, dataset)).empty]
            if not inner:
                return Reach(frozenset())
            return Reach(
                _either([each.symbols for each in inner]),
                _hull([each.days for each in inner]),
                _hull([each.instants for each in inner]),
            )
        case IsNull():
            return _EVERYWHERE
        case Compare() | OneOf():
            return _reach_of(where, dataset)


def _reach_of(leaf: Compare | OneOf, dataset: Dataset) -> Reach:
    values = (leaf.value,) if isinstance(leaf, Compare) else leaf.values
    if not values:
        return Reach(frozenset())
    if leaf.column == dataset.symbol:
        exact = isinstance(leaf, OneOf) or leaf.op == "=="
        return Reach(frozenset(map(str, values))) if exact else _EVERYWHERE
    if leaf.column not in {dataset.session, dataset.time}:
        return _EVERYWHERE
    numbers = [_number(value) for value in values]
    span = Between(min(numbers), max(numbers)) if isinstance(leaf, OneOf) else _compared(leaf.op, numbers[0])
    if dataset.schema.field(leaf.column).type == TIMESTAMP:
        return Reach(instants=span)
    return Reach(days=span) if leaf.column == dataset.session else _EVERYWHERE


def _number(value: Value) -> int:
    if isinstance(value, datetime):
        return (value - _EPOCH) // _MICROSECOND
    return day_number(value) if isinstance(value, date) else 0


def _compared(op: str, number: int) -> Between:
    low, high = _STEPS.get(op, (None, None))
    return Between(None if low is None else number + low, None if high is None else number + high)


def _joint(sets: list[frozenset[str] | None]) -> frozenset[str] | None:
    given = [each for each in sets if each is not None]
    return frozenset.intersection(*given) if given else None


def _either(sets: list[frozenset[str] | None]) -> frozenset[str] | None:
    given = [each for each in sets if each is not None]
    return frozenset().union(*given) if len(given) == len(sets) else None


def _overlap(spans: Iterable[Between]) -> Between:
    listed = list(spans)
    lows, highs = [each.low for each in listed if each.low is not None], [each.high for each in listed if each.high is not None]
    return Between(max(lows, default=None), min(highs, default=None))


def _hull(spans: list[Between]) -> Between:
    lows, highs = [each.low for each in spans], [each.high for each in spans]
    return Between(_if_all(lows, min), _if_all(highs, max))


def _if_all(ends: list[int | None], pick: Callable[[list[int]], int]) -> int | None:
    given = [end for end in ends if end is not None]
    return pick(given) if len(given) == len(ends) else None


# Taking it into a request


@dataclass(frozen=True)
class Narrowed:
    """A request without filter and limit that reaches all wanted rows, and the *rest* of the filter, which it does not answer.

    ``nothing`` says that no row can be wanted. ``listed`` are symbols to look up, where the request asked for all: those of
    them that there are take their place.
    """

    request: ReadRequest
    rest: Filter | None = None
    nothing: bool = False
    listed: frozenset[str] | None = None


def narrow(request: ReadRequest, dataset: Dataset, calendar: Calendar, now: datetime, *, is_table: bool) -> Narrowed:
    """Return *request*, whose filter suits *dataset*, with what the filter says about symbols and time."""
    bare = replace(request, where=None, limit=None)
    if request.where is None:
        return Narrowed(bare)
    wide = reach(request.where, dataset)
    if wide.empty:
        return Narrowed(bare, None, nothing=True)
    symbols = _nameable(wide.symbols, dataset)
    nameable = _nameable_days(calendar, now, is_table=is_table)
    ranged = _ranged(bare, wide, dataset, calendar, nameable, is_table=is_table)
    if ranged is None or symbols == frozenset():
        return Narrowed(bare, None, nothing=True)
    listed = symbols
    if symbols is not None and (named := named_symbols(request, dataset)) is not None:
        symbols, listed = symbols.intersection(named), None
        if not symbols:
            return Narrowed(bare, None, nothing=True)
        ranged = replace(ranged, symbols=tuple(sorted(symbols)))
    rest = [part for part in conjuncts(request.where) if not _answered(part, ranged, symbols, dataset, calendar, nameable)]
    return Narrowed(ranged, all_of(rest), listed=listed)


def _nameable(symbols: frozenset[str] | None, dataset: Dataset) -> frozenset[str] | None:
    """Return those of *symbols* that a row can have and a request can name; None where some cannot be named, or too many.

    Rows carry canonical symbols: ``000001`` is a way to ask, and equal to none of them.
    """
    if symbols is None or len(symbols) > MAX_SYMBOLS:
        return None
    if dataset.notation != "verbatim":
        return frozenset(symbol for symbol in symbols if _canonical(symbol, dataset))
    plain = all(symbol.strip() == symbol and 0 < len(symbol) <= MAX_SYMBOL_LENGTH and symbol.isprintable() for symbol in symbols)
    return symbols if plain else None


def _canonical(symbol: str, dataset: Dataset) -> bool:
    try:
        return normalise_symbol(symbol, dataset.notation) == symbol
    except InvalidRequest:
        return False


def _ranged(
    request: ReadRequest, wide: Reach, dataset: Dataset, calendar: Calendar, nameable: Between, *, is_table: bool
) -> ReadRequest | None:
    """Return *request* with a range that lies within *wide*; None where nothing lies there."""
    days, instants = wide.days, _EVER
    if dataset.session == dataset.time or (not is_table and calendar.mic is not None):
        instants = wide.instants
    elif not is_table:  # a day may begin at the very instant that labels the last bar of the day before
        days = _overlap([days, _in_days(wide.instants)])
    if _overlap([days, nameable]).empty or _overlap([_in_days(instants), Between(None, nameable.high)]).empty:
        return None
    low = _later(request, [_day(days.low, nameable), _instant(instants.low, nameable)], dataset, calendar)
    high = _earlier(request, [_day(days.high, nameable), _instant(instants.high, nameable)], dataset, calendar)
    return _replaced(request, low, high, calendar)


def _replaced(request: ReadRequest, low: Any, high: Any, calendar: Calendar) -> ReadRequest | None:
    """Return *request* from *low* to *high*; None where that is reversed.

    Overnight the session after an evening may begin before a date that is later: such a pair is no range, and one end stays.
    """
    for start, end in ((low, high), (low, request.end), (request.start, high)):
        try:
            return replace(request, start=start, end=end)
        except InvalidRequest:
            if not calendar.overnight:
                return None
    return request


def _nameable_days(calendar: Calendar, now: datetime, *, is_table: bool) -> Between:
    """Return the days that a request may name as its start or end; no row lies outside of them."""
    if is_table:
        return Between(_FIRST_DAY, _LAST_DAY)
    return Between(calendar.first_number, day_number(now.date() + FURTHEST_AHEAD))


def _in_days(instants: Between) -> Between:
    """Return the days in any time zone that may hold *instants*, the day before and the day after included."""
    micros = 86_400_000_000
    low = None if instants.low is None else instants.low // micros - 1
    return Between(low, None if instants.high is None else instants.high // micros + 1)


def _day(number: int | None, nameable: Between) -> date | None:
    return from_day_number(number) if number is not None and Between(number, number).within(nameable) else None


def _instant(micros: int | None, nameable: Between) -> datetime | None:
    if micros is None or not _in_days(Between(micros, micros)).within(nameable):
        return None
    return _EPOCH + timedelta(microseconds=micros)


_Moment = date | datetime | None


def _later(request: ReadRequest, moments: list[_Moment], dataset: Dataset, calendar: Calendar) -> Any:
    """Return the latest of *moments* where the request's own start says nothing that it does not say, else that start."""
    given = [moment for moment in moments if moment is not None]
    if not given:
        return request.start
    best = max(given, key=lambda moment: _key(moment, dataset, calendar, -1))
    if request.start is None:
        return best
    (day, instant), (least, least_instant) = (bound(each, dataset, calendar, 0) for each in (best, request.start))
    covers = least_instant is None or (instant is not None and instant >= least_instant)
    return best if day >= least and covers else request.start


def _earlier(request: ReadRequest, moments: list[_Moment], dataset: Dataset, calendar: Calendar) -> Any:
    """Return the earliest of *moments* where the request's own end says nothing that it does not say, else that end."""
    given = [moment for moment in moments if moment is not None]
    if not given:
        return request.end
    best = min(given, key=lambda moment: _key(moment, dataset, calendar, 1 << 62))
    if request.end is None:
        return best
    (day, instant), (most, most_instant) = (bound(each, dataset, calendar, 0) for each in (best, request.end))
    covers = most_instant is None or (instant is not None and instant <= most_instant)
    mixed = isinstance(best, datetime) != isinstance(request.end, datetime)
    if mixed and calendar.overnight:  # an evening belongs to the next session, which may lie beyond the other end
        return request.end
    return best if day <= most and covers else request.end


def _key(moment: date | datetime, dataset: Dataset, calendar: Calendar, without: int) -> tuple[int, int]:
    day, instant = bound(moment, dataset, calendar, 0)
    return day, without if instant is None else instant


def _answered(
    part: Filter,
    ranged: ReadRequest,
    symbols: frozenset[str] | None,
    dataset: Dataset,
    calendar: Calendar,
    nameable: Between,
) -> bool:
    """Return whether all rows of the narrowed request satisfy *part*, one of the conditions that all must hold."""
    if not isinstance(part, (Compare, OneOf)):
        return False
    own = _reach_of(part, dataset)
    if own.symbols is not None:
        return symbols is not None and symbols <= own.symbols
    if own == _EVERYWHERE or isinstance(part, OneOf):
        return False
    least, most = int(nameable.low or 0), int(nameable.high or 0)
    first, first_instant = bound(ranged.start, dataset, calendar, least)
    last, last_instant = bound(ranged.end, dataset, calendar, most)
    if isinstance(ranged.end, datetime):  # an evening belongs to the next session
        last = most
    return Between(first, last).within(own.days) and Between(first_instant, last_instant).within(own.instants)

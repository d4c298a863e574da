"""Missing cells of many symbols at once: the arithmetic of ``spans.missing`` on arrays, for whole markets. Pure.

Days become ordinals of the calendar's sessions, so that neighbours are neighbours across weekends and holidays; facts of
all symbols lie in one array, symbol by symbol, and what they leave open falls out of comparing each with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final

import numpy as np

from fletching_server.calendars import Calendar
from fletching_server.spans import AGEING, CODES, Days, Facts, Horizon, Spans, facts

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

_NOTHING: Final = Facts()
_AGES: Final = np.array([state in AGEING for state in CODES])


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of missing sessions as ordinals: those before a fact, sorted by owner, and after the last fact of each owner."""

    owners: Ints
    first: Ints
    last: Ints
    tails: Ints
    highs: Ints


class ManyGaps(Mapping[str, Sequence[Days]]):
    """Runs of missing sessions by symbol, kept as arrays: a list is made when a symbol is asked for."""

    def __init__(self, symbols: Sequence[str], days: Ints, runs: _Runs) -> None:
        self._symbols, self._days, self._runs = symbols, days, runs
        self._open = runs.tails <= runs.highs

    @cached_property
    def _places(self) -> dict[str, int]:
        open_ended = self._open.copy()
        open_ended[self._runs.owners] = True
        return {self._symbols[owner]: owner for owner in np.flatnonzero(open_ended).tolist()}

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self._runs.owners) + int(self._open.sum())

    def __getitem__(self, symbol: str) -> list[Days]:
        owner, runs = self._places[symbol], self._runs
        start, stop = runs.owners.searchsorted(owner), runs.owners.searchsorted(owner, "right")
        first, last = self._days[runs.first[start:stop]].tolist(), self._days[runs.last[start:stop]].tolist()
        found = [Days(*run) for run in zip(first, last, strict=True)]
        if self._open[owner]:
            found.append(Days(int(self._days[runs.tails[owner]]), int(self._days[runs.highs[owner]])))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, eq=False)
class Ledger:
    """What is known of *symbols*, as arrays in the order of symbol and session; sessions are ordinals of *calendar*."""

    calendar: Calendar
    symbols: Sequence[str]
    owners: Ints
    first: Ints
    last: Ints
    codes: Ints
    fetched: np.ndarray[tuple[int], np.dtype[np.float64]]

    @classmethod
    def of(cls, calendar: Calendar, symbols: Sequence[str], coverage: Mapping[str, Spans]) -> Ledger:
        """Return the ledger of *symbols*; compiled facts of each symbol are kept with them, so this is one concatenation."""
        compiled = [facts(coverage.get(symbol, _NOTHING)).columns for symbol in symbols]
        days = np.concatenate([each.days for each in compiled], axis=1) if compiled else np.empty((3, 0), np.int64)
        fetched = np.concatenate([each.fetched for each in compiled]) if compiled else np.empty(0)
        owners = np.repeat(np.arange(len(compiled)), [len(each.fetched) for each in compiled])
        return cls(calendar, symbols, owners, calendar.at_or_after(days[0]), calendar.at_or_before(days[1]), days[2], fetched)

    @cached_property
    def ageing(self) -> Flags:
        """Which facts age: see ``spans.AGEING``."""
        return _AGES[self.codes]

    def usable(self, horizon: Horizon) -> Flags:
        """Return which facts still vouch: see ``Span.usable``."""
        if self._all_usable(horizon):
            return np.ones(len(self.fetched), bool)
        vouching = self.fetched >= _oldest(horizon)[self.codes]
        if self._youngest > horizon.latest:
            vouching &= ~self.ageing | (self.fetched <= horizon.latest)
        return np.asarray(vouching)

    def _all_usable(self, horizon: Horizon) -> bool:
        """Return whether every fact vouches: the usual case, told by the oldest of each kind."""
        return bool((self._eldest >= _oldest(horizon)).all()) and self._youngest <= horizon.latest

    @cached_property
    def _eldest(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When the oldest fact of each code was fetched; infinite where there is none."""
        found = np.full(len(CODES), np.inf)
        np.minimum.at(found, self.codes, self.fetched)
        return found

    @cached_property
    def _youngest(self) -> float:
        return float(self.fetched.max(initial=-np.inf))

    def differing(self, one: Horizon, other: Horizon) -> list[str]:
        """Return the symbols of which some fact vouches by one horizon and not by the other."""
        if self._all_usable(one) and self._all_usable(other):
            return []
        owners = self.owners[self.usable(one) != self.usable(other)]
        return [self.symbols[owner] for owner in np.unique(owners)]

    def missing(self, wanted: Days, horizon: Horizon, opened: Sequence[Days] = ()) -> ManyGaps:
        """Return the runs of *wanted* that no usable fact vouches for; *opened*: only within these days of each symbol."""
        lows, highs = self._bounds(wanted, opened)
        settled = self.calendar.at_or_before(np.array([horizon.settled]))[0]
        last = self.last
        if len(last) and last.max() > settled:
            last = np.where(self.ageing, last, last.clip(max=settled))
        first, last = np.maximum(self.first, lows[self.owners]), np.minimum(last, highs[self.owners])
        kept = self.usable(horizon) & (first <= last)
        owners = self.owners
        if not kept.all():
            owners, first, last = owners[kept], first[kept], last[kept]
        return ManyGaps(self.symbols, self.calendar.days, _between(owners, first, last, lows, highs))

    def _bounds(self, wanted: Days, opened: Sequence[Days]) -> tuple[Ints, Ints]:
        """Return the first and last wanted ordinal of each symbol."""
        told, repeats = (opened, 1) if opened else ((wanted,), len(self.symbols))
        # From a flat iterator: numpy takes 3 ms to look into a list of 5,000 pairs.
        days = np.fromiter(chain.from_iterable(told), np.int64, 2 * len(told)).reshape(-1, 2).repeat(repeats, axis=0)
        lows, highs = days[:, 0].clip(min=wanted.first), days[:, 1].clip(max=wanted.last)
        return self.calendar.at_or_after(lows), self.calendar.at_or_before(highs)


def _oldest(horizon: Horizon) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return from when on facts of each code vouch, in the order of ``CODES``."""
    return np.array([horizon.verify, horizon.confirm, horizon.fresh, horizon.verify])


def _between(owners: Ints, first: Ints, last: Ints, lows: Ints, highs: Ints) -> _Runs:
    """Return what disjoint, sorted facts leave open: before each of them, and after the last of each owner."""
    opened = np.empty_like(last)
    opened[1:] = last[:-1] + 1
    begins = np.flatnonzero(np.diff(owners, prepend=-1))  # the first fact of each owner
    opened[begins] = lows[owners[begins]]
    tails = lows.copy()
    if len(owners):
        ends = np.append(begins[1:], len(owners)) - 1
        tails[owners[ends]] = last[ends] + 1
    before = np.flatnonzero(opened < first)
    return _Runs(owners[before], opened[before], first[before] - 1, tails, highs)

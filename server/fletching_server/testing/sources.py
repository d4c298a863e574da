"""What every source must do, as tests: subclass ``SourceTests`` in your own."""

# ruff: noqa: S101 (it is a suite of tests; every assertion says what a source must do)

from __future__ import annotations

import threading
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Final

import polars as pl

from fletching_schemas import Dataset, FetchRequest, normalise_symbol
from fletching_server.admission import admit_fetched
from fletching_server.almanac import build_calendar
from fletching_server.calendars import Calendar, day_number, from_day_number
from fletching_server.sources import Source, SymbolLister

_THREADS: Final = 4


class SourceTests:
    """The contract of a source, tried on a sample of one dataset that has rows of every symbol named.

    Subclass it under a name that pytest collects, say where the sample is, and return your source::

        class TestMySource(SourceTests):
            dataset = "bars_1d"
            symbols = ("600000.SH", "000001.SZ")
            start, end = date(2024, 3, 1), date(2024, 3, 29)

            def source(self) -> Source:
                return MySource()

    Choose two symbols or more and a range of some sessions. ``unknown_symbol`` is one that the source does not have:
    asked for it, ``fetch`` raises or returns no rows. Every test asks for a new source; where one needs files or a
    fake of the network, make them in an autouse fixture of your class.
    """

    dataset: ClassVar[str]
    symbols: ClassVar[Sequence[str]]
    start: ClassVar[date]
    end: ClassVar[date]
    unknown_symbol: ClassVar[str] = "999999.SZ"

    def source(self) -> Source:
        """Return the source under test; yours to implement."""
        raise NotImplementedError(f"{type(self).__name__} needs a method source() that returns the source under test")

    # What it offers

    def test_it_is_a_source_with_a_name(self) -> None:
        """A source has a name, datasets() and fetch(request)."""
        source = self.source()
        assert isinstance(source, Source), f"{source!r} needs a name, datasets() and fetch(request)"
        assert isinstance(source.name, str), f"name={source.name!r} must be text"
        assert source.name, "the name must not be empty: it is kept with every row that came from here"

    def test_its_datasets_are_valid_and_stay_the_same(self) -> None:
        """Datasets have different names, and asking again changes nothing."""
        source = self.source()
        offered = list(source.datasets())
        strangers = [item for item in offered if not isinstance(item, Dataset)]
        assert not strangers, f"datasets() returned {strangers!r}; return fletching_schemas.Dataset objects"
        names = [item.name for item in offered]
        assert len(set(names)) == len(names), f"two datasets have one name: {sorted(names)}"
        assert self.dataset in names, f"the sample is of {self.dataset}, which is not offered; there are {sorted(names)}"
        assert list(source.datasets()) == offered, "datasets() must return the same every time"

    def test_its_symbols_are_canonical_and_unique(self) -> None:
        """Where a source lists symbols, each is there once, canonical, and those of the sample are among them."""
        source = self.source()
        if not isinstance(source, SymbolLister):
            raise unittest.SkipTest("this source has no symbols(); reads of all symbols need it")
        listed = list(source.symbols(self.dataset))
        assert len(set(listed)) == len(listed), "symbols() lists a symbol twice"
        notation = self._offer(source).notation
        other = [name for name in listed if normalise_symbol(name, notation) != name]
        assert not other, f"symbols() must be canonical; {other[:5]} are not"
        absent = sorted(set(self.symbols) - set(listed))
        assert not absent, f"symbols() does not list {absent}, which the sample names"

    # What it answers

    def test_an_answer_is_what_the_server_admits(self) -> None:
        """A table with the dataset's columns and types, sorted, unique by key, of the asked symbols and sessions only."""
        source = self.source()
        rows = self._fetch(source, self.symbols, self.start, self.end)
        silent = sorted(set(self.symbols) - set(rows[self._offer(source).symbol]))
        assert not silent, f"the sample has no rows of {silent}; choose symbols and a range that have some"

    def test_asking_again_gives_the_same_rows(self) -> None:
        """The same request has the same answer, from the same source and from a new one."""
        source = self.source()
        first = self._fetch(source, self.symbols, self.start, self.end)
        _check_equal(self._fetch(source, self.symbols, self.start, self.end), first, "asked twice")
        _check_equal(self._fetch(self.source(), self.symbols, self.start, self.end), first, "asked of a new source")

    def test_the_cut_of_the_range_does_not_matter(self) -> None:
        """A range asked in two parts has the rows of the whole range."""
        source = self.source()
        offer, days = self._offer(source), self._sessions(source)
        assert len(days) > 1, f"the sample {self.start}..{self.end} has {len(days)} sessions; choose at least two"
        whole = self._fetch(source, self.symbols, self.start, self.end)
        for place in sorted({1, len(days) // 2, len(days) - 1}):
            before = self._fetch(source, self.symbols, self.start, days[place - 1])
            after = self._fetch(source, self.symbols, days[place], self.end)
            _check_equal(_sorted(offer, [before, after]), whole, f"cut before {days[place]}")

    def test_symbols_asked_together_do_not_change_each_other(self) -> None:
        """Symbols asked one by one, together, or in another order have the same rows."""
        source = self.source()
        offer = self._offer(source)
        together = self._fetch(source, self.symbols, self.start, self.end)
        alone = [self._fetch(source, [symbol], self.start, self.end) for symbol in self.symbols]
        _check_equal(_sorted(offer, alone), together, "asked one by one")
        backwards = tuple(reversed(self.symbols))
        _check_equal(self._fetch(source, backwards, self.start, self.end), together, "asked in another order")

    def test_a_range_without_sessions_is_empty_with_columns(self) -> None:
        """Days on which the exchange is closed have no rows, and their answer is still a table of the dataset."""
        source = self.source()
        if self._offer(source).calendar is None:
            raise unittest.SkipTest("every day is a session of this dataset")
        calendar = self._calendar(source)
        open_days = {*self._sessions(source, timedelta(days=14))}
        around = [self.start + timedelta(days=step) for step in range(-14, 14)]
        closed = next(day for day in around if day not in open_days and day >= calendar.first)
        rows = self._fetch(source, self.symbols, closed, closed)
        assert rows.is_empty(), f"{closed} is no session of {calendar.name}, and {len(rows)} rows were returned for it"

    def test_an_unknown_symbol_has_no_rows(self) -> None:
        """A symbol that the source does not have is an error or an empty table, never somebody else's rows."""
        source = self.source()
        try:
            answer = source.fetch(self._request([self.unknown_symbol], self.start, self.end))
        except Exception:  # noqa: BLE001  # any error will do: the server translates it
            return
        rows = self._admitted(source, answer, [self.unknown_symbol], self.start, self.end)
        assert rows.is_empty(), f"{len(rows)} rows were returned for {self.unknown_symbol}, which should be unknown"

    def test_threads_get_the_same_answers(self) -> None:
        """Fetching from several threads at once changes no answer."""
        source = self.source()
        asked = [tuple(self.symbols), *([symbol] for symbol in self.symbols)]
        expected = [self._fetch(source, symbols, self.start, self.end) for symbols in asked]
        start_line = threading.Barrier(_THREADS)

        def fetch_all(shift: int) -> list[tuple[int, pl.DataFrame]]:
            start_line.wait(30)
            places = [(place + shift) % len(asked) for place in range(len(asked))]
            return [(place, self._fetch(source, asked[place], self.start, self.end)) for place in places]

        with ThreadPoolExecutor(_THREADS) as pool:
            for answers in pool.map(fetch_all, range(_THREADS)):
                for place, rows in answers:
                    _check_equal(rows, expected[place], "asked from several threads at once")

    # How they ask

    def _offer(self, source: Source) -> Dataset:
        return next(item for item in source.datasets() if item.name == self.dataset)

    def _calendar(self, source: Source) -> Calendar:
        return build_calendar(self._offer(source).calendar, max(self.end, datetime.now(UTC).date()))

    def _sessions(self, source: Source, margin: timedelta = timedelta(0)) -> list[date]:
        first, last = self.start - margin, self.end + margin
        return [from_day_number(int(day)) for day in self._calendar(source).between(day_number(first), day_number(last))]

    def _request(self, symbols: Sequence[str], start: date, end: date) -> FetchRequest:
        return FetchRequest(self.dataset, tuple(symbols), start, end)

    def _fetch(self, source: Source, symbols: Sequence[str], start: date, end: date) -> pl.DataFrame:
        answer = source.fetch(self._request(symbols, start, end))
        return self._admitted(source, answer, symbols, start, end)

    def _admitted(self, source: Source, answer: Any, symbols: Sequence[str], start: date, end: date) -> pl.DataFrame:
        """Return the rows as the server would keep them, cut to the range where the source may return more."""
        offer = self._offer(source)
        image = admit_fetched(offer, answer, self._request(symbols, start, end), source.name)
        rows = pl.DataFrame(pl.from_arrow(image.table))
        return rows.filter(pl.col(offer.session).cast(pl.Date).is_between(start, end))


def _sorted(offer: Dataset, parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).sort(offer.sort_keys)


def _check_equal(rows: pl.DataFrame, expected: pl.DataFrame, how: str) -> None:
    assert len(rows) == len(expected), f"{how}, there are {len(rows)} rows in place of {len(expected)}"
    for name in expected.columns:
        other = rows[name].ne_missing(expected[name]).arg_true()
        assert other.is_empty(), f"{how}, {name}[{other[0]}] is {rows[name][other[0]]!r} in place of {expected[name][other[0]]!r}"

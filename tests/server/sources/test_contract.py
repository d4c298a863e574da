"""The shipped contract suite: on the sources that ship, and on sources that break the contract, which it must catch."""

from __future__ import annotations

import io
import itertools
import threading
import unittest
import zipfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fletching_schemas import Dataset, FetchRequest, canonical
from fletching_schemas.errors import BadSourceData
from fletching_server.sources import Source
from fletching_server.sources.files import FilesSource
from fletching_server.sources.sim import SimSource
from fletching_server.testing import SourceTests

# The simulated market


class _SimTests(SourceTests):
    symbols = ("600000.SH", "000001.SZ", "300001.SZ")
    start, end = date(2024, 3, 4), date(2024, 3, 8)

    def source(self) -> Source:
        return SimSource(symbols=20, first=date(2023, 1, 3), last=date(2024, 12, 31))


class TestSimDailyBars(_SimTests):
    dataset = "bars_1d"
    start, end = date(2023, 11, 1), date(2024, 3, 1)


class TestSimMinuteBars(_SimTests):
    dataset = "bars_1m"


class TestSimTrades(_SimTests):
    dataset = "trades"
    start, end = date(2024, 3, 5), date(2024, 3, 7)


class TestSimQuotes(_SimTests):
    dataset = "quotes_l1"
    start, end = date(2024, 3, 5), date(2024, 3, 6)


class TestSimInstruments(_SimTests):
    dataset = "instruments"
    start, end = date(2015, 1, 1), date(2024, 12, 31)


# Files, made here


DAILY: dict[str, Any] = {
    "name": "bars_1d", "canonical": "bars_1d", "calendar": "XNYS", "path": "daily/{code}.csv", "symbol": "{code}.US",
}  # fmt: skip
TICKS: dict[str, Any] = {
    "name": "trades", "canonical": "trades", "calendar": "XNYS", "path": "tick/{code}/{date:%Y%m%d}.zip",
    "symbol": "{code}.US", "seq": "seq", "columns": ["ts", "price", "size", "condition"], "time_format": "milliseconds",
    "time_zone": "America/New_York", "price_scale": 10000, "price_columns": ["price"],
}  # fmt: skip
DAYS = [date(2024, 3, day) for day in (11, 12, 13, 14, 15, 18, 19)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    (root / "daily").mkdir()
    for place, code in enumerate(("aapl", "msft", "ibm")):
        lines = [f"{day},{20 + place},{22 + place},{19 + place},{21 + place},{100 * day.day}" for day in DAYS[place:]]
        (root / f"daily/{code}.csv").write_text("\n".join(["trading_date,open,high,low,close,volume", *lines]) + "\n")
        for day in DAYS[:3]:
            ticks = [f"{34_200_000 + tick // 3},{200_000 + tick},{100 + tick % 7},{tick:x}" for tick in range(60)]
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("ticks.csv", "\n".join([*ticks, ticks[-1]]) + "\n")  # the last trade, twice
            path = root / f"tick/{code}/{day:%Y%m%d}.zip"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.getvalue())
    return root


class _FilesTests(SourceTests):
    symbols = ("AAPL.US", "IBM.US", "MSFT.US")
    start, end = DAYS[0], DAYS[-1]
    unknown_symbol = "ZZZ.US"
    root: Path

    @pytest.fixture(autouse=True)
    def _in_folder(self, folder: Path) -> None:
        self.root = folder

    def source(self) -> Source:
        return FilesSource.from_config({"root": str(self.root), "dataset": [DAILY, TICKS]}, Path())


class TestFilesOfDailyBars(_FilesTests):
    dataset = "bars_1d"


class TestFilesOfTicks(_FilesTests):
    dataset = "trades"


# Sources that break the contract: each must fail the test that is named.


OFFER = canonical("bars_1d", calendar="XSHG", symbols_per_call=10)
HONEST = ("600000.SH", "000001.SZ")


class Market:
    """An honest source of three symbols, which the wrong ones below spoil."""

    name = "market"

    def __init__(self, spoil: Callable[[FetchRequest, pa.Table], Any] | None = None) -> None:
        self._sim = SimSource(symbols=20, first=date(2024, 1, 2), last=date(2024, 12, 31))
        self._spoil = spoil

    def datasets(self) -> Sequence[Dataset]:
        return [OFFER]

    def symbols(self, dataset: str) -> Sequence[str]:
        return self._sim.symbols(dataset)

    def fetch(self, request: FetchRequest) -> Any:
        rows = self._sim.fetch(request)
        return rows if self._spoil is None else self._spoil(request, rows)


class _Suite(SourceTests):
    """The suite as an object: pytest does not collect it, tests below call its tests."""

    dataset = "bars_1d"
    symbols = HONEST
    start, end = date(2024, 3, 4), date(2024, 3, 15)

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def source(self) -> Source:
        source: Source = self._make()
        return source


TESTS = [name for name in dir(SourceTests) if name.startswith("test_")]


@pytest.mark.parametrize("name", TESTS)
def test_an_honest_source_passes(name: str) -> None:
    getattr(_Suite(Market), name)()


def _without_first(_request: FetchRequest, rows: pa.Table) -> pa.Table:
    return rows.slice(1)


def _priced_by_length(_request: FetchRequest, rows: pa.Table) -> pa.Table:
    """Prices that depend on how much was asked, as series that a vendor adjusts on the fly do."""
    place = rows.schema.get_field_index("amount")
    return rows.set_column(place, rows.schema.field(place), pc.multiply(rows.column(place), float(rows.num_rows)))


def _of_first_symbol(request: FetchRequest, rows: pa.Table) -> pa.Table:
    return rows.slice(0, rows.column("symbol").to_pylist().count(min(request.symbols)))


def _renamed(_request: FetchRequest, rows: pa.Table) -> pa.Table:
    return rows.rename_columns(["code", *rows.column_names[1:]])


FAULTS: list[tuple[str, Callable[[FetchRequest, pa.Table], Any], str]] = [
    ("returns no table", lambda _request, rows: rows.to_pylist(), "test_an_answer_is_what_the_server_admits"),
    ("renames a column", _renamed, "test_an_answer_is_what_the_server_admits"),
    ("returns rows twice", lambda _request, rows: pa.concat_tables([rows, rows]), "test_an_answer_is_what_the_server_admits"),
    ("leaves a symbol out", _of_first_symbol, "test_an_answer_is_what_the_server_admits"),
    ("loses the first row", _without_first, "test_the_cut_of_the_range_does_not_matter"),
    ("loses the first row of all", _without_first, "test_symbols_asked_together_do_not_change_each_other"),
    ("adjusts on the fly", _priced_by_length, "test_the_cut_of_the_range_does_not_matter"),
]


@pytest.mark.parametrize(("what", "spoil", "caught_by"), FAULTS, ids=[f"{what}-{test}" for what, _, test in FAULTS])
def test_a_source_that_breaks_the_contract_is_caught(
    what: str, spoil: Callable[[FetchRequest, pa.Table], Any], caught_by: str
) -> None:
    del what
    with pytest.raises((AssertionError, BadSourceData)):
        getattr(_Suite(lambda: Market(spoil)), caught_by)()


def test_a_source_that_forgets_is_caught() -> None:
    count = itertools.count()
    suite = _Suite(lambda: Market(lambda _request, rows: rows.slice(next(count) % 2)))
    with pytest.raises(AssertionError, match="asked twice"):
        suite.test_asking_again_gives_the_same_rows()


def test_a_source_with_rows_on_holidays_is_caught() -> None:
    class Eager(Market):
        def fetch(self, request: FetchRequest) -> pa.Table:
            rows = self._sim.fetch(FetchRequest(request.dataset, request.symbols, date(2024, 3, 4), date(2024, 3, 4)))
            place = rows.schema.get_field_index("trading_date")
            days = pa.array([request.start] * rows.num_rows, pa.date32())
            return rows.set_column(place, rows.schema.field(place), days)

    with pytest.raises(AssertionError, match="no session"):
        _Suite(Eager).test_a_range_without_sessions_is_empty_with_columns()


def test_a_source_that_answers_for_somebody_else_is_caught() -> None:
    class Helpful(Market):
        def fetch(self, request: FetchRequest) -> pa.Table:
            known = [name if name in self.symbols("bars_1d") else "600000.SH" for name in request.symbols]
            return self._sim.fetch(FetchRequest(request.dataset, tuple(known), request.start, request.end))

    with pytest.raises(BadSourceData, match="not asked"):
        _Suite(Helpful).test_an_unknown_symbol_has_no_rows()


def test_a_source_that_mixes_threads_up_is_caught() -> None:
    class Shared(Market):
        def __init__(self) -> None:
            super().__init__()
            self._both = threading.Barrier(2)

        def fetch(self, request: FetchRequest) -> pa.Table:
            rows = super().fetch(request)
            if threading.current_thread() is threading.main_thread():
                return rows
            self._both.wait(30)  # two threads at a time: the one that came first loses a row
            return rows.slice(1)

    with pytest.raises(AssertionError, match="several threads"):
        _Suite(Shared).test_threads_get_the_same_answers()


def test_symbols_in_another_notation_are_caught() -> None:
    class Verbose(Market):
        def symbols(self, dataset: str) -> Sequence[str]:
            return [*super().symbols(dataset), "SZSE.000099"]

    with pytest.raises(AssertionError, match="canonical"):
        _Suite(Verbose).test_its_symbols_are_canonical_and_unique()


def test_a_source_without_a_list_of_symbols_may_be_so() -> None:
    class Silent:
        name = "silent"
        datasets = Market.datasets
        fetch = Market.fetch

    with pytest.raises(unittest.SkipTest):
        _Suite(Silent).test_its_symbols_are_canonical_and_unique()


def test_a_suite_without_a_source_says_what_is_missing() -> None:
    class Forgotten(SourceTests):
        dataset: ClassVar[str] = "bars_1d"

    with pytest.raises(NotImplementedError, match=r"Forgotten needs a method source\(\)"):
        Forgotten().test_it_is_a_source_with_a_name()

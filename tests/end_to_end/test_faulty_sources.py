"""A source that misbehaves: one clear error over every plane, nothing stored, and the next good read works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import Dataset, FetchRequest
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Rig, Rigs

SYMBOLS = ["000001.SZ", "600000.SH"]
ASKED = ("bars_1d", SYMBOLS, "2024-06-03", "2024-06-07")
Spoil = Callable[[FetchRequest, pa.Table], Any]


class Moody:
    """The simulated market, whose answers go through *spoil*, and that hangs while *gate* is closed."""

    name = "moody"

    def __init__(self) -> None:
        self._sim = SimSource(symbols=8, first=date(2024, 1, 2))
        self.spoil: Spoil | None = None
        self.listing: Callable[[], Sequence[str]] | None = None
        self.gate = threading.Event()
        self.gate.set()

    def datasets(self) -> Sequence[Dataset]:
        return self._sim.datasets()

    def symbols(self, dataset: str) -> Sequence[str]:
        return self._sim.symbols(dataset) if self.listing is None else self.listing()

    def fetch(self, request: FetchRequest) -> Any:
        self.gate.wait()
        rows = self._sim.fetch(request)
        return rows if self.spoil is None else self.spoil(request, rows)


@pytest.fixture
def source() -> Iterator[Moody]:
    made = Moody()
    yield made
    made.gate.set()


@pytest.fixture
def rig(rigs: Rigs, plane: str, source: Moody, noon: Callable[[], ManualClock]) -> Rig:
    return rigs(plane, [source], noon(), source_seconds=20)


def frame(rows: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(rows))


def arrow(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.newest())


def spoiled(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Spoil:
    return lambda _request, rows: arrow(change(frame(rows)))


def raising(error: BaseException) -> Spoil:
    def spoil(_request: FetchRequest, _rows: pa.Table) -> Any:
        raise error

    return spoil


def stranger(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows, rows.tail(1).with_columns(symbol=pl.lit("600001.SH"))])


def late(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows, rows.tail(1).with_columns(trading_date=date(2024, 6, 11))])


def gbk(_request: FetchRequest, rows: pa.Table) -> pa.Table:
    """Symbols whose bytes are no UTF-8, as a text column that was never decoded has them."""
    text = "平安".encode("gbk") * rows.num_rows
    offsets = pa.array(range(0, len(text) + 1, 4), pa.int32()).buffers()[1]
    names = pa.Array.from_buffers(pa.string(), rows.num_rows, [None, offsets, pa.py_buffer(text)])
    return rows.set_column(0, "symbol", names)


def torn(_request: FetchRequest, rows: pa.Table) -> pa.Table:
    """Symbols whose offsets point far beyond their bytes, and back."""
    offsets = pa.array([0, *[2**30] * 8, 9], pa.int32()).buffers()[1]
    names = pa.Array.from_buffers(pa.string(), 9, [None, offsets, pa.py_buffer(b"600000.SH")])
    return rows.slice(0, 9).set_column(0, "symbol", names)


WRONG_ANSWERS: dict[str, tuple[Spoil, str]] = {
    "nothing at all": (lambda _request, _rows: None, "with a NoneType; return a pyarrow.Table"),
    "a Polars frame": (lambda _request, rows: frame(rows), "with a DataFrame; return a pyarrow.Table"),
    "a column too many": (spoiled(lambda rows: rows.with_columns(mood=1)), "unexpected column mood"),
    "no symbol": (spoiled(lambda rows: rows.drop("symbol")), "column symbol is missing"),
    "text for a price": (
        spoiled(lambda rows: rows.with_columns(close=pl.lit("cheap"))),
        r"close\[0\] = cheap is not double",
    ),
    "a price for a symbol": (spoiled(lambda rows: rows.with_columns(symbol=pl.col("close"))), r"symbol\[0\] = .* is not string"),
    "half a share": (spoiled(lambda rows: rows.with_columns(volume=pl.lit(100.5))), r"volume\[0\] = 100.5 is not int64"),
    "no date": (spoiled(lambda rows: rows.with_columns(trading_date=pl.lit("soon"))), r"trading_date\[0\] = soon"),
    "rows twice": (spoiled(lambda rows: pl.concat([rows, rows]).sort("symbol", "trading_date")), "10 duplicate keys"),
    "rows in disorder": (spoiled(lambda rows: rows.reverse()), "not sorted by symbol, trading_date"),
    "rows of another day": (spoiled(late), "session 2024-06-11, outside the range"),
    "rows of a stranger": (spoiled(stranger), "600001.SH, which was not asked"),
    "NaN": (spoiled(lambda rows: rows.with_columns(close=float("nan"))), r"close\[0\] is NaN"),
    "a null key": (spoiled(lambda rows: rows.with_columns(trading_date=None)), r"trading_date\[0\] is null"),
    "a bar upside down": (spoiled(lambda rows: rows.with_columns(low=pl.col("high") + 1)), "break low <= open"),
    "text that is no UTF-8": (gbk, "is not valid Arrow data: .*UTF8"),
    "buffers that do not fit": (torn, "is not valid Arrow data: .*offset"),
}


def check_alive(rig: Rig, source: Moody) -> None:
    """Nothing was stored or is held, and the next good read has the rows."""
    rig.wait_until_idle()
    assert rig.cache.health()["status"] == "serving"
    assert rig.cache.coverage("bars_1d").is_empty()
    assert rig.cache.datasets().filter(name="bars_1d")["rows"].to_list() == [0]
    assert not list(rig.engine.store.root.glob("journal/*"))
    assert rig.engine.hot.facts()["hot_leases"] == 0
    source.spoil, source.listing = None, None
    source.gate.set()
    rows, info = rig.cache.read(*ASKED, info=True)
    assert (rows.height, info.upstream_calls, info.tier) == (10, 1, "source")
    expected = SimSource(symbols=8, first=date(2024, 1, 2)).fetch(
        FetchRequest("bars_1d", tuple(SYMBOLS), date(2024, 6, 3), date(2024, 6, 7))
    )
    assert_frame_equal(rows, frame(expected))
    assert rig.engine.verify() == []


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_a_wrong_answer_is_bad_source_data_and_nothing_is_stored(name: str, rig: Rig, source: Moody) -> None:
    source.spoil, message = WRONG_ANSWERS[name]
    with pytest.raises(fletching.BadSourceData, match=message) as caught:
        rig.cache.read(*ASKED)
    assert str(caught.value).startswith("source moody answered bars_1d 000001.SZ, 600000.SH 2024-06-03..2024-06-07")
    assert isinstance(caught.value, ValueError)
    check_alive(rig, source)


RAISED: dict[str, tuple[BaseException, type[Exception], str]] = {
    "a bug": (ZeroDivisionError("division by zero"), fletching.SourceUnavailable, "ZeroDivisionError: division by zero"),
    "no network": (ConnectionResetError(104, "reset"), fletching.SourceUnavailable, "ConnectionResetError"),
    "a timeout of its own": (TimeoutError("30 s"), fletching.SourceUnavailable, "TimeoutError: 30 s"),
    "no memory": (MemoryError(), fletching.SourceUnavailable, "MemoryError"),
    "an exit": (SystemExit(3), fletching.SourceUnavailable, "SystemExit: 3"),
    "Ctrl-C": (KeyboardInterrupt(), fletching.SourceUnavailable, "KeyboardInterrupt"),
    "an error of ours": (fletching.BadSourceData("line 7 of a.csv: x"), fletching.BadSourceData, "^line 7 of a.csv: x$"),
    "much Chinese": (RuntimeError("数据源繁忙" * 2000), fletching.SourceUnavailable, "数据源繁忙"),
    "much Chinese as ours": (fletching.SourceUnavailable("数据源繁忙" * 2000), fletching.SourceUnavailable, "^数据源繁忙"),
    "control characters": (RuntimeError("a\r\n\x00b\ud800"), fletching.SourceUnavailable, "RuntimeError: a"),
}


@pytest.mark.parametrize("name", RAISED)
def test_what_a_source_raises_reaches_the_reader_as_one_error(name: str, rig: Rig, source: Moody) -> None:
    error, kind, message = RAISED[name]
    source.spoil = raising(error)
    with pytest.raises(fletching.Error, match=message) as caught:
        rig.cache.read(*ASKED)
    assert type(caught.value) is kind
    assert "Traceback" not in str(caught.value)
    check_alive(rig, source)


@pytest.mark.parametrize("name", RAISED)
def test_a_list_of_symbols_that_fails_is_one_error_too(name: str, rig: Rig, source: Moody) -> None:
    error, kind, message = RAISED[name]

    def fail() -> Sequence[str]:
        raise error

    source.listing = fail
    with pytest.raises(fletching.Error, match=message) as caught:
        rig.cache.read("bars_1d", None, "2024-06-03", "2024-06-07")
    assert type(caught.value) is kind
    check_alive(rig, source)


@pytest.mark.parametrize("listed", [None, 7, [None], [7], "000001.SZ", ["", "x" * 100_000]], ids=repr)
def test_a_list_of_symbols_that_is_none_is_bad_source_data(listed: Any, rig: Rig, source: Moody) -> None:
    source.listing = lambda: listed
    with pytest.raises(fletching.BadSourceData, match=r"moody\.symbols\(bars_1d\)"):
        rig.cache.read("bars_1d", None, "2024-06-03", "2024-06-07")
    check_alive(rig, source)


def test_a_source_that_hangs_is_given_up_at_its_deadline(
    rigs: Rigs, plane: str, source: Moody, noon: Callable[[], ManualClock]
) -> None:
    rig = rigs(plane, [source], noon(), source_seconds=0.3)
    source.gate.clear()
    with pytest.raises(fletching.SourceTimeout, match=r"no answer in 0\.3 s; nothing was stored") as caught:
        rig.cache.read(*ASKED)
    assert isinstance(caught.value, TimeoutError)
    assert rig.cache.stats()["hanging_calls_moody"] == 1
    check_alive(rig, source)


def test_an_answer_after_the_deadline_is_dropped(rigs: Rigs, source: Moody, noon: Callable[[], ManualClock]) -> None:
    rig = rigs("tcp", [source], noon(), source_seconds=0.3)
    returned = threading.Event()

    def note(_request: FetchRequest, rows: pa.Table) -> pa.Table:
        returned.set()
        return rows

    source.spoil = note
    source.gate.clear()
    with pytest.raises(fletching.SourceTimeout):
        rig.cache.read(*ASKED)
    source.gate.set()
    assert returned.wait(20)
    check_alive(rig, source)


def test_rows_that_are_held_are_served_while_the_source_fails(rig: Rig, source: Moody) -> None:
    rows = rig.cache.read(*ASKED)
    source.spoil = raising(RuntimeError("down"))
    again, info = rig.cache.read(*ASKED, info=True)
    assert_frame_equal(again, rows)
    assert info.upstream_calls == 0
    longer = ("bars_1d", SYMBOLS, "2024-05-31", "2024-06-07")
    with pytest.raises(fletching.SourceUnavailable, match="down"):
        rig.cache.read(*longer)
    held, info = rig.cache.read(*longer, on_miss="cached", info=True)
    assert_frame_equal(held, rows)
    assert [str(gap) for gap in info.gaps] == [f"{symbol} 2024-05-31..2024-05-31 not_cached" for symbol in SYMBOLS]


def test_looking_works_while_the_list_of_symbols_fails(rig: Rig, source: Moody) -> None:
    def fail() -> Sequence[str]:
        raise RuntimeError("down")

    source.listing = fail
    assert "bars_1d" in rig.cache.datasets()["name"].to_list()
    assert rig.cache.schema("bars_1d").names[0] == "symbol"
    assert rig.cache.coverage("bars_1d").is_empty()
    assert rig.cache.health()["status"] == "serving"


def test_one_dataset_that_fails_does_not_hide_the_others(rigs: Rigs, source: Moody, flight: Any) -> None:
    def fail() -> Sequence[str]:
        raise RuntimeError("down")

    source.listing = fail
    rig = rigs("tcp", [source])
    infos = list(flight(rig).list_flights())
    assert {info.descriptor.path[0].decode() for info in infos} == {item.name for item in source.datasets()}
    assert {info.total_records for info in infos} == {-1}


@pytest.mark.parametrize("offered", [None, 7, ["bars_1d"]], ids=repr)
def test_offers_that_are_none_stop_the_start_with_an_error(offered: Any, rigs: Rigs, source: Moody) -> None:
    class Odd(Moody):
        def datasets(self) -> Any:
            return offered

    with pytest.raises(fletching.Error, match="moody"):
        rigs("embedded", [Odd()])
    rigs("embedded", [source])

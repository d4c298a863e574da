"""What the server's tests share: a source made of a dict, a clock that stands, and engines that are checked when they end."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
import structlog
from structlog.testing import capture_logs

from fletching_schemas import Dataset, FetchRequest, ReadInfo, ReadRequest, WriteRequest, WriteResult, canonical
from fletching_schemas.tagged import from_tagged
from fletching_server import Engine, open_engine
from fletching_server.sources import Source
from fletching_server.sources.akshare_frames import encode
from fletching_server.testing import ManualClock

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday, 20:00 in Shanghai: today's session has settled
WAIT_SECONDS: Final = 20.0  # how long a test waits for another thread before it fails; nothing waits that long when all is well

Row = dict[str, Any]
Rows = dict[tuple[str, date], Row]

SYMBOLS: Final = ("000001.SZ", "000002.SZ", "300750.SZ", "600519.SH", "688981.SH")


def weekdays(first: date, last: date) -> list[date]:
    """Return Monday to Friday between two days: the sessions, where the range holds no holiday."""
    days = (first + timedelta(days=count) for count in range((last - first).days + 1))
    return [day for day in days if day.weekday() < 5]


def bar(symbol: str, day: date, version: int = 0) -> Row:
    """Return a daily bar that only this symbol, day and version have."""
    base = 10.0 + int(symbol.partition(".")[0]) % 97 + day.toordinal() % 89 / 10 + version
    return {
        "symbol": symbol,
        "trading_date": day,
        "open": base,
        "high": base + 2,
        "low": base - 1,
        "close": base + 1,
        "volume": day.toordinal() * 100 + version,
        "suspended": False,
    }


def bars(symbols: Sequence[str], days: Sequence[date], version: int = 0) -> Rows:
    """Return a daily bar for each symbol and day."""
    return {(symbol, day): bar(symbol, day, version) for symbol in symbols for day in days}


class TableSource:
    """A source over a dict of rows by symbol and session; it records what it is asked and can be told to fail or to hang."""

    def __init__(self, dataset: Dataset, rows: Mapping[tuple[str, date], Row | list[Row]], name: str = "table") -> None:
        self.name = name
        self.dataset = dataset
        self.rows: dict[tuple[str, date], Row | list[Row]] = dict(rows)
        self.requests: list[FetchRequest] = []
        self.error: BaseException | None = None
        self.answer: Callable[[FetchRequest], Any] | None = None  # in place of the rows
        self.hanging: Callable[[FetchRequest], bool] = lambda _request: True
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Condition()

    def datasets(self) -> list[Dataset]:
        """Return the one dataset."""
        return [self.dataset]

    def fetch(self, request: FetchRequest) -> Any:
        """Return the rows of the range (of all time, without range push-down), or what the test put in their place."""
        with self._entered:
            self.requests.append(request)
            self._entered.notify_all()
        if self.hanging(request):
            assert self._open.wait(WAIT_SECONDS), "a blocked source was never released"
        if self.error is not None:
            raise self.error
        return self.table(request) if self.answer is None else self.answer(request)

    def table(self, request: FetchRequest) -> pa.Table:
        """Return the rows of *request* in order, as a well-behaved source does."""
        found: list[Row] = []
        for (symbol, day), row in self.rows.items():
            inside = not self.dataset.range_pushdown or request.start <= day <= request.end
            if symbol in request.symbols and inside:
                found += row if isinstance(row, list) else [row]
        found.sort(key=lambda row: tuple(row[key] for key in self.dataset.sort_keys))
        return pa.Table.from_pylist(found, schema=self.dataset.schema)

    def block(self) -> None:
        """Make calls hang (those that ``hanging`` picks) until ``unblock``."""
        self._open.clear()

    def unblock(self) -> None:
        """Let all calls that hang go on."""
        self._open.set()

    def wait_for_calls(self, count: int) -> None:
        """Return once *count* calls have begun."""
        with self._entered:
            assert self._entered.wait_for(lambda: len(self.requests) >= count, WAIT_SECONDS), f"{len(self.requests)} calls came"

    def cells_asked(self) -> list[tuple[str, date]]:
        """Return every (symbol, calendar day) that was asked for, repetitions included."""
        return [
            (symbol, request.start + timedelta(days=count))
            for request in self.requests
            for symbol in request.symbols
            for count in range((request.end - request.start).days + 1)
        ]


class ListingSource(TableSource):
    """A ``TableSource`` that also knows its symbols."""

    def symbols(self, dataset: str) -> list[str]:
        """Return the symbols that have a row."""
        assert dataset == self.dataset.name
        return sorted({symbol for symbol, _ in self.rows})


class LibrarySource:
    """A source whose functions can be called: plain Python ones, in this process, whatever they return encoded as a table.

    It records its calls, and can be told to fail or to hang.
    """

    def __init__(self, *functions: Callable[..., Any], name: str = "akshare", release: str = "1.0") -> None:
        self.name, self.release = name, release
        self.library = {function.__name__: function for function in functions}
        self.fresh_seconds = 300.0
        self.concurrent_calls = 32
        self.called: list[tuple[str, dict[str, Any]]] = []
        self.most_at_once = self._under_way = 0
        self.error: Exception | None = None
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Condition()

    def datasets(self) -> list[Dataset]:
        """Return none: it has functions only."""
        return []

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Fail: no dataset can be asked for."""
        raise AssertionError(f"nobody offers {request}")

    def version(self) -> str:
        """Return the version that the test gave it."""
        return self.release

    def freshness(self, function: str) -> float:
        """Return the same for all functions."""
        assert function in self.library
        return self.fresh_seconds

    def functions(self) -> list[str]:
        """Return the names."""
        return list(self.library)

    def parameters(self, function: str) -> list[str]:
        """Return the names of a function's parameters."""
        return list(inspect.signature(self.library[function]).parameters)

    def call(self, function: str, arguments: Mapping[str, Any]) -> pa.Table:
        """Return what the function returns."""
        with self._entered:
            self.called.append((function, dict(arguments)))
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            self._entered.notify_all()
        try:
            assert self._open.wait(WAIT_SECONDS), "a blocked library was never released"
            if self.error is not None:
                raise self.error
            return encode(self.library[function](**from_tagged(dict(arguments))))
        finally:
            with self._entered:
                self._under_way -= 1

    def block(self) -> None:
        """Make calls hang until ``unblock``."""
        self._open.clear()

    def unblock(self) -> None:
        """Let all calls that hang go on."""
        self._open.set()

    def wait_for_calls(self, count: int) -> None:
        """Return once *count* calls have begun."""
        with self._entered:
            assert self._entered.wait_for(lambda: len(self.called) >= count, WAIT_SECONDS), f"{len(self.called)} calls came"


class Opener:
    """Opens engines on one store, and checks each of them when the test ends."""

    def __init__(self, root: Path, clock: ManualClock) -> None:
        self.root, self.clock = root, clock
        self.damaged = False  # set by tests that leave a damaged user table behind on purpose
        self._opened: list[Engine] = []

    def __call__(self, *sources: Source | str, store: str = "store", **settings: Any) -> Engine:
        """Return an engine over *store*, one that compacts only when told to."""
        chosen = {
            "memory": "64MiB",
            "query_memory": "128MiB",
            "threads": 1,
            "compact_idle_seconds": 3600,
            "compact_segments": 10_000,
            "scrub_days": 0,  # tests that damage files decide when that is found
            "compact_settle_seconds": 1e9,
            "vacuum_seconds": 1e9,
            "access_seconds": 3600,  # tests say when the log is written
            "warm": False,  # and when the warmer looks
            "hot_list": False,  # tests that start again look for what is on disk, unless they ask for this
        }
        engine = open_engine(self.root / store, sources, clock=self.clock, **{**chosen, **settings})
        self._opened.append(engine)
        return engine

    def again(self, engine: Engine, *sources: Source | str, **settings: Any) -> Engine:
        """Close *engine*, and return another one over the same store."""
        engine.close()
        return self(*sources, store=engine.settings.store.name, **settings)

    def finish(self) -> None:
        """Check every store that was used, by its open engine or by a new one, and close."""
        seen: set[str] = set()
        for engine in reversed(self._opened):
            if not is_open(engine):
                continue
            seen.add(engine.settings.store.name)
            try:
                engine.evidence.close()  # a read of its own may be under way: it holds a lease, and ends
                assert engine.hot.facts()["hot_leases"] == 0
                assert self.damaged or engine.verify() == []
            finally:
                engine.close()
        for name in {engine.settings.store.name for engine in self._opened} - seen:
            with open_engine(self.root / name, clock=self.clock, query_memory="128MiB", threads=1) as engine:
                assert self.damaged or engine.verify() == []


def is_open(engine: Engine) -> bool:
    """Return whether *engine* still has its store."""
    return engine.store._lock._descriptor >= 0


def read(
    engine: Engine, dataset: str = "bars_1d", symbols: Any = None, start: Any = None, end: Any = None, **more: Any
) -> pa.Table:
    """Return the rows of one read, as a table."""
    answer = engine.read(ReadRequest(dataset, symbols, start, end, **more))
    return pa.Table.from_batches(list(answer), schema=answer.schema)


def read_info(
    engine: Engine, dataset: str = "bars_1d", symbols: Any = None, start: Any = None, end: Any = None, **more: Any
) -> tuple[pa.Table, ReadInfo]:
    """Return the rows of one read, as a table, and what it tells about itself."""
    answer = engine.read(ReadRequest(dataset, symbols, start, end, info=True, **more))
    table = pa.Table.from_batches(list(answer), schema=answer.schema)
    return table, answer.info


def write(engine: Engine, table: str, rows: Any, **more: Any) -> WriteResult:
    """Write *rows*, a table or a list of dicts."""
    data = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    return engine.write(WriteRequest(table, **more), data)


def expected(
    dataset: Dataset, rows: Mapping[tuple[str, date], Row | list[Row]], symbols: Sequence[str], first: date, last: date
) -> pa.Table:
    """Return what a read of *rows* must answer, from the dict alone."""
    found: list[Row] = []
    for (symbol, day), row in rows.items():
        if symbol in symbols and first <= day <= last:
            found += row if isinstance(row, list) else [row]
    found.sort(key=lambda row: tuple(row[key] for key in dataset.sort_keys))
    return pa.Table.from_pylist(found, schema=dataset.schema)


def in_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Return what *call* gave (or raised) in each of *count* threads that start together."""
    outcomes: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(WAIT_SECONDS)
        try:
            outcomes[number] = call(number)
        except Exception as error:  # noqa: BLE001  # the test looks at it
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    return outcomes


class Background:
    """A call in a thread of its own: started at once, joined by ``result``."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome = call()
        except BaseException as error:  # noqa: BLE001  # raised again by result()
            self._error = error

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._outcome

    @property
    def running(self) -> bool:
        """Whether the call is still under way."""
        return self._thread.is_alive()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands at ``NOW``."""
    return ManualClock(NOW)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """Yield what is logged from now on, from ``info`` up."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with capture_logs() as entries:
        yield entries
    structlog.configure(**before)


@pytest.fixture
def daily() -> Dataset:
    """Return daily bars of Shanghai, one symbol per call."""
    return canonical("bars_1d", calendar="XSHG")


@pytest.fixture
def november() -> list[date]:
    """Return the sessions of November 2026 up to the day of ``NOW``; no holiday is among them."""
    return weekdays(date(2026, 11, 2), date(2026, 11, 20))


@pytest.fixture
def source(daily: Dataset, november: list[date]) -> TableSource:
    """Return a source with the bars of five symbols in November."""
    return TableSource(daily, bars(SYMBOLS, november))


@pytest.fixture
def open_store(tmp_path: Path, clock: ManualClock) -> Iterator[Opener]:
    """Yield what opens engines in this test's folder; every store is verified when the test ends."""
    opener = Opener(tmp_path, clock)
    yield opener
    opener.finish()


@pytest.fixture
def engine(open_store: Opener, source: TableSource) -> Engine:
    """Return an engine over an empty store, with ``source``."""
    return open_store(source)

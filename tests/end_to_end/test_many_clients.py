"""A whole team at once: every missing cell is fetched once, whoever asks, from which thread or process ever."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import Dataset, FetchRequest, ReadRequest
from fletching_server.answering import Answer
from fletching_server.sources.sim import SimSource

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs

CLIENTS = 32
SYMBOLS = ["000001.SZ", "000002.SZ", "600000.SH", "600001.SH"]


class Counting:
    """The simulated market, which counts how often each cell was asked for."""

    name = "counting"

    def __init__(self) -> None:
        self._sim = SimSource(symbols=8, first=date(2024, 1, 2))
        self._lock = threading.Lock()
        self.requests: list[FetchRequest] = []
        self.cells: Counter[tuple[str, date]] = Counter()

    def datasets(self) -> Sequence[Dataset]:
        return self._sim.datasets()

    def symbols(self, dataset: str) -> Sequence[str]:
        return self._sim.symbols(dataset)

    def fetch(self, request: FetchRequest) -> Any:
        rows = self._sim.fetch(request)
        asked = zip(rows["symbol"].to_pylist(), rows["trading_date"].to_pylist(), strict=True)
        with self._lock:
            self.requests.append(request)
            self.cells.update(set(asked))
        return rows


@pytest.fixture
def source() -> Counting:
    return Counting()


@pytest.fixture(params=["tcp", "unix"])
def rig(request: pytest.FixtureRequest, rigs: Rigs, source: Counting, noon: Callable[[], object]) -> Rig:
    return rigs(request.param, [source], noon())


def together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every read at the engine's door until all clients stand there."""
    door = threading.Barrier(CLIENTS)
    read = rig.engine.read

    def wait_and_read(request: ReadRequest, plane: str = "embedded", principal: str = "") -> Answer:
        door.wait(60)
        return read(request, plane, principal)

    monkeypatch.setattr(rig.engine, "read", wait_and_read)


def test_thirty_two_readers_of_the_same_missing_cells_cause_one_call(
    rig: Rig, source: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(rig, monkeypatch)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(
            pool.map(lambda _: rig.cache.read("bars_1d", SYMBOLS, "2024-03-04", "2024-03-15", info=True), range(CLIENTS))
        )
    assert source.requests == [FetchRequest("bars_1d", tuple(SYMBOLS), date(2024, 3, 4), date(2024, 3, 15))]
    for rows, _ in answers:
        assert_frame_equal(rows, answers[0][0])
    assert answers[0][0].height == 40
    assert sum(info.upstream_calls for _, info in answers) == 1
    assert rig.cache.stats()["upstream_calls"] == 1


def test_readers_of_overlapping_ranges_fetch_each_cell_once(rig: Rig, source: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    together(rig, monkeypatch)

    def read(place: int) -> pl.DataFrame:
        symbols = [SYMBOLS[place % 4], SYMBOLS[(place + 1) % 4]]
        frame: pl.DataFrame = rig.cache.read("bars_1d", symbols, date(2024, 3, 4 + place % 5), date(2024, 3, 11 + place % 4))
        return frame

    with ThreadPoolExecutor(CLIENTS) as pool:
        frames = list(pool.map(read, range(CLIENTS)))
    assert set(source.cells.values()) == {1}
    whole = rig.engine  # what was fetched together is what is read alone
    assert whole.verify() == []
    for place, frame in enumerate(frames):
        symbols = [SYMBOLS[place % 4], SYMBOLS[(place + 1) % 4]]
        request = FetchRequest("bars_1d", tuple(sorted(symbols)), date(2024, 3, 4 + place % 5), date(2024, 3, 11 + place % 4))
        assert_frame_equal(frame, pl.DataFrame(pl.from_arrow(SimSource(symbols=8, first=date(2024, 1, 2)).fetch(request))))


def test_writers_and_readers_at_once_see_whole_writes_only(rig: Rig) -> None:
    def rows(version: int) -> pl.DataFrame:
        return pl.DataFrame({
            "symbol": [f"S{number:03}" for number in range(200)], "day": [date(2024, 1, 2)] * 200, "version": [version] * 200,
        })  # fmt: skip

    rig.cache.write("versions", rows(0), keys=["symbol", "day"])
    wrong: list[list[int]] = []

    def write(version: int) -> None:
        rig.cache.write("versions", rows(version), mode="replace" if version % 2 else "upsert")

    def read(_: int) -> None:
        seen = rig.cache.read("versions")["version"].to_list()
        if len(seen) != 200 or len(set(seen)) != 1:
            wrong.append(seen)

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(write if place % 3 == 0 else read, place) for place in range(60)]
        for job in jobs:
            job.result(60)
    assert wrong == []
    assert rig.engine.verify() == []


FORKING = """
import os, sys, warnings
import fletching

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking with threads, which is what is tried
cache = fletching.connect(sys.argv[1], timeout=30)
asked = ("bars_1d", "000001.SZ", "2024-03-04", "2024-03-08")
expected = cache.read(*asked, output="arrow")
stream = cache.stream("bars_1m", "000001.SZ", "2024-03-04", "2024-03-08") if sys.argv[2] == "streaming" else None
child = os.fork()
if not child:
    try:
        print(cache.read(*asked, output="arrow").equals(expected), cache.health()["status"], flush=True)
    except fletching.Error as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(cache.read(*asked, output="arrow").equals(expected), flush=True)
cache.close()
"""


@pytest.mark.parametrize("turn", range(3))
def test_a_client_works_in_a_forked_child_and_in_its_parent(turn: int, rig: Rig, processes: Processes) -> None:
    del turn  # what could go wrong here is a race
    forking = processes.run(FORKING, rig.url, "idle")
    assert forking.line(30) == "True serving"
    assert forking.line() == "True"
    assert forking.wait(20) == 0


def test_a_child_forked_under_an_open_stream_is_told_and_does_not_hang(rig: Rig, processes: Processes) -> None:
    forking = processes.run(FORKING, rig.url, "streaming")
    assert forking.line(30).startswith("ServerUnreachable this process was forked while a stream was read")
    assert forking.line() == "True"
    assert forking.wait(20) == 0


OTHER_PROCESS = """
import sys, fletching
with fletching.connect(sys.argv[1]) as cache:
    frame, info = cache.read("bars_1d", ["000001.SZ", "600000.SH"], "2024-03-04", "2024-03-15", info=True)
    print(frame.height, info.upstream_calls, flush=True)
"""


def test_processes_share_what_was_fetched(rig: Rig, source: Counting, processes: Processes) -> None:
    children = [processes.run(OTHER_PROCESS, rig.url) for _ in range(3)]
    told = [child.line().split() for child in children]
    assert [height for height, _ in told] == ["20"] * 3
    assert sum(int(calls) for _, calls in told) == 1
    assert len(source.requests) == 1


def test_nobody_at_an_address_is_an_error_that_says_so(rigs: Rigs) -> None:
    rig = rigs("tcp")
    assert rig.service is not None
    rig.cache.close()
    rig.service.close()
    with pytest.raises(fletching.ServerUnreachable, match=f"nobody answers at {rig.url}; start a server with `fletching serve`"):
        fletching.connect(rig.url)

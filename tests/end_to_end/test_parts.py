"""Large answers in parts, fetched side by side: the same rows as in one stream, and never a mixture of two states."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import ReadRequest, WriteRequest, headers
from fletching_schemas.requests import PartRequest, ticket_from_bytes
from fletching_server import reads
from fletching_server.sources.sim import SimSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.end_to_end.conftest import Processes, Rig, Rigs

SYMBOLS: Final = 60
EACH: Final = 200
KEYS: Final = ["symbol", "day"]
TAKES_ALL: Final = fl.FlightCallOptions(headers=[(headers.ENDPOINTS.encode(), b"8")])


def rows(version: int = 0) -> pl.DataFrame:
    number = pl.int_range(SYMBOLS * EACH, eager=True)
    return pl.DataFrame({"number": number}).select(
        ("S" + (pl.col("number") // EACH).cast(pl.String).str.zfill(3)).alias("symbol"),
        (pl.date(2024, 1, 1) + pl.duration(days=pl.col("number") % EACH)).alias("day"),
        pl.lit(version).alias("version"),
    )


@pytest.fixture(autouse=True)
def _small_answers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PART_BYTES", 10_000)


@pytest.fixture(params=["tcp", "unix"])
def rig(request: pytest.FixtureRequest, rigs: Rigs) -> Rig:
    made = rigs(request.param, compact_idle_seconds=3600, endpoints=3)
    made.cache.write("prices", rows(), keys=KEYS)
    return made


def endpoints(rig: Rig, request: ReadRequest, options: fl.FlightCallOptions = TAKES_ALL) -> list[bytes]:
    with fl.connect(rig.url) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(request.to_bytes()), options)
    assert info.ordered == (len(info.endpoints) > 1)
    return [endpoint.ticket.ticket for endpoint in info.endpoints]


def got(rig: Rig, ticket: bytes) -> pa.Table:
    with fl.connect(rig.url) as client:
        return client.do_get(fl.Ticket(ticket)).read_all()


def counted(rig: Rig, call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what *call* returns and how many answers the server gave for it."""
    before = rig.cache.stats()["reads"]
    result = call()
    rig.wait_until_idle()
    return result, rig.cache.stats()["reads"] - before


def test_our_client_reads_a_large_answer_in_parts(rig: Rig) -> None:
    frame, streams = counted(rig, lambda: rig.cache.read("prices"))
    assert streams == 3
    assert_frame_equal(frame, rows())


def test_what_the_parts_tell_is_told_as_of_one_answer(rig: Rig) -> None:
    (frame, info), streams = counted(rig, lambda: rig.cache.read("prices", info=True))
    assert (streams, info.rows, info.plane, info.tier, info.partitions) == (3, SYMBOLS * EACH, "flight", "hot", 1)
    assert list(info.symbols) == frame["symbol"].unique(maintain_order=True).to_list()
    with fl.connect(rig.url) as client:
        *_, last = client.do_get(fl.Ticket(ReadRequest("prices", info=True).to_bytes()))
    whole = fletching.ReadInfo.from_bytes(last.app_metadata.to_pybytes())
    assert (info.bytes, info.tiers, info.symbols, info.gaps) == (whole.bytes, whole.tiers, whole.symbols, whole.gaps)


def test_a_stream_comes_whole(rig: Rig) -> None:
    table, streams = counted(rig, lambda: rig.cache.stream("prices").read_all())
    assert (streams, table.num_rows) == (1, SYMBOLS * EACH)


def test_whoever_says_that_it_takes_all_endpoints_gets_several_in_order(rig: Rig) -> None:
    tickets = endpoints(rig, ReadRequest("prices"))
    parts = [ticket_from_bytes(ticket) for ticket in tickets]
    assert [(part.part, part.parts) for part in parts if isinstance(part, PartRequest)] == [(0, 3), (1, 3), (2, 3)]
    tables = [got(rig, ticket) for ticket in tickets]
    assert min(table.num_rows for table in tables) > 0
    assert pa.concat_tables(tables).equals(got(rig, ReadRequest("prices").to_bytes()))


@pytest.mark.parametrize("said", [None, b"1", b"0", b"many"])
def test_a_plain_client_gets_one_ticket_for_all_rows(said: bytes | None, rig: Rig) -> None:
    options = fl.FlightCallOptions(headers=[] if said is None else [(headers.ENDPOINTS.encode(), said)])
    (ticket,) = endpoints(rig, ReadRequest("prices"), options)
    assert got(rig, ticket).num_rows == SYMBOLS * EACH


def test_small_answers_come_whole(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # as large as parts really are
    assert len(endpoints(rig, ReadRequest("prices"))) == 1
    frame, streams = counted(rig, lambda: rig.cache.read("prices"))
    assert (frame.height, streams) == (SYMBOLS * EACH, 1)


def test_a_read_of_few_symbols_is_one_round_trip(rig: Rig) -> None:
    rig.cache._transport._flight.tickets = None  # type: ignore[attr-defined]  # asking for them would fail
    assert rig.cache.read("prices", ["S001", "S002"]).height == 2 * EACH


def test_a_server_that_never_divides_is_asked_once(rigs: Rigs) -> None:
    rig = rigs("tcp", endpoints=1)
    rig.cache.write("prices", rows(), keys=KEYS)
    assert_frame_equal(rig.cache.read("prices"), rows())
    rig.cache._transport._flight.tickets = None  # type: ignore[attr-defined]  # asking again would fail
    assert_frame_equal(rig.cache.read("prices"), rows())


def test_columns_and_ranges_are_those_of_the_read(rig: Rig) -> None:
    asked: Any = {"start": "2024-02-01", "end": "2024-03-31", "columns": ["version", "symbol"]}
    frame, streams = counted(rig, lambda: rig.cache.read("prices", **asked))
    assert streams > 1
    day = pl.col("day")
    inside = rows().filter((day >= pl.date(2024, 2, 1)) & (day <= pl.date(2024, 3, 31)))
    assert_frame_equal(frame, inside.select("version", "symbol"))


FORKING = """
import os, sys, warnings
import fletching

warnings.simplefilter("ignore", DeprecationWarning)  # as in test_many_clients
cache = fletching.connect(sys.argv[1], timeout=30)
for _ in range(3):
    expected = cache.read("prices", output="arrow")
    child = os.fork()
    if not child:
        print(cache.read("prices", output="arrow").equals(expected), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(cache.read("prices", output="arrow").equals(expected), flush=True)
"""


def test_a_process_that_has_read_in_parts_may_fork(rig: Rig, processes: Processes) -> None:
    """Each part has a connection of its own, which must have ended by then."""
    forking = processes.run(FORKING, rig.url)
    assert [forking.line(30) for _ in range(4)] == ["True"] * 4
    assert forking.wait(20) == 0


# Changes in between


def test_a_part_of_an_older_state_is_refused(rig: Rig) -> None:
    tickets = endpoints(rig, ReadRequest("prices"))
    assert got(rig, tickets[0]).num_rows > 0
    rig.cache.write("prices", rows(1))
    with pytest.raises(fl.FlightUnavailableError) as refused:
        got(rig, tickets[1])
    told = rig.cache._transport._flight.translated(refused.value)  # type: ignore[attr-defined]
    assert type(told) is fletching.AnswerChanged
    assert "read again" in str(told)


def test_our_client_reads_again_where_somebody_wrote_in_between(rig: Rig) -> None:
    transport: Any = rig.cache._transport._flight  # type: ignore[attr-defined]
    planned = transport.tickets

    def written_after_planning(request: ReadRequest) -> list[bytes]:
        tickets: list[bytes] = planned(request)
        rig.engine.write(WriteRequest("prices"), rows(7).to_arrow())
        return tickets

    transport.tickets = written_after_planning
    (frame, info), streams = counted(rig, lambda: rig.cache.read("prices", info=True))
    assert_frame_equal(frame, rows(7))
    assert (info.rows, streams) == (SYMBOLS * EACH, 1)


def test_a_part_that_is_cancelled_for_another_harms_nobody(rig: Rig) -> None:
    """pyarrow's own ``read_all`` would raise KeyboardInterrupt in the main thread, now or in the next test."""
    tickets = endpoints(rig, ReadRequest("prices"))
    stale = [*tickets[:2], replace(PartRequest.from_bytes(tickets[2]), generation=0).to_bytes()]
    rig.cache._transport._flight.tickets = lambda _request: stale  # type: ignore[attr-defined]
    for _ in range(20):
        assert_frame_equal(rig.cache.read("prices"), rows())
    rig.wait_until_idle()


def test_no_reader_ever_sees_two_states_mixed(rig: Rig) -> None:
    stop = threading.Event()

    def write() -> int:
        version = 0
        while not stop.is_set():
            version += 1
            rig.engine.write(WriteRequest("prices"), rows(version).to_arrow())
        return version

    def read(_: int) -> list[int]:
        return [self_consistent(rig.cache.read("prices")) for _ in range(15)]

    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(write)
        try:
            seen = list(threads.map(read, range(2)))
        finally:
            stop.set()
        assert writing.result() > 0
    assert all(versions == sorted(versions) for versions in seen)
    assert_frame_equal(rig.cache.read("prices"), rows(writing.result()))


def self_consistent(frame: pl.DataFrame) -> int:
    """Return the one version that all rows are of."""
    assert frame.height == SYMBOLS * EACH
    assert frame["symbol"].is_sorted()
    (version,) = frame["version"].unique().to_list()
    return int(version)


def test_a_table_deleted_in_between_is_unknown(rig: Rig) -> None:
    tickets = endpoints(rig, ReadRequest("prices"))
    rig.cache.delete("prices")
    with pytest.raises(fl.FlightError, match="prices"):
        got(rig, tickets[0])
    with pytest.raises(fletching.UnknownDataset):
        rig.cache.read("prices")


# Datasets with a source


def test_what_must_be_fetched_first_comes_whole_and_then_in_parts(rigs: Rigs, noon: Callable[[], Any]) -> None:
    rig = rigs("tcp", [SimSource(symbols=12, first=date(2020, 1, 1))], noon(), endpoints=4)
    first, streams = counted(rig, lambda: rig.cache.read("bars_1d", start="2024-01-01", end="2024-05-31"))
    assert (streams, first.height > 500) == (1, True)
    again, streams = counted(rig, lambda: rig.cache.read("bars_1d", start="2024-01-01", end="2024-05-31"))
    assert streams > 1
    assert_frame_equal(again, first)
    rig.cache.invalidate("bars_1d", first["symbol"][0])
    assert len(endpoints(rig, ReadRequest("bars_1d", start="2024-01-01", end="2024-05-31"))) == 1  # type: ignore[arg-type]


def test_adjusted_prices_come_whole(rigs: Rigs, noon: Callable[[], Any]) -> None:
    rig = rigs("tcp", ["sim"], noon(), endpoints=4)
    asked = {"symbols": ["000001.SZ"], "start": "2024-01-02", "end": "2024-02-02", "adjust": "hfq"}
    assert len(endpoints(rig, ReadRequest("bars_1d", **asked))) == 1  # type: ignore[arg-type]

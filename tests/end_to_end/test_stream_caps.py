"""One client has only so many streams at a time; each counts from its DoGet to the end of its call, however that ends."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow.flight as fl
import pytest

import fletching
from fletching_schemas import ReadRequest
from fletching_server.streams import Streams

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs

MOST: Final = 3
ROWS: Final = 600_000
TICKET: Final = fl.Ticket(ReadRequest("big").to_bytes())

NEVER_READS = """
import sys, pyarrow.flight as fl
client = fl.connect(sys.argv[1])
readers = [client.do_get(fl.Ticket(sys.argv[2])) for _ in range(int(sys.argv[3]))]
print([reader.schema.names[0] for reader in readers], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["tcp", "unix"])
def rig(request: pytest.FixtureRequest, module_rigs: Rigs) -> Rig:
    made = module_rigs(request.param, compact_idle_seconds=3600, streams_per_principal=MOST)
    number = pl.int_range(ROWS, eager=True)
    rows = pl.DataFrame({"number": number}).select(
        ("S" + (pl.col("number") // 2000).cast(pl.String).str.zfill(3)).alias("symbol"),
        (pl.date(2020, 1, 1) + pl.duration(days=pl.col("number") % 2000)).alias("day"),
        *(pl.lit(1.0).alias(f"c{place}") for place in range(8)),
    )
    made.cache.write("big", rows, keys=["symbol", "day"])
    made.cache.read("big", "S001")
    return made


def check_free(rig: Rig) -> None:
    """Nothing counts any more, nothing is held, and the next read is answered."""
    rig.wait_until_idle()
    assert rig.service is not None
    assert rig.service._edge.streams.open() == {}
    assert rig.engine.hot.facts()["hot_leases"] == 0
    assert rig.cache.read("big", "S001").height == 2000


def refused(rig: Rig, client: fl.FlightClient) -> fletching.Error:
    with pytest.raises(fl.FlightUnavailableError) as error:
        client.do_get(TICKET).read_chunk()
    told: fletching.Error = rig.cache._transport._flight.translated(error.value)  # type: ignore[attr-defined]
    return told


def opened(client: fl.FlightClient, count: int = MOST) -> list[fl.FlightStreamReader]:
    readers = [client.do_get(TICKET) for _ in range(count)]
    assert [reader.read_chunk().data.num_columns for reader in readers] == [10] * count
    return readers


def test_one_stream_too_many_is_refused_with_what_to_do(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        readers = opened(client)
        error = refused(rig, client)
        assert type(error) is fletching.Overloaded
        assert str(error).startswith(f"{MOST} streams of ")
        assert "cancel" in str(error)
        readers[0].cancel()
        rest = list(readers[1])
        assert sum(chunk.data.num_rows for chunk in rest) > 0
        del readers, rest
        gc.collect()
        check_free(rig)


def test_a_refusal_does_not_count(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        readers = opened(client)
        for _ in range(5):
            refused(rig, client)
        for reader in readers:
            reader.cancel()
        check_free(rig)


@pytest.mark.parametrize("ticket", [b"junk", ReadRequest("nothing").to_bytes(), ReadRequest("big", ("S999x",)).to_bytes()])
def test_a_failed_read_does_not_count(ticket: bytes, rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        for _ in range(2 * MOST):
            with pytest.raises(fl.FlightError):
                client.do_get(fl.Ticket(ticket)).read_chunk()
    check_free(rig)


def test_a_stream_beyond_its_deadline_does_not_count(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        readers = [client.do_get(TICKET, fl.FlightCallOptions(timeout=0.2)) for _ in range(MOST)]
        rig.wait_until_idle()
        assert len(opened(client, 1)) == 1
        del readers
    gc.collect()
    check_free(rig)


def test_ended_reads_do_not_count(rig: Rig) -> None:
    for _ in range(2 * MOST):
        assert rig.cache.read("big", "S001").height == 2000
    check_free(rig)


def test_a_client_that_is_killed_while_it_never_reads_lets_go(rig: Rig, processes: Processes) -> None:
    child = processes.run(NEVER_READS, rig.url, TICKET.ticket.decode(), str(MOST))
    assert child.line() == str(["symbol"] * MOST)
    assert rig.service is not None
    assert list(rig.service._edge.streams.open().values()) == [MOST]
    assert rig.engine.hot.facts()["hot_leases"] >= MOST
    child.send("kill")
    child.wait()
    check_free(rig)


def test_over_tcp_each_connection_has_its_own_streams(rig: Rig) -> None:
    if rig.plane == "unix":
        pytest.skip("all clients of a UNIX socket are one principal, until there is authentication")
    local = [("grpc.use_local_subchannel_pool", 1)]
    with fl.FlightClient(rig.url, generic_options=local) as one, fl.FlightClient(rig.url, generic_options=local) as other:
        mine = opened(one)
        theirs = opened(other)
        assert type(refused(rig, one)) is fletching.Overloaded
        for reader in (*mine, *theirs):
            reader.cancel()
        check_free(rig)


def test_principals_are_counted_apart_and_forgotten_at_zero() -> None:
    streams = Streams(1)
    leave = streams.enter("a")
    leave_b = streams.enter("b")
    with pytest.raises(fletching.Overloaded, match=r"1 streams of a are open.*streams_per_principal"):
        streams.enter("a")
    assert streams.open() == {"a": 1, "b": 1}
    leave()
    streams.enter("a")()
    leave_b()
    assert streams.open() == {}

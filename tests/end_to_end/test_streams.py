"""Large answers: batches of 1-4 MB, nothing held for a reader that has gone, however it went."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import ReadRequest, WriteRequest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs

ROWS = 1_000_000
TICKET = fl.Ticket(ReadRequest("big").to_bytes())

READER = """
import sys, pyarrow.flight as fl
reader = fl.connect(sys.argv[1]).do_get(fl.Ticket(sys.argv[2]))
print(reader.read_chunk().data.num_rows, flush=True)
sys.stdin.read()
"""
WRITER = """
import sys, datetime, pyarrow as pa, pyarrow.flight as fl
day = pa.array([datetime.date(2024, 1, 2)] * 1000)
rows = pa.table({"symbol": [str(number) for number in range(1000)], "day": day, "score": [0.5] * 1000})
writer, _ = fl.connect(sys.argv[1]).do_put(fl.FlightDescriptor.for_command(sys.argv[2]), rows.schema)
writer.write_table(rows)
print("half", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def big() -> pl.DataFrame:
    start, per_symbol = datetime(2024, 1, 2, tzinfo=UTC), ROWS // 50
    number = pl.int_range(ROWS, eager=True)
    return pl.DataFrame({"size": number}).select(
        ("S" + (pl.col("size") // per_symbol).cast(pl.String).str.zfill(2)).alias("symbol"),
        (pl.lit(start) + pl.duration(seconds=pl.col("size") % per_symbol)).cast(pl.Datetime("us", "UTC")).alias("ts"),
        (pl.col("size") / 100).alias("price"),
        pl.col("size"),
    )


@pytest.fixture(scope="module", params=["tcp", "unix"])
def rig(request: pytest.FixtureRequest, module_rigs: Rigs, big: pl.DataFrame) -> Rig:
    made = module_rigs(request.param, compact_idle_seconds=3600)
    made.cache.write("big", big, keys=["symbol", "ts"])
    return made


def check_idle(rig: Rig) -> None:
    """Nothing is held any more, neither memory nor files; then a whole read works."""
    rig.wait_until_idle()
    assert rig.engine.hot.facts()["hot_leases"] == 0
    assert not any(rig.engine.store._pins.values())
    assert rig.cache.read("big", "S49").height == ROWS // 50


def test_a_large_answer_comes_in_batches_of_one_to_four_megabytes(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        reader = client.do_get(TICKET)
        sizes = [chunk.data.nbytes for chunk in reader]
    assert len(sizes) > 10
    assert min(sizes[:-1]) >= 1e6
    assert max(sizes) <= 4.2e6
    check_idle(rig)


def test_a_large_table_comes_back_as_it_was_written(rig: Rig, big: pl.DataFrame) -> None:
    assert_frame_equal(rig.cache.read("big"), big)
    assert rig.cache.evict()["evicted_bytes"] > 0
    rows, info = rig.cache.read("big", info=True)
    assert_frame_equal(rows, big)
    assert (info.rows, info.tier) == (ROWS, "cold")


def test_the_schema_is_known_before_any_row(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        reader = client.do_get(TICKET)
        assert reader.schema.names == ["symbol", "ts", "price", "size"]
        reader.cancel()
    check_idle(rig)


def test_a_cancelled_stream_lets_go(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        reader = client.do_get(TICKET)
        assert reader.read_chunk().data.num_rows > 0
        assert rig.engine.hot.facts()["hot_leases"] > 0
        reader.cancel()
    check_idle(rig)


def test_a_stream_that_is_dropped_unread_lets_go(rig: Rig) -> None:
    with fl.connect(rig.url) as client:
        reader = client.do_get(TICKET)
        del reader
        gc.collect()
        check_idle(rig)


@pytest.mark.parametrize("batches", [0, 1])
def test_our_stream_lets_go_when_it_is_dropped(batches: int, rigs: Rigs, plane: str, big: pl.DataFrame) -> None:
    rig = rigs(plane)
    rig.cache.write("big", big.head(200_000), keys=["symbol", "ts"])
    reader = rig.cache.stream("big")
    assert all(reader.read_next_batch().num_rows > 0 for _ in range(batches))
    del reader
    rig.let_go()
    assert rig.engine.hot.facts()["hot_leases"] == 0
    assert not any(rig.engine.store._pins.values())


def test_a_reader_that_is_killed_lets_go(rig: Rig, processes: Processes) -> None:
    reader = processes.run(READER, rig.url, TICKET.ticket.decode())
    assert int(reader.line()) > 0
    assert rig.engine.hot.facts()["hot_leases"] > 0
    reader.send("kill")
    reader.wait()
    check_idle(rig)


def test_a_stream_beyond_its_deadline_lets_go(rig: Rig) -> None:
    with fletching.connect(rig.url, timeout=1.0) as slow, slow.stream("big") as reader:
        first = reader.read_next_batch()
        rig.wait_until_idle()  # the server gives up on us at the deadline, although we never say that we stop
        with pytest.raises(fletching.SourceTimeout, match=r"did not answer within 1 s \(timeout=...\)"):
            reader.read_all()
    assert first.num_rows > 0
    check_idle(rig)


def test_a_table_deleted_under_a_reader_is_read_to_its_end(rig: Rig, big: pl.DataFrame) -> None:
    rig.cache.write("brief", big.head(400_000), keys=["symbol", "ts"])
    rig.cache.evict()
    reader = rig.cache.stream("brief")
    batches = [reader.read_next_batch()]
    rig.cache.delete("brief")
    batches += list(reader)
    assert_frame_equal(pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches))), big.head(400_000))
    with pytest.raises(fletching.UnknownDataset):
        rig.cache.read("brief")
    check_idle(rig)
    assert not [path for path in rig.engine.store.root.rglob("*.parquet") if "brief" in path.name]


@pytest.mark.parametrize("announced", [None, 2000], ids=["a plain client", "a client that announced its rows"])
def test_a_writer_that_is_killed_half_way_changes_nothing(announced: int | None, rig: Rig, processes: Processes) -> None:
    whole = pl.DataFrame({"symbol": ["A"], "day": [date(2024, 1, 2)], "score": [1.0]})
    rig.cache.write("kept", whole, keys=["symbol", "day"])
    request = WriteRequest("kept", mode="replace", rows=announced)
    writer = processes.run(WRITER, rig.url, request.to_bytes().decode())
    assert writer.line() == "half"
    writer.send("kill")
    writer.wait()
    rig.wait_until_idle()
    assert_frame_equal(rig.cache.read("kept"), whole)
    rig.cache.delete("kept")


def test_many_streams_at_once_are_each_whole(rigs: Rigs, plane: str, big: pl.DataFrame) -> None:
    rig = rigs(plane)
    rig.cache.write("big", big.head(200_000), keys=["symbol", "ts"])
    readers = [rig.cache.stream("big") for _ in range(6)]
    sums = [0.0] * len(readers)
    for _ in range(1_000):
        for place, reader in enumerate(readers):
            batch = next(reader, None)
            sums[place] += 0.0 if batch is None else float(batch.column("size").to_numpy().sum())
        if set(sums) == {float(sum(range(200_000)))}:
            break
    assert set(sums) == {float(sum(range(200_000)))}
    for reader in readers:
        reader.close()
    rig.wait_until_idle()


def test_a_stream_begins_before_its_answer_is_complete_and_never_holds_all_of_it(
    rigs: Rigs, plane: str, big: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletching_server.holding.GROUP_BYTES", 2 << 20)  # a dozen groups, without a table of a gigabyte
    rig = rigs(plane, memory="1MiB")  # too little for the file: it is read group by group
    rig.cache.write("big", big, keys=["symbol", "ts"])
    read: list[int] = []
    select = rig.engine.cold.select

    def counted(*asked: Any) -> Any:
        image = select(*asked)
        read.append(image.table.num_rows)
        return image

    monkeypatch.setattr(rig.engine.cold, "select", counted)
    reader = rig.cache.stream("big")
    rows = reader.read_next_batch().num_rows
    assert 0 < rows <= sum(read)
    assert sum(read) < ROWS  # the rest has not been read, let alone sent
    assert max(read) <= ROWS // 5
    facts = rig.engine.hot.facts()
    assert (facts["hot_bytes"], facts["hot_leases"]) == (0, 0)  # groups are read beside the hot tier, one after the other
    rows += sum(batch.num_rows for batch in reader)
    assert (rows, sum(read)) == (ROWS, ROWS)
    assert len(read) >= 6
    rig.wait_until_idle()


def test_a_stream_survives_the_eviction_of_what_it_reads(
    rigs: Rigs, plane: str, big: pl.DataFrame, noon: Callable[[], object]
) -> None:
    rig = rigs(plane, [], noon())
    rig.cache.write("big", big, keys=["symbol", "ts"])
    reader = rig.cache.stream("big")
    batches = [reader.read_next_batch()]
    rig.cache.evict()
    held = rig.engine.hot.facts()
    assert held["hot_leased_bytes"] == held["hot_bytes"] > 0  # it stays, counted, until the stream ends
    batches += list(reader)
    assert_frame_equal(pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches))), big)
    del batches, reader
    rig.let_go()
    assert rig.engine.hot.facts()["hot_bytes"] == 0

"""The local plane: no byte is copied, every lease ends, and whatever goes wrong there ends on Flight."""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.conftest import Background, in_threads

import fletching
from fletching._channel import Channel, Unusable
from fletching._images import MappedImage
from fletching._served import ServedTransport
from fletching_schemas import ReadRequest
from fletching_schemas.errors import ServerUnreachable, UnknownDataset
from fletching_schemas.local import HEAD_BYTES, MAX_ASKED_BYTES, MAX_MAPPED, Frame, frame, head, packed, told_error, told_head
from fletching_server import local
from fletching_server.local import LocalEdge, host_id
from fletching_server.service import Service

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs

ROWS = 200_000
TYPES: dict[str, pl.DataType | type[pl.DataType]] = {
    "flag": pl.Boolean,
    "tiny": pl.Int8,
    "small": pl.Int16,
    "middle": pl.Int32,
    "number": pl.Int64,
    "size": pl.UInt32,
    "half": pl.Float32,
    "price": pl.Float64,
    "day": pl.Date,
    "ts": pl.Datetime("us", "UTC"),
    "note": pl.String,
}

READER = """
import sys, fletching
cache = fletching.connect(sys.argv[1], plane="local")
frame = cache.read("wide")
print(frame.height, flush=True)
sys.stdin.read()
"""
FORKING = """
import os, sys, warnings, fletching
warnings.simplefilter("ignore", DeprecationWarning)
cache = fletching.connect(sys.argv[1], plane="local")
frame = cache.read("wide")
several = ["S01", "S05", "S17"]
frame.unique("symbol")  # Polars' threads run now, and the child will have none of them
child = os.fork()
if not child:
    again, info = cache.read("wide", info=True)
    few = cache.read("wide", several)
    over_flight = fletching.connect(sys.argv[1], plane="flight").read("wide")
    same = again["price"].to_list() == frame["price"].to_list() == over_flight["price"].to_list()
    print(info.plane, same, few.height, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
again, info = cache.read("wide", info=True)
print(info.plane, again.equals(frame), cache.read("wide", several).height, status, flush=True)
"""
STARVING = """
import os, resource, sys, fletching
cache = fletching.connect(sys.argv[1])
cache.read("wide", "S01", columns=["price"], output="arrow")
limit = len(os.listdir("/proc/self/fd")) - 1 + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
rows, info = cache.read("wide", output="arrow", info=True)
print(rows.num_rows, info.plane, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def wide() -> pl.DataFrame:
    """Rows with a column of every type that is mapped without a copy, with and without nulls."""
    number = pl.int_range(ROWS, eager=True)
    made: dict[str, pl.Expr] = {
        "flag": pl.col("n") % 2 == 0,
        "day": pl.lit(date(2024, 1, 2)) + pl.duration(days=pl.col("n") % 300),
        "note": pl.when(pl.col("n") % 3 == 0).then(pl.lit("a note of more than twelve bytes")).otherwise(pl.lit("short")),
    }
    columns = [made.get(name, pl.col("n") % 100).cast(kind).alias(name) for name, kind in TYPES.items() if name != "ts"]
    per_symbol = ROWS // 20
    instants = pl.lit(datetime(2024, 1, 2, tzinfo=UTC)) + pl.duration(seconds=pl.col("n") % per_symbol)
    return pl.DataFrame({"n": number}).select(
        ("S" + (pl.col("n") // per_symbol).cast(pl.String).str.zfill(2)).alias("symbol"),
        instants.cast(TYPES["ts"]).alias("ts"),
        *columns,
        pl.when(pl.col("n") % 7 > 0).then(pl.col("n") / 3).alias("gappy"),
    )


@pytest.fixture
def rig(rigs: Rigs, wide: pl.DataFrame) -> Iterator[Rig]:
    made = rigs("local", [], memory="256MiB", compact_idle_seconds=3600)
    made.cache.write("wide", wide, keys=["symbol", "ts"])
    yield made
    made.let_go()
    assert made.engine.hot.facts()["hot_leases"] == 0
    made.engine.hot.evict()
    assert (made.engine.hot.facts()["hot_descriptors"], made.engine.verify()) == (0, [])


def edge_of(rig: Rig) -> LocalEdge:
    assert rig.service is not None
    assert rig.service.local is not None
    return rig.service.local


def facts(rig: Rig) -> dict[str, int]:
    return rig.engine.hot.facts()


def buffers(frame: pl.DataFrame, name: str) -> list[tuple[int, int]]:
    """Return where the buffers of a column lie; Polars hands out its own."""
    exported = frame[name].to_arrow(compat_level=pl.CompatLevel.newest())
    return [(buffer.address, exported.offset) for buffer in exported.buffers() if buffer is not None]


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_ranges() -> list[range]:
    """Return where this process maps sealed memory of Fletching's, from the system's own account."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [as_range(line.split()[0]) for line in lines if "memfd:fletching " in line and " r--s" in line]


def as_range(place: str) -> range:
    first, _, last = place.partition("-")
    return range(int(first, 16), int(last, 16))


# No byte is copied


@pytest.mark.parametrize("name", ["symbol", "ts", *(name for name in TYPES if name != "ts"), "gappy"])
def test_a_column_of_every_mapped_type_lies_in_the_server_s_memory(name: str, rig: Rig) -> None:
    frame = rig.cache.read("wide")
    ranges = mapped_ranges()
    found = buffers(frame, name)
    assert found
    assert all(any(address in mapped for mapped in ranges) for address, _ in found)


def test_server_and_client_see_the_same_pages(rig: Rig) -> None:
    """Both map one file of the kernel's: the same inode on the same device."""
    frame = rig.cache.read("wide")
    address = buffers(frame, "price")[0][0]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:fletching " in line]
    files = [inode for place, _, _, _, inode, *_ in lines if address in as_range(place)]
    assert len(files) == 1
    assert [inode for _, _, _, _, inode, *_ in lines].count(files[0]) == 2  # this process is both


def test_a_range_of_a_symbol_is_a_slice_of_the_same_memory(rig: Rig) -> None:
    whole = rig.cache.read("wide")
    part = rig.cache.read("wide", ["S03", "S04", "S05"])
    first = 3 * ROWS // 20
    assert buffers(part, "price") == [(address, first) for address, _ in buffers(whole, "price")]
    assert_frame_equal(part, whole.slice(first, part.height))


def test_arrow_output_shares_the_memory_too(rig: Rig) -> None:
    table = rig.cache.read("wide", output="arrow")
    ranges = mapped_ranges()
    for column in table.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
            assert any(buffer.address in mapped for mapped in ranges)


def test_a_second_read_hands_over_nothing(rig: Rig) -> None:
    first = rig.cache.read("wide")
    lent = facts(rig)["hot_lent_leases"]
    second = rig.cache.read("wide")
    assert facts(rig)["hot_lent_leases"] == lent == 1
    assert buffers(first, "price") == buffers(second, "price")


def test_a_frame_cannot_be_written_through(rig: Rig) -> None:
    frame = rig.cache.read("wide")
    before = frame["number"].sum()
    changed = frame.with_columns(pl.col("number") + 1)
    assert changed["number"].sum() == before + ROWS
    assert rig.cache.read("wide")["number"].sum() == before


def test_many_short_runs_become_one_piece(rigs: Rigs, wide: pl.DataFrame) -> None:
    rig = rigs("mapped", [], memory="256MiB")
    rig.cache.write("wide", wide, keys=["symbol", "ts"])
    chosen = [f"S{number:02}" for number in range(0, 20, 2)]
    frame = rig.cache.read("wide", chosen, "2024-01-02T00:00", "2024-01-02T00:30")
    assert frame.n_chunks() == 1
    last = datetime(2024, 1, 2, 0, 30, tzinfo=UTC)
    assert_frame_equal(frame, wide.filter(pl.col("symbol").is_in(chosen), pl.col("ts") <= last))
    del frame
    rig.let_go()


# Leases


def test_a_reader_that_is_killed_gives_its_leases_back(rig: Rig, processes: Processes) -> None:
    reader = processes.run(READER, rig.url)
    assert reader.line() == str(ROWS)
    assert facts(rig)["hot_lent_leases"] == 1
    reader.send("kill")
    reader.wait()
    assert edge_of(rig).lifetimes.wait_until_none(20)
    assert facts(rig)["hot_lent_bytes"] == 0


def test_what_a_reader_maps_stays_counted_after_its_eviction(rig: Rig, wide: pl.DataFrame) -> None:
    frame = rig.cache.read("wide")
    held = facts(rig)["hot_bytes"]
    assert rig.cache.evict()["evicted_bytes"] == 0
    assert facts(rig)["hot_bytes"] == held > 0
    assert_frame_equal(frame, wide)
    del frame
    gc.collect()
    assert edge_of(rig).lifetimes.wait_until_none(20)
    assert facts(rig)["hot_bytes"] == 0


def test_a_frame_outlives_cache_and_server(rigs: Rigs, wide: pl.DataFrame) -> None:
    rig = rigs("local", [], memory="256MiB")
    rig.cache.write("wide", wide, keys=["symbol", "ts"])
    frame = rig.cache.read("wide")
    rig.cache.close()
    assert rig.service is not None
    assert rig.service.close()
    rig.engine.close()
    assert_frame_equal(frame, wide)


def test_what_was_gathered_for_one_answer_leaves_with_it(rigs: Rigs, wide: pl.DataFrame) -> None:
    rig = rigs("local", [], memory="256MiB", compact_idle_seconds=3600)
    rig.cache.write("wide", wide, keys=["symbol", "ts"])
    later = wide.head(ROWS // 2).with_columns(pl.col("price") + 1)  # two overlapping runs: what is read is merged
    rig.cache.write("wide", later, keys=["symbol", "ts"])
    held = facts(rig)["hot_bytes"]
    frame, info = rig.cache.read("wide", ["S02", "S03"], info=True)
    assert (info.plane, info.tier) == ("local", "hot")
    assert facts(rig)["hot_bytes"] > held
    assert any(address in mapped for address, _ in buffers(frame, "price") for mapped in mapped_ranges())
    assert_frame_equal(frame, later.filter(pl.col("symbol").is_in(["S02", "S03"])))
    del frame
    gc.collect()
    assert edge_of(rig).lifetimes.wait_until_none(20)
    assert facts(rig)["hot_bytes"] == held


def test_what_is_mapped_never_takes_the_whole_budget(rigs: Rigs, wide: pl.DataFrame) -> None:
    rig = rigs("local", [], memory="40MiB")
    frames = []
    for number in range(4):
        rig.cache.write(f"wide{number}", wide, keys=["symbol", "ts"])
        frames.append(rig.cache.read(f"wide{number}", info=True))
        assert_frame_equal(frames[-1][0], wide)
    assert facts(rig)["hot_lent_bytes"] <= 30 << 20
    assert rig.engine.hot.check() == []
    assert {info.plane for _, info in frames} == {"local"}
    frames.clear()
    rig.let_go()


def test_a_forked_child_reads_by_a_connection_of_its_own(rig: Rig, processes: Processes) -> None:
    forking = processes.run(FORKING, rig.url)
    assert forking.line() == f"local True {3 * ROWS // 20}"
    assert forking.line() == f"local True {3 * ROWS // 20} 0"
    assert forking.wait() == 0
    assert edge_of(rig).lifetimes.wait_until_none(20)


def test_descriptors_and_bytes_come_back(rig: Rig) -> None:
    rig.cache.read("wide", "S01")
    rig.let_go()
    before = descriptors(), facts(rig)["hot_bytes"]
    for _ in range(50):
        with fletching.connect(rig.url, plane="local") as other:
            assert other.read("wide").height == ROWS
            assert other.read("wide", "S01").height == ROWS // 20
    rig.let_go()
    assert edge_of(rig).wait_for_connections(1)
    assert (descriptors(), facts(rig)["hot_bytes"]) == before


@pytest.mark.parametrize("listen", ["grpc://0.0.0.0:0", "grpc://[::1]:0", "grpc://localhost:0", "grpc+unix://{root}/s.sock"])
def test_it_is_there_whatever_the_server_listens_at(listen: str, rigs: Rigs, root: Path) -> None:
    engine = rigs("embedded", ["sim"], shares=True).engine
    with Service(engine, listen.format(root=root), insecure=True) as service, fletching.connect(service.url) as cache:
        assert cache.read("bars_1d", "000001.SZ", "2024-01-02", "2024-01-31", info=True)[1].plane == "local"


# Small answers that are asked for again at once


SMALL = ("wide", "S01", None, None, ["price"])


def asked_of(rig: Rig) -> int:
    return int(rig.cache.stats()["reads"])


def test_a_small_read_that_comes_again_at_once_asks_nobody(rig: Rig) -> None:
    first = rig.cache.read(*SMALL)
    asked = asked_of(rig)
    again = [rig.cache.read(*SMALL) for _ in range(3)]
    assert asked_of(rig) == asked
    assert all(frame.equals(first) for frame in again)
    assert rig.cache.read(*SMALL, output="arrow").num_rows == first.height
    assert rig.cache.read(*SMALL, info=True)[1].rows == first.height  # who asks what was done is told
    assert asked_of(rig) == asked + 1


def test_what_another_client_asked_just_now_is_sent_as_it_was(rig: Rig) -> None:
    first = rig.cache.read(*SMALL)
    with fletching.connect(rig.url, plane="local") as other:
        before = rig.cache.stats()
        assert_frame_equal(other.read(*SMALL), first)
        after = rig.cache.stats()
    assert (after["reads"], after["hot_rows"]) == (before["reads"] + 1, before["hot_rows"] + first.height)  # it is counted
    assert len(edge_of(rig).vouched._kept) == 1
    rig.cache.evict()
    assert not edge_of(rig).vouched._kept


def test_what_is_committed_is_seen_by_the_next_read(rig: Rig, wide: pl.DataFrame) -> None:
    """Whoever was told that a write is durable, and reads, sees it: whatever client reads, and however soon."""
    with fletching.connect(rig.url, plane="local") as reader:
        for turn in range(20):
            before = reader.read(*SMALL)
            assert reader.read(*SMALL).equals(before)
            rig.cache.write("wide", wide.filter(pl.col("symbol") == "S01").head(1).with_columns(price=pl.lit(float(turn))))
            assert reader.read(*SMALL)["price"][0] == turn


def test_a_frame_that_is_changed_in_place_is_the_caller_s_own(rig: Rig) -> None:
    first = rig.cache.read(*SMALL)
    changed = rig.cache.read(*SMALL)
    changed.insert_column(0, pl.Series("own", range(changed.height)))
    changed.replace_column(1, pl.Series("price", [None] * changed.height))
    assert_frame_equal(rig.cache.read(*SMALL), first)


def test_after_a_second_the_server_is_asked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching._repeats.LASTS_SECONDS", 0.0)
    rig.cache.read(*SMALL)
    asked = asked_of(rig)
    rig.cache.read(*SMALL)
    assert asked_of(rig) == asked + 1


def test_a_server_that_is_gone_vouches_for_nothing(rigs: Rigs, wide: pl.DataFrame) -> None:
    rig = rigs("local", [], memory="256MiB")
    rig.cache.write("wide", wide, keys=["symbol", "ts"])
    assert rig.cache.read(*SMALL).height == rig.cache.read(*SMALL).height > 0
    assert rig.service is not None
    rig.service.close()
    with pytest.raises(ServerUnreachable):
        rig.cache.read(*SMALL)


def test_a_killed_server_vouches_for_nothing(root: Path, wide: pl.DataFrame, processes: Processes) -> None:
    server = processes.serve(root / "store", [], environment={"FLETCHING_LOCAL_FOLDER": str(root / "local")})
    with fletching.connect(server.url(), plane="local") as cache:
        cache.write("wide", wide, keys=["symbol", "ts"])
        assert cache.read(*SMALL).height == cache.read(*SMALL).height > 0
        server.send("kill")
        server.wait()
        with pytest.raises(ServerUnreachable):
            cache.read(*SMALL)


def test_a_clock_that_stands_vouches_for_nothing(rigs: Rigs, noon: Callable[[], object]) -> None:
    rig = rigs("local", ["sim"], noon())
    asked = ("bars_1d", "000001.SZ", "2024-06-03", "2024-06-07")
    rig.cache.read(*asked)
    before = asked_of(rig)
    rig.cache.read(*asked)
    assert (edge_of(rig).board, asked_of(rig)) == (None, before + 1)


def test_many_threads_and_a_writer_never_see_an_older_row_after_a_newer_one(rig: Rig, wide: pl.DataFrame) -> None:
    row = wide.filter(pl.col("symbol") == "S01").head(1)
    done = threading.Event()

    def write() -> None:
        for turn in range(60):
            rig.cache.write("wide", row.with_columns(price=pl.lit(1000.0 + turn)))
        done.set()

    def watch(_number: int) -> list[float]:
        with fletching.connect(rig.url, plane="local") as reader:
            seen = []
            while not done.is_set():
                seen.append(reader.read(*SMALL)["price"][0])
            return seen

    writing = Background(write)
    for seen in in_threads(3, watch):
        assert seen == sorted(seen)
    writing.result()


# Falling back


@pytest.mark.parametrize("lost", ["another host", "no socket", "another server"])
def test_without_a_reachable_socket_flight_is_used(lost: str, rig: Rig) -> None:
    advertised = rig.engine.planes["local"]
    rig.engine.planes["local"] = (
        advertised
        | {
            "another host": {"host": "0"},
            "no socket": {"path": str(Path(advertised["path"]).with_name("nobody.sock"))},
            "another server": {"instance": "0" * 32},
        }[lost]
    )
    with fletching.connect(rig.url) as cache:
        rows, info = cache.read("wide", "S01", info=True)
        assert (rows.height, info.plane) == (ROWS // 20, "flight")
    with pytest.raises(ServerUnreachable, match="no local plane for this process"):
        fletching.connect(rig.url, plane="local")
    rig.engine.planes["local"] = advertised


def test_a_connection_that_breaks_is_answered_by_flight_and_found_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with fletching.connect(rig.url) as cache:
        edge = edge_of(rig)
        assert cache.read("wide", info=True)[1].plane == "local"
        for connection in list(edge._connections):
            connection.close()
        rows, info = cache.read("wide", info=True)
        assert (rows.height, info.plane) == (ROWS, "flight")
        monkeypatch.setattr("fletching._served._LOOK_AGAIN_SECONDS", 0.0)
        assert cache.read("wide", info=True)[1].plane == "local"
        del rows


@pytest.mark.parametrize("left", [0, 1, 2])  # receiving and mapping an image takes three
def test_a_client_without_descriptors_left_reads_over_flight(left: int, rig: Rig, processes: Processes) -> None:
    reader = processes.run(STARVING, rig.url, str(left))
    assert reader.line() == f"{ROWS} flight"
    assert edge_of(rig).lifetimes.wait_until_none(20)  # what was on its way came back
    assert reader.process.stdin is not None
    reader.process.stdin.close()
    assert reader.wait() == 0


def test_a_server_without_shared_memory_still_answers_locally(
    rigs: Rigs, wide: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletching_server.image.seal", lambda _table: None)
    rig = rigs("local", [], memory="256MiB")
    rig.cache.write("wide", wide, keys=["symbol", "ts"])
    rows, info = rig.cache.read("wide", info=True)
    assert_frame_equal(rows, wide)
    assert (info.plane, facts(rig)["hot_descriptors"], mapped_ranges()) == ("local", 0, [])


def test_a_server_without_descriptors_left_sends_the_rows(rig: Rig, wide: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    rows, info = rig.cache.read("wide", info=True)
    assert_frame_equal(rows, wide)
    assert (info.plane, edge_of(rig).lifetimes.count) == ("local", 0)


def test_too_many_clients_are_sent_to_flight(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_CONNECTIONS", edge_of(rig).connections)
    with fletching.connect(rig.url) as cache:
        assert cache.read("wide", "S01", info=True)[1].plane == "flight"


def test_memory_that_is_not_sealed_is_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    descriptor = os.open(tmp_path / "open", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 4096)
    with pytest.raises(PermissionError, match="could still write"):
        MappedImage(descriptor, writing)
    for closed in (descriptor, writing):  # both were taken over, and closed
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(closed)
    os.close(reading)


def test_a_burst_of_threads_leaves_few_connections_behind(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching._local._MOST_IDLE", 2)
    assert set(in_threads(12, lambda _number: rig.cache.read("wide", "S01").height)) == {ROWS // 20}
    assert edge_of(rig).wait_for_connections(2)


def test_errors_are_the_same_and_the_connection_stays(rig: Rig) -> None:
    edge = edge_of(rig)
    for _ in range(3):
        with pytest.raises(UnknownDataset, match="nothing"):
            rig.cache.read("nothing")
        assert rig.cache.read("wide", "S01").height == ROWS // 20
    assert edge.connections == 1


# Bad input


class Raw:
    """A client that says what it likes."""

    def __init__(self, rig: Rig) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(edge_of(rig).path))

    def told(self) -> tuple[Frame, bytes]:
        kind, size = told_head(self.exactly(HEAD_BYTES), 1 << 26)
        return kind, self.exactly(size)

    def exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self.socket.recv(size - len(found))
            if not more:
                raise ConnectionResetError
            found += more
        return found

    def hung_up(self) -> bool:
        with suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True


@pytest.fixture
def raw(rig: Rig) -> Iterator[Raw]:
    made = Raw(rig)
    yield made
    made.socket.close()
    assert rig.cache.read("wide", "S01").height == ROWS // 20
    assert edge_of(rig).wait_for_connections(1)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of kind 71"),
        (b"\0" * 64, "a frame of kind 0"),
        (head(Frame.READ, 10 << 20), "at most"),
        (head(Frame.READ, MAX_ASKED_BYTES + 1), "at most"),
        (frame(Frame.MAPPED), "a server is not told MAPPED"),
        (frame(Frame.READ, b"\1"), "ends too early"),
        (frame(Frame.READ, b"\xff\xff\xff\xff"), f"at most {MAX_MAPPED:,}"),
        (frame(Frame.READ, packed([1, 2, 3])[:-1]), "ends too early"),
    ],
)
def test_what_nobody_understands_is_answered_and_hung_up_on(said: bytes, match: str, raw: Raw) -> None:
    raw.socket.sendall(said)
    kind, body = raw.told()
    assert kind == Frame.ERROR
    assert match in told_error(body).message
    assert raw.hung_up()


@pytest.mark.parametrize("request_", [b"", b"{}", b"[1]", b"\xff\xfe", json.dumps({"kind": "read", "version": 9}).encode()])
def test_a_request_that_is_none_is_an_error_and_the_next_one_works(request_: bytes, raw: Raw) -> None:
    raw.socket.sendall(frame(Frame.READ, packed([], request_)))
    kind, body = raw.told()
    assert (kind, told_error(body).code) == (Frame.ERROR, "invalid_request")
    raw.socket.sendall(frame(Frame.READ, packed([], ReadRequest("wide", ("S01",), columns=("price",)).to_bytes())))
    assert raw.told()[0] == Frame.ARROW
    assert raw.told()[0] == Frame.END


def test_images_that_were_never_handed_over_give_nothing(raw: Raw) -> None:
    """A client that claims to map everything gets places, and no memory to look for them in."""
    raw.socket.sendall(frame(Frame.READ, packed(range(MAX_MAPPED), ReadRequest("wide").to_bytes())))
    data, ancillary, _, _ = raw.socket.recvmsg(1 << 20, 1 << 12)
    assert data[0] == Frame.MAPPED
    assert ancillary == []


def test_a_client_that_never_reads_costs_one_lease_until_it_leaves(rig: Rig, raw: Raw) -> None:
    raw.socket.sendall(frame(Frame.READ, packed([], ReadRequest("wide").to_bytes())))
    assert edge_of(rig).lifetimes.wait_until(1, 20)
    raw.socket.close()
    assert edge_of(rig).lifetimes.wait_until_none(20)


def test_a_client_that_takes_no_rows_loses_its_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching_server.handover.SENT_BYTES", 1 << 40)
    monkeypatch.setattr("fletching_server.handover.FEW_SENT_BYTES", 1 << 40)
    monkeypatch.setattr("fletching_server.conversation.STALL_SECONDS", 1)
    stalling = Raw(rig)
    stalling.socket.sendall(frame(Frame.HELLO, b"{}"))
    assert stalling.told()[0] == Frame.HELLO
    assert edge_of(rig).connections == 2
    stalling.socket.sendall(frame(Frame.READ, packed([], ReadRequest("wide").to_bytes())))
    assert edge_of(rig).wait_for_connections(1)  # the rig's own: the server gave up on the other
    assert facts(rig)["hot_leases"] == 0
    stalling.socket.close()


def test_descriptors_sent_by_a_client_are_not_taken(raw: Raw) -> None:
    hello = frame(Frame.HELLO, b"{}")
    raw.socket.sendall(hello)
    assert raw.told()[0] == Frame.HELLO  # the server's end is counted from now on
    before = descriptors()
    with Path("/dev/null").open("rb") as sent:
        socket.send_fds(raw.socket, [hello], [sent.fileno()] * 8)
        assert raw.told()[0] == Frame.HELLO
    assert descriptors() == before


# Sockets


def test_the_socket_is_this_user_s_alone(rig: Rig) -> None:
    path = edge_of(rig).path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stale_socket_of_a_killed_server_is_replaced(root: Path, processes: Processes) -> None:
    environment = {"FLETCHING_LOCAL_FOLDER": str(root / "local")}
    listen = f"grpc+unix://{root}/s.sock"
    for _ in range(2):
        server = processes.serve(root / "store", ["sim"], listen, environment)
        with fletching.connect(server.url(), plane="local") as cache:
            assert cache.read("bars_1d", "000001.SZ", "2024-01-02", "2024-01-31", info=True)[1].plane == "local"
        assert len(list((root / "local").glob("*.sock"))) == 1
        server.send("kill")
        server.wait()


def test_a_server_that_ends_leaves_nothing_behind(root: Path, processes: Processes) -> None:
    server = processes.serve(root / "store", ["sim"], environment={"FLETCHING_LOCAL_FOLDER": str(root / "local")})
    with fletching.connect(server.url(), plane="local"):
        pass
    server.send("term")
    assert server.wait() == 0
    assert not (root / "local").exists()


def test_a_second_server_on_one_path_serves_flight_only(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rigs("local"), rigs("tcp", shares=True)
    monkeypatch.setattr("fletching_server.service.Address.local_path", lambda *_: edge_of(first).path)
    with Service(second.engine, "grpc://127.0.0.1:0") as service:
        assert service.local is None
        with fletching.connect(service.url) as cache:
            assert cache.health()["status"] == "serving"
    with fletching.connect(first.url, plane="local") as cache:
        assert cache.health()["planes"]["local"] == edge_of(first).facts()


def test_a_folder_that_others_can_write_to_is_not_used(rigs: Rigs, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    rig = rigs("tcp", shares=True, local_folder=folder)
    assert rig.service is not None
    assert rig.service.local is None
    assert list(folder.iterdir()) == []


def test_a_path_that_is_too_long_is_told_and_flight_serves(rigs: Rigs, tmp_path: Path) -> None:
    rig = rigs("tcp", shares=True, local_folder=tmp_path / ("x" * 100))
    assert rig.service is not None
    assert rig.service.local is None
    assert rig.cache.health()["planes"] == {}


def test_a_socket_of_another_server_is_not_talked_to(rig: Rig) -> None:
    with pytest.raises(Unusable, match="another server answers"):
        Channel(str(edge_of(rig).path), "0" * 32, 20)


def test_the_host_is_known_by_its_start() -> None:
    assert len(host_id()) == 36


def test_frames_survive_the_kill_of_their_server_and_reads_go_on_with_the_next(
    root: Path, wide: pl.DataFrame, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletching._served._LOOK_AGAIN_SECONDS", 0.0)
    environment = {"FLETCHING_LOCAL_FOLDER": str(root / "local")}
    listen = f"grpc+unix://{root}/s.sock"
    server = processes.serve(root / "store", [], listen, environment)
    with fletching.connect(server.url()) as cache:
        cache.write("wide", wide, keys=["symbol", "ts"])
        frame, info = cache.read("wide", info=True)
        server.send("kill")
        server.wait()
        with pytest.raises(ServerUnreachable):
            cache.read("wide")
        assert_frame_equal(frame, wide)
        processes.serve(root / "store", [], listen, environment).url()
        again, after = cache.read("wide", info=True)
        assert_frame_equal(again, frame)
        planes = {info.plane, cache.read("wide", info=True)[1].plane}
        assert (planes, after.tier) == ({"local"}, "cold")


def test_what_a_server_hands_over_and_nobody_takes_is_closed(rig: Rig) -> None:
    transport = rig.cache._transport
    assert isinstance(transport, ServedTransport)
    channel = Channel(str(edge_of(rig).path), edge_of(rig).instance, 20)
    channel.ask([], ReadRequest("wide").to_bytes())
    assert channel.receive()[0] == Frame.IMAGES
    channel.close()
    assert edge_of(rig).lifetimes.wait_until_none(20)

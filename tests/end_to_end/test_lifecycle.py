"""Servers in processes of their own: they start or say why not, drain in time, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import ReadRequest
from fletching_server import open_engine
from fletching_server.service import Service, wait_for_signal

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Child, Processes, Rigs, Server, Stop

ASKED = ("bars_1d", ["000001.SZ", "600000.SH"], "2024-01-02", "2024-12-31")
STUCK = 75
STUCK_READER = """
import sys, pyarrow.flight as fl
reader = fl.connect(sys.argv[1]).do_get(fl.Ticket(sys.argv[2]))
print(reader.read_chunk().data.num_rows, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(root: Path) -> Path:
    path = root / "sim.toml"
    path.write_text("symbols = 8\nfirst = 2023-01-03\n")
    return path


def big() -> pl.DataFrame:
    """A table of 80 MB: far more than gRPC and the sockets hold of a stream that nobody reads."""
    size = pl.int_range(600_000)
    more = [size.alias(f"more_{place}") for place in range(12)]
    return pl.select(("S" + size.cast(pl.String)).alias("symbol"), pl.date(2024, 1, 2).alias("day"), size.alias("size"), *more)


def check_refused(server: Child, kind: str, *parts: str) -> None:
    """The command ends with status 1 and one line that says what is wrong."""
    assert server.wait() == 1
    errors = server.errors()
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"{kind}: "), errors
    for part in parts:
        assert part in last


# The main job


def test_what_was_read_once_survives_a_kill_without_another_upstream_call(root: Path, config: Path, processes: Processes) -> None:
    server = processes.serve(root / "store", [f"sim:{config}"])
    with fletching.connect(server.url()) as cache:
        first, cold = cache.read(*ASKED, info=True)
        minutes = cache.read("bars_1m", "000001.SZ", "2024-03-20", "2024-03-20")
        again, warm = cache.read(*ASKED, info=True)
    assert first.height > 400
    assert (cold.tier, cold.upstream_calls, cold.plane) == ("source", 1, "local")
    assert (warm.tier, warm.upstream_calls) == ("hot", 0)
    assert_frame_equal(again, first)
    server.send("kill")
    assert server.wait() == -signal.SIGKILL

    server = processes.serve(root / "store", [f"sim:{config}"])
    with fletching.connect(server.url()) as cache:
        after, info = cache.read(*ASKED, info=True)
        assert_frame_equal(after, first)
        assert (info.tier, info.upstream_calls, info.joined_calls) == ("cold", 0, 0)
        assert_frame_equal(cache.read("bars_1m", "000001.SZ", "2024-03-20", "2024-03-20"), minutes)
        assert cache.stats()["upstream_calls"] == 0


def test_a_store_is_read_without_its_source(root: Path, config: Path, processes: Processes) -> None:
    server = processes.serve(root / "store", [f"sim:{config}"])
    with fletching.connect(server.url()) as cache:
        rows = cache.read(*ASKED)
    server.send("term")
    assert server.wait() == 0
    with fletching.open(root / "store") as cache:
        assert_frame_equal(cache.read(*ASKED), rows)
        with pytest.raises(fletching.SourceUnavailable, match="'sim' is not configured here"):
            cache.read("bars_1d", "000001.SZ", "2023-02-01", "2023-02-03")


def test_what_was_written_survives_a_kill(root: Path, processes: Processes) -> None:
    rows = big().head(1000)
    server = processes.serve(root / "store")
    with fletching.connect(server.url()) as cache:
        assert cache.write("mine", rows, keys=["symbol", "day"]).rows == 1000
    server.send("kill")
    server.wait()
    with fletching.connect(processes.serve(root / "store").url()) as cache:
        assert_frame_equal(cache.read("mine"), rows.sort("symbol"))


# Ending


def refusal(cache: fletching.Cache) -> fletching.Error:
    """Ask until the server refuses, and return how."""
    for _ in range(10_000):
        try:
            cache.health()
        except fletching.Error as error:
            return error
    raise AssertionError("the server goes on taking requests")


@pytest.mark.parametrize("stop", ["term", "int"])
@pytest.mark.parametrize("plane", ["tcp", "unix"])
def test_an_idle_server_ends_at_once(stop: Stop, plane: str, rigs: Rigs, processes: Processes) -> None:
    socket_url = rigs.listen(plane)
    server = processes.serve(rigs.folder("store"), listen=socket_url)
    with fletching.connect(server.url()) as cache:
        assert cache.health()["process"] == server.pid
        server.send(stop)
        assert server.wait(15) == 0
        with pytest.raises(fletching.ServerUnreachable, match=r"nobody answers at .*fletching serve"):
            cache.health()
    assert "Traceback" not in server.errors()


def test_a_signal_right_after_the_start_is_an_orderly_end_too(root: Path, processes: Processes) -> None:
    server = processes.serve(root / "store")
    server.url()
    server.send("term")
    assert server.wait(15) == 0


@pytest.fixture
def stuck(root: Path, processes: Processes) -> tuple[Server, fletching.Cache]:
    """A server with a client that reads one batch of many and then nothing any more."""
    server = processes.serve(root / "store", environment={"FLETCHING_DRAIN_SECONDS": "1"})
    cache = fletching.connect(server.url())
    cache.write("big", big(), keys=["symbol", "day"])
    reader = processes.run(STUCK_READER, repr(cache).split()[-1][:-1], ReadRequest("big").to_bytes().decode())
    assert int(reader.line()) > 0
    return server, cache


def test_a_client_that_never_reads_delays_the_end_by_the_drain_at_most(stuck: tuple[Server, fletching.Cache]) -> None:
    server, cache = stuck
    server.send("term")
    refused = refusal(cache)
    assert type(refused) is fletching.ServerClosing
    assert "takes no new requests" in str(refused)
    with pytest.raises((fletching.ServerClosing, fletching.ServerUnreachable)):
        cache.read("big")
    assert server.wait(1 + 5 + 4) == STUCK  # the drain, pyarrow's shutdown, and a margin
    cache.close()


def test_a_stream_that_is_read_on_ends_whole_during_the_drain(rigs: Rigs) -> None:
    rig = rigs("tcp", drain_seconds=20.0)
    rig.cache.write("big", big(), keys=["symbol", "day"])
    reader = rig.cache.stream("big")
    rows = reader.read_next_batch().num_rows
    assert rig.service is not None
    service = rig.service
    closed: list[bool] = []
    ending = threading.Thread(target=lambda: closed.append(service.close()))
    ending.start()
    assert type(refusal(rig.cache)) is fletching.ServerClosing
    rows += sum(batch.num_rows for batch in reader)
    ending.join(20)
    assert (rows, closed) == (600_000, [True])


def test_every_call_is_refused_during_the_drain(rigs: Rigs) -> None:
    rig = rigs("tcp")
    assert rig.service is not None
    rig.cache.write("small", big().head(10), keys=["symbol", "day"])
    calls: list[Callable[[], object]] = [
        lambda: rig.cache.read("small"),
        lambda: rig.cache.schema("small"),
        rig.cache.datasets,
        lambda: rig.cache.write("small", big().head(1)),
    ]
    rig.service._edge.draining = True
    for call in calls:
        with pytest.raises(fletching.ServerClosing):
            call()
    rig.service._edge.draining = False  # so that closing it here ends it
    assert rig.cache.read("small").height == 10


def test_closing_twice_does_nothing(rigs: Rigs, plane: str) -> None:
    rig = rigs(plane)
    rig.cache.close()
    if rig.service is not None:
        assert rig.service.close()
        assert rig.service.close()
    rig.engine.close()
    rig.engine.close()


# Starting


def test_a_port_in_use_is_an_error_that_says_so(root: Path, processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"grpc://127.0.0.1:{taken.getsockname()[1]}"
        check_refused(
            processes.serve(root / "store", listen=listen),
            "ListenFailed",
            listen.removeprefix("grpc://"),
            "in use",
            "choose another port",
        )


def test_a_second_server_on_a_socket_is_refused_and_the_first_works_on(rigs: Rigs, processes: Processes) -> None:
    listen = rigs.listen("unix")
    first = processes.serve(rigs.folder("store"), listen=listen)
    url = first.url()
    second = processes.serve(rigs.folder("store"), listen=listen)
    check_refused(second, "ListenFailed", listen.removeprefix("grpc+unix://"), f"process {first.pid}")
    with fletching.connect(url) as cache:
        assert cache.health()["process"] == first.pid


def test_the_socket_of_a_killed_server_is_taken_over(rigs: Rigs, processes: Processes) -> None:
    listen, store = rigs.listen("unix"), rigs.folder("store")
    first = processes.serve(store, listen=listen)
    first.url()
    first.send("kill")
    first.wait()
    assert Path(listen.removeprefix("grpc+unix://")).is_socket()
    second = processes.serve(store, listen=listen)
    with fletching.connect(second.url()) as cache:
        assert cache.health()["process"] == second.pid


def test_a_socket_is_for_its_owner_only(rigs: Rigs) -> None:
    folder = rigs.folder("private")
    with open_engine(rigs.folder("store")) as engine, Service(engine, f"grpc+unix://{folder}/s.sock") as service:
        assert folder.stat().st_mode & 0o777 == 0o700
        with fletching.connect(service.url) as cache:
            assert cache.health()["status"] == "serving"


def test_a_store_that_is_in_use_names_who_has_it(root: Path, processes: Processes) -> None:
    first = processes.serve(root / "store")
    first.url()
    check_refused(processes.serve(root / "store"), "StoreInUse", str(root / "store"), f"process {first.pid}")
    with pytest.raises(fletching.StoreInUse, match=f"process {first.pid}"):
        fletching.open(root / "store")


def test_a_server_that_could_not_listen_gives_the_store_back(root: Path, processes: Processes) -> None:
    check_refused(processes.serve(root / "store", listen="grpc://192.0.2.1:1"), "InvalidRequest", "--insecure")
    with fletching.open(root / "store") as cache:
        assert cache.datasets().is_empty()


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("grpc+unix:///tmp/" + "x" * 120 + ".sock", "longer than 100 bytes"),
        ("grpc://0.0.0.0:0", "no authentication yet"),
        ("grpc://[::]:0", "no authentication yet"),
        ("grpc://8.8.8.8:0", "no authentication yet"),
        ("grpc://example.com:0", "no authentication yet"),
        ("http://127.0.0.1:0", "cannot listen at 'http://127.0.0.1:0'"),
        ("grpc://127.0.0.1:0/path", "cannot listen"),
        ("grpc+unix://relative.sock", "cannot listen"),
        ("grpc://127.0.0.1:port", "cannot listen"),
        ("grpc://127.0.0.1:99999", "cannot listen"),
        ("127.0.0.1:8815", "cannot listen"),
        ("", "cannot listen"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(listen: str, message: str, rigs: Rigs) -> None:
    with open_engine(rigs.folder("store")) as engine, pytest.raises(fletching.Error, match=message) as caught:
        Service(engine, listen)
    assert type(caught.value) in {fletching.InvalidRequest, fletching.ListenFailed}


def test_a_source_that_does_not_exist_is_an_error_that_lists_them(root: Path, processes: Processes) -> None:
    check_refused(processes.serve(root / "store", ["bloomberg"]), "InvalidRequest", "'bloomberg'", "akshare, files, sim")


def test_a_signal_before_anybody_waits_is_not_lost() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert wait_for_signal(lambda: os.kill(os.getpid(), signal.SIGTERM)) == "SIGTERM"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

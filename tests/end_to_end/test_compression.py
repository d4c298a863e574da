"""Compressed batches for slow links: fewer bytes on the wire, counted by a relay between real sockets, and the same rows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow.flight as fl
import pytest
from polars.testing import assert_frame_equal

import fletching
from fletching_schemas import ReadRequest, headers

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Rig, Rigs

ROWS: Final = 100_000


class Relay:
    """Passes bytes between one client and a server, and counts them in both directions."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("grpc://").rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listening]
        self._threads = [threading.Thread(target=self._accept)]
        self.to_client = self.to_server = 0
        self.url = f"grpc://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for source, sink, name in ((server, client, "to_client"), (client, server, "to_server")):
                self._threads.append(threading.Thread(target=self._pass, args=(source, sink, name)))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, name, getattr(self, name) + len(data))  # each direction has one thread per connection
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def rows() -> pl.DataFrame:
    number = pl.int_range(ROWS, eager=True)
    start = datetime(2024, 1, 2, tzinfo=UTC)
    return pl.DataFrame({"number": number}).select(
        ("S" + (pl.col("number") * 20 // ROWS).cast(pl.String).str.zfill(2)).alias("symbol"),
        (pl.lit(start) + pl.duration(seconds="number")).cast(pl.Datetime("us", "UTC")).alias("ts"),
        (10 + (pl.col("number") % 50) / 100).alias("price"),
        pl.when(pl.col("number") % 3 > 0).then(pl.lit("a text that is longer than a view holds")).alias("note"),
    )


@pytest.fixture(scope="module")
def rig(module_rigs: Rigs) -> Rig:
    made = module_rigs("tcp", compact_idle_seconds=3600)
    made.cache.write("prices", rows(), keys=["symbol", "ts"])
    made.cache.write("numbers", rows().drop("note"), keys=["symbol", "ts"])
    made.cache.read("prices")
    return made


@pytest.fixture
def relay(rig: Rig) -> Iterator[Relay]:
    with ExitStack() as opened:
        made = Relay(rig.url)
        opened.callback(made.close)
        yield made


def read_through(relay: Relay, compression: str | None, table: str, **more: bool) -> tuple[pl.DataFrame, int]:
    """Return a frame and how many bytes came for it."""
    with fletching.connect(relay.url, compression=compression) as cache:
        before = relay.to_client
        answer = cache.read(table, **more)  # type: ignore[arg-type]
        return answer[0] if more else answer, relay.to_client - before


@pytest.mark.parametrize("table", ["numbers", "prices"], ids=["streamed by C++", "with text, by a generator"])
@pytest.mark.parametrize("more", [{}, {"info": True}], ids=["", "with info"])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_answers_are_smaller_and_equal(compression: str, more: dict[str, bool], table: str, relay: Relay) -> None:
    plain, plain_bytes = read_through(relay, None, table, **more)
    frame, compressed_bytes = read_through(relay, compression, table, **more)
    assert_frame_equal(frame, plain)
    assert frame.height == ROWS
    assert plain_bytes > 0.9 * 32 * ROWS
    assert compressed_bytes < plain_bytes / 2


def test_writes_are_compressed_too(rig: Rig, relay: Relay) -> None:
    sent = {}
    for name, compression in (("plain", None), ("packed", "zstd")):
        with fletching.connect(relay.url, compression=compression) as cache:
            before = relay.to_server
            cache.write(name, rows(), keys=["symbol", "ts"])
            sent[name] = relay.to_server - before
        assert_frame_equal(rig.cache.read(name), rows())
    assert sent["packed"] < sent["plain"] / 2


@pytest.mark.parametrize("plane", ["tcp", "unix"])
def test_nothing_is_compressed_unasked(plane: str, rigs: Rigs) -> None:
    transport: Any = rigs(plane).cache._transport._flight  # type: ignore[attr-defined]
    assert transport._options.headers == []


def test_an_unknown_compression_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(fletching.InvalidRequest, match="one of lz4, zstd"):
        fletching.connect("grpc://127.0.0.1:1", compression="gzip")


@pytest.mark.parametrize("name", [b"gzip", b"", b"LZ4", b"../lz4"])
def test_a_foreign_client_is_told_which_compressions_there_are(name: bytes, rig: Rig) -> None:
    options = fl.FlightCallOptions(headers=[(headers.COMPRESSION.encode(), name)])
    with fl.connect(rig.url) as client, pytest.raises(fl.FlightError) as refused:
        client.do_get(fl.Ticket(ReadRequest("prices").to_bytes()), options).read_all()
    told = rig.cache._transport._flight.translated(refused.value)  # type: ignore[attr-defined]
    assert type(told) is fletching.InvalidRequest
    assert "lz4, zstd" in str(told)
    rig.wait_until_idle()
    assert rig.engine.hot.facts()["hot_leases"] == 0


class Foreign(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """A server that never heard of our headers."""

    def do_action(self, context: object, action: fl.Action) -> Iterator[fl.Result]:
        del context, action
        yield fl.Result(b"{}")

    def do_get(self, context: object, ticket: fl.Ticket) -> fl.RecordBatchStream:
        del context, ticket
        return fl.RecordBatchStream(rows().to_arrow())


def test_a_server_that_does_not_know_the_header_answers_plainly() -> None:
    with (
        Foreign("grpc://127.0.0.1:0") as server,
        fletching.connect(f"grpc://127.0.0.1:{server.port}", compression="lz4") as cache,
    ):
        assert_frame_equal(cache.read("prices"), rows())
        assert_frame_equal(cache.read("prices", ["S01"]), rows())

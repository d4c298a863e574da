"""Streaming a hot partition over Flight, against a bare pyarrow Flight server that holds the very same batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.flight as fl

import fletching
from benchmarks.figures import Row, compared, interleaved, scaled, seconds
from benchmarks.servers import Addresses, bare_server, fletching_server
from fletching_schemas import Action, ReadRequest

ROWS: Final = 1_220_000
SYMBOLS: Final = 305
TABLE: Final = "ticks"
TARGET: Final = 0.95
FRAME_TARGET: Final = 1.3
USUAL_ROWS: Final = 65_536  # of a batch, where nobody thought of where its bytes arrive
BATCHES: Final = "copies into and out of the socket by one gRPC thread per side; a fixed 0.3 ms per read is what differs"
FRAMES: Final = "gRPC's two copies in the client, and the pages that hold a frame: the system zeroes what glibc gave back"
ALIGNED: Final = fl.FlightCallOptions(read_options=pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific))


def run(effort: float = 1.0) -> list[Row]:
    """Return MB/s of both servers over TCP and over a UNIX socket, raw batches and whole frames."""
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        with fletching_server(folder) as ours:
            _fill(ours)
            held = _table(ours.tcp, ReadRequest(TABLE).to_bytes())
            with bare_server(folder, {TABLE: held}) as peer:
                ticket = f"{TABLE}:{len(held.column(0).chunk(0))}".encode()
                _check_same(held, _table(peer.tcp, ticket))
                return _measured(ours, peer, ticket, held.nbytes, scaled(300, effort))


def generated(rows: int = ROWS, symbols: int = SYMBOLS) -> pl.DataFrame:
    """Return made-up quotes: symbol, instant, and six numbers, all inside one year."""
    random, each = np.random.default_rng(7), rows // symbols
    instants = np.datetime64("2024-01-02T01:30", "us") + np.arange(each) * np.timedelta64(20, "s")
    numbers = {name: random.normal(100, 1, rows).round(2) for name in ("bid", "ask", "last", "vwap")}
    counts = {name: random.integers(1, 1_000_000, rows) for name in ("bid_size", "ask_size")}
    names = np.repeat([f"{number:06}.SZ" for number in range(1, symbols + 1)], each)
    frame = pl.DataFrame({"symbol": names, "ts": np.tile(instants, symbols), **numbers, **counts})
    return frame.with_columns(pl.col("ts").dt.replace_time_zone("UTC"))


def _fill(ours: Addresses) -> None:
    """Write the rows as a user table and fold them, so that they are one partition, and read it once, so that it is hot."""
    with fletching.connect(ours.tcp) as cache:
        cache.write(TABLE, generated(), keys=["symbol", "ts"], partition="year")
        cache._transport.act(Action.COMPACT, {"dataset": TABLE})  # noqa: SLF001  # compaction is no verb of the client
        _, info = cache.read(TABLE, info=True)
        _, info = cache.read(TABLE, info=True)
        if (info.partitions, info.tier, info.rows) != (1, "hot", ROWS):
            raise RuntimeError(f"not one hot partition of {ROWS:,} rows: {info}")


def _table(address: str, ticket: bytes) -> pa.Table:
    with fl.FlightClient(address) as client:
        return client.do_get(fl.Ticket(ticket)).read_all()


def _check_same(ours: pa.Table, peer: pa.Table) -> None:
    same_batches = [len(chunk) for chunk in ours.column(0).chunks] == [len(chunk) for chunk in peer.column(0).chunks]
    if not same_batches or not ours.equals(peer):
        raise RuntimeError("the two servers do not stream the same batches")


def _measured(ours: Addresses, peer: Addresses, ticket: bytes, size: int, rounds: int) -> list[Row]:
    rows = []
    for plane in ("tcp", "unix"):
        with fl.FlightClient(getattr(ours, plane)) as one, fl.FlightClient(getattr(peer, plane)) as other:
            contenders = {
                "ours": lambda one=one: _rate(size, lambda: drained(one, ReadRequest(TABLE).to_bytes())),
                "peer": lambda other=other: _rate(size, lambda: drained(other, ticket)),
            }
            rows.append(_row(f"batches over {plane}", interleaved(contenders, rounds)))
    return [*rows, *_frames(ours, peer, ticket, size, rounds)]


def _frames(ours: Addresses, peer: Addresses, ticket: bytes, size: int, rounds: int) -> list[Row]:
    """Return the rows for whole frames, against what a user writes first and against what a careful one writes."""
    usual = f"{TABLE}:{USUAL_ROWS}".encode()
    with fletching.connect(ours.tcp, plane="flight") as cache, fl.FlightClient(peer.tcp) as other:
        contenders = {
            "ours": lambda: _rate(size, lambda: cache.read(TABLE)),
            "plain": lambda: _rate(size, lambda: plain_frame(other, usual)),
            "same": lambda: _rate(size, lambda: plain_frame(other, ticket)),
            "careful": lambda: _rate(size, lambda: as_frame(other, ticket)),
        }
        samples = interleaved(contenders, rounds)
    first = f"partition -> Polars over tcp, peer: pl.from_arrow, {USUAL_ROWS:,} rows"
    return [
        _row(first, samples, "plain", FRAME_TARGET, FRAMES),
        _row("the same, peer: pl.from_arrow, our batches", samples, "same", None, FRAMES),
        _row("the same, peer: aligned, shared, our batches", samples, "careful", TARGET, FRAMES),
    ]


def drained(client: fl.FlightClient, ticket: bytes) -> int:
    """Return how many rows came; each batch is taken and let go, by the same code for both servers."""
    rows = 0
    for chunk in client.do_get(fl.Ticket(ticket)):
        rows += chunk.data.num_rows
    if rows != ROWS:
        raise RuntimeError(f"{rows:,} rows came instead of {ROWS:,}")
    return rows


def plain_frame(client: fl.FlightClient, ticket: bytes) -> pl.DataFrame:
    """Return what anybody would write first to get a frame."""
    return pl.DataFrame(pl.from_arrow(client.do_get(fl.Ticket(ticket)).read_all()))


def as_frame(client: fl.FlightClient, ticket: bytes) -> pl.DataFrame:
    """Return what a careful user of a plain Flight client would write to get a frame: aligned once, then shared."""
    table = client.do_get(fl.Ticket(ticket), ALIGNED).read_all()
    return pl.DataFrame(pl.from_arrow(table, rechunk=False))


def _rate(size: int, call: Callable[[], object]) -> float:
    return size / 1e6 / seconds(call)


def _row(
    what: str, samples: dict[str, list[float]], against: str = "peer", target: float | None = TARGET, limit: str = BATCHES
) -> Row:
    ours, peer, ratio = compared(samples, "ours", against)
    if target is None:
        return Row(what, "MB/s", ours, peer, ratio, limit=limit)
    return Row(what, "MB/s", ours, peer, ratio, f">= {target}", ratio.median >= target, limit)

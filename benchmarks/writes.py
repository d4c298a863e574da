"""Writing into a user table: a million rows over Flight, the acknowledgement of a small upsert, and many writers at once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq

import fletching
from benchmarks.figures import Row, Spread, compared, interleaved, scaled, seconds
from benchmarks.servers import bare_server, fletching_server
from fletching_server import failpoints

ROWS: Final = 1_000_000
SMALL: Final = 250
SYMBOLS: Final = 500
WRITERS: Final = 16
TURNS: Final = 40  # writes of each writer in a round
SYNC_SECONDS: Final = 0.004  # three a commit: a solid-state disk that has to write through
KEYS: Final = ("symbol", "ts")
_WAIT: Final = {"compact_idle_seconds": 3600, "compact_segments": 1_000_000}  # folding is another benchmark


def run(effort: float = 1.0) -> list[Row]:
    """Return how long writes take beside peers that keep less of a promise."""
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        million, small = _million(folder, scaled(15, effort)), _small(folder, scaled(300, effort))
        return [million, *small, *_together(folder, scaled(9, effort)), *_on_a_slow_disk(folder, scaled(5, effort))]


def quotes(rows: int, symbols: int, seed: int = 0) -> pa.Table:
    """Return generated quotes, sorted by symbol and instant (microseconds in UTC)."""
    chance = np.random.default_rng(seed)
    each = rows // symbols
    instants = np.tile(1_700_000_000_000_000 + np.arange(each) * 250_000, symbols)
    bids = chance.normal(100, 5, each * symbols).round(2)
    frame = pl.DataFrame(
        {
            "symbol": np.repeat([f"{number:06}.SZ" for number in range(symbols)], each),
            "ts": pl.Series(instants).cast(pl.Datetime("us", "UTC")),
            "bid": bids,
            "ask": bids + 0.01,
            "bid_size": chance.integers(1, 5000, each * symbols),
            "ask_size": chance.integers(1, 5000, each * symbols),
        }
    )
    return frame.to_arrow()


# A million rows


def _million(folder: Path, rounds: int) -> Row:
    rows = quotes(ROWS, SYMBOLS)
    with fletching_server(folder, **_WAIT) as ours, bare_server(folder, {}) as bare:
        client = fl.FlightClient(bare.tcp)
        with fletching.connect(ours.tcp) as cache:
            turns = count()  # a table each: 64 MB in one journal would be folded beside the next round
            contenders = {
                "ours": lambda: seconds(lambda: cache.write(f"quotes_{next(turns)}", rows, keys=KEYS)),
                "bare": lambda: seconds(partial(_put, client, rows)),
            }
            samples = interleaved(contenders, rounds, warm_up=1)
    mine, peer, _ = compared(samples, "ours", "bare")
    ratios = Spread.of([bare / ours for ours, bare in zip(samples["ours"], samples["bare"], strict=True)])
    return Row(
        f"write of {ROWS:,} rows x {rows.num_columns} over tcp", "s", mine, peer, ratios,
        "at least 0.6", ratios.median >= 0.6, "Parquet on one core: zstd, checksums per page and a digest here, snappy there",
        peer_is="bare Flight DoPut, pq.write_table, fsync: nothing is checked, ordered or committed", ratio_is="peer / ours",
    )  # fmt: skip


def _put(client: fl.FlightClient, rows: pa.Table) -> None:
    writer, metadata = client.do_put(fl.FlightDescriptor.for_path("x"), rows.schema)
    writer.write_table(rows, 65_536)
    writer.done_writing()
    if metadata.read() is None:
        raise RuntimeError("the bare server did not acknowledge")
    writer.close()


# One small upsert


def _small(folder: Path, rounds: int) -> list[Row]:
    parts = _parts()
    turns = {name: count() for name in ("ours", "flight")}
    with _own(folder / "small") as cache, _served(folder / "served") as client, _bare_store(folder) as peer:
        size = next((folder / "small" / "journal").iterdir()).stat().st_size
        raw = os.urandom(size)
        contenders: dict[str, Callable[[], float]] = {
            "ours": lambda: seconds(lambda: cache.write("quotes", parts[next(turns["ours"]) % SYMBOLS])),
            "flight": lambda: seconds(lambda: client.write("quotes", parts[next(turns["flight"]) % SYMBOLS])),
            "bytes": lambda: seconds(lambda: peer(raw)),
            "parquet": lambda: seconds(lambda: peer(_encoded(parts[7]))),
        }
        samples = {name: [1e3 * value for value in values] for name, values in interleaved(contenders, rounds).items()}
    told = "file fsync + SQLite commit (WAL, FULL)"
    limit = "some 1.5 ms of Python, Arrow and SQL per commit; a disk whose sync takes milliseconds hides it"
    rows = []
    for name, what in (("ours", "embedded"), ("flight", "over tcp")):
        mine, peer_, ratio = compared(samples, name, "bytes")
        rows.append(Row(f"upsert of {SMALL} rows, {what}", "ms", mine, peer_, ratio, "at most 2", ratio.median <= 2, limit, peer_is=f"{size:,} random bytes: {told}"))  # noqa: E501  # fmt: skip
        mine, peer_, ratio = compared(samples, name, "parquet")
        rows.append(Row(f"upsert of {SMALL} rows, {what}", "ms", mine, peer_, ratio, "", None, limit, peer_is=f"pq.write_table of the same rows, {told}"))  # noqa: E501  # fmt: skip
    return rows


def _parts() -> list[pa.Table]:
    whole = quotes(SMALL * SYMBOLS, SYMBOLS)
    return [whole.slice(number * SMALL, SMALL) for number in range(SYMBOLS)]


@contextmanager
def _own(store: Path) -> Iterator[fletching.Cache]:
    with fletching.open(store, **_WAIT) as cache:
        cache.write("quotes", quotes(SMALL, 1), keys=KEYS)
        yield cache


@contextmanager
def _served(folder: Path) -> Iterator[fletching.Cache]:
    folder.mkdir()
    with fletching_server(folder, **_WAIT) as server, fletching.connect(server.tcp) as cache:
        cache.write("quotes", quotes(SMALL, 1), keys=KEYS)
        yield cache


@contextmanager
def _bare_store(folder: Path, more_seconds: float = 0.0) -> Iterator[Callable[[bytes | pa.Buffer], None]]:
    """Yield what writes bytes to a new file, syncs it, and commits its name to SQLite; its syncs take so much longer."""
    (folder / "bare").mkdir(parents=True)
    database = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE files (path TEXT, bytes INTEGER)"):
        database.execute(statement)
    numbers = count()

    def store(data: bytes | pa.Buffer) -> None:
        path = folder / "bare" / f"{next(numbers)}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO files VALUES (?, ?)", (path.name, len(data)))
        database.execute("COMMIT")
        if more_seconds:
            time.sleep(more_seconds)

    yield store
    database.close()


def _encoded(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return sink.getvalue()


# Many writers


def _together(folder: Path, rounds: int) -> list[Row]:
    parts = _parts()
    with _own(folder / "together") as cache, _served(folder / "many") as client:
        found = []
        for what, at in (("embedded", cache), ("over tcp", client)):
            contenders = {
                "one": partial(_rate, at, parts, 1),
                "many": partial(_rate, at, parts, WRITERS),
            }
            samples = interleaved(contenders, rounds, warm_up=1)
            many, one, ratio = compared(samples, "many", "one")
            limit = "the interpreter's lock: each write costs some 0.4 ms of Python besides its share of the commit"
            found.append(
                    Row(f"{WRITERS} writers of {SMALL} rows, {what}", "writes/s", many, one, ratio, "at least 5",
                        ratio.median >= 5, limit, peer_is="one writer, the same rows one after the other", ratio_is="many / one")
                )  # fmt: skip
    return found


def _on_a_slow_disk(folder: Path, rounds: int) -> list[Row]:
    """Return both where each sync takes longer, as on a disk that writes through: what one sync costs is not hidden there.

    Ours syncs file, folder and catalogue, the peer file and catalogue.
    """
    parts, turns, raw = _parts(), count(), os.urandom(6_000)
    with _own(folder / "slow") as cache, _bare_store(folder / "beside", 2 * SYNC_SECONDS) as peer, ExitStack() as slowly:
        for name in ("write.sync", "write.sync_folder", "catalogue.sync"):
            slowly.enter_context(failpoints.doing(name, lambda _name: time.sleep(SYNC_SECONDS)))
        alone = {
            "ours": lambda: 1e3 * seconds(lambda: cache.write("quotes", parts[next(turns) % SYMBOLS])),
            "bytes": lambda: 1e3 * seconds(lambda: peer(raw)),
        }
        mine, other, times = compared(interleaved(alone, 10 * rounds), "ours", "bytes")
        contenders = {"one": partial(_rate, cache, parts, 1), "many": partial(_rate, cache, parts, WRITERS)}
        many, one, ratio = compared(interleaved(contenders, rounds, warm_up=1), "many", "one")
    more = f"{1e3 * SYNC_SECONDS:g} ms more per sync"
    return [
        Row(f"upsert of {SMALL} rows, {more}", "ms", mine, other, times, "at most 2", times.median <= 2, "syncs",
            peer_is=f"6,000 random bytes: file fsync + SQLite commit, {more}"),
        Row(f"{WRITERS} writers, {more}", "writes/s", many, one, ratio, "at least 5", ratio.median >= 5, "syncs",
            peer_is=f"one writer, {more}", ratio_is="many / one"),
    ]  # fmt: skip


def _rate(cache: fletching.Cache, parts: list[pa.Table], writers: int) -> float:
    def write(number: int) -> None:
        for turn in range(TURNS):
            cache.write("quotes", parts[(number * TURNS + turn) % SYMBOLS])

    with ThreadPoolExecutor(writers) as pool:
        return writers * TURNS / seconds(lambda: list(pool.map(write, range(writers))))

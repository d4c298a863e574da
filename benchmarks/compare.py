"""Fletching against named peers: the same rows, in the same run, in turns; one table.

hot     another process reads what a server holds in memory; ArcticDB, Redis, DuckDB, Polars and bare Flight do the same
cold    what is on disk, in the page cache, and not in the server's memory; DuckDB and Polars on the very same file
    workers, soak    what many readers take: see there
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pyarrow.flight as fl

import fletching
from benchmarks import soak, workers
from benchmarks.contenders import Contender, check_same, contender, faster, raced, slower
from benchmarks.environments import peers_python
from benchmarks.figures import Row, Spread, scaled
from benchmarks.peers_redis import MISSING, redis_server, redis_version
from benchmarks.servers import Addresses, bare_server, fletching_server
from benchmarks.throughput import ALIGNED, USUAL_ROWS
from benchmarks.universe import TABLE, Universe, fill, span
from fletching_schemas import ReadRequest

UNIVERSE: Final = Universe()
YEAR: Final = UNIVERSE.years[-1]
ASKED: Final = UNIVERSE.names()[::25]
MEMORY: Final = "2GiB"
CALLS: Final = 20  # of a small read in each turn; a single one mostly times the waking up, and has a row of its own
MOST_MS: Final = 1.0

_MAPPED: Final = "mapping the partition and making a frame of it; its pages are first touched by who uses them"
_POINT: Final = "Python around one round trip between two processes, and pyarrow -> Polars"
_NEW: Final = "as above, and decoding and resolving the request: nothing is prepared, and nothing was sent a moment ago"
_AGAIN: Final = "building the request, and Polars decoding the bytes that are kept; the server is not asked"
_MANY: Final = "gathering many runs into batches, and their way to the client"
_TCP: Final = "copies into and out of the socket by one gRPC thread per side, and the alignment of the buffers"
_COLD_POINT: Final = "decoding the row group that holds the symbol, and fixed costs of planning and opening"
_COLD_WHOLE: Final = "decompressing and decoding Parquet; then order is checked and symbols are indexed"


def run(effort: float = 1.0, folder: Path | None = None) -> list[Row]:
    """Return the rows of the table; the environment of the peers is kept in *folder*."""
    python = peers_python(folder)
    with TemporaryDirectory(prefix="fb-") as scratch:
        rows = [*_hot(Path(scratch), python, effort), *_cold(Path(scratch), effort)]
    return [*rows, *workers.run(effort), *soak.run(effort)]


def _hot(folder: Path, python: Path, effort: float) -> Iterator[Row]:
    given = {"asked": ASKED, "year": YEAR, "first_year": UNIVERSE.years[0]}
    with ExitStack() as opened:
        server = opened.enter_context(fletching_server(folder, memory=MEMORY))
        with fletching.connect(server.tcp) as cache:
            fill(cache, UNIVERSE)
        stored = {**given, "years": [str(path) for path in _handed_over(folder)], "folder": str(folder)}
        enter = opened.enter_context
        ours = enter(contender("ours", "benchmarks.ours", {**given, "url": server.tcp}))
        flight = enter(contender("flight", "benchmarks.ours", {**given, "url": server.tcp, "plane": "flight"}))
        again = enter(contender("again", "benchmarks.ours", {**given, "url": server.tcp, "repeats": True}))
        arctic = enter(contender("arctic", "benchmarks.peers_arctic", stored, python))
        bare = enter(_bare(folder, server))
        files = enter(_files(folder))
        yield from _against_arctic(folder, ours, arctic, effort)
        yield from _against_files(folder, ours, files, effort)
        yield from _against_redis(folder, (ours, again), stored, python, effort)
        yield from _against_flight(folder, ours, flight, bare, effort)


def _handed_over(folder: Path) -> Iterator[Path]:
    """Write the rows for the peers, a file per year."""
    for year in UNIVERSE.years:
        path = folder / f"{year}.ipc"
        UNIVERSE.rows(year).write_ipc(path)
        yield path


@contextmanager
def _bare(folder: Path, server: Addresses) -> Iterator[Contender]:
    """Yield the plain Flight client of a plain server, which streams the usual batches, or the very ones that ours streams."""
    with fl.FlightClient(server.tcp) as client:
        request = ReadRequest(TABLE, None, *map(str, span(YEAR)))
        held = client.do_get(fl.Ticket(request.to_bytes()), ALIGNED).read_all()
    tickets = {"usual": f"{TABLE}:{USUAL_ROWS}", "ours": f"{TABLE}:{len(held.column(0).chunk(0))}"}
    with bare_server(folder, {TABLE: held}) as peer:
        del held
        with contender("bare", "benchmarks.peers_flight", {"url": peer.tcp, **tickets}) as one:
            yield one


@contextmanager
def _files(folder: Path) -> Iterator[Contender]:
    (path,) = (folder / "store" / "data" / TABLE / str(YEAR)).glob("*.parquet")
    with contender("files", "benchmarks.peers_files", {"path": str(path), "asked": ASKED}) as one:
        yield one


def _against_arctic(folder: Path, ours: Contender, arctic: Contender, effort: float) -> Iterator[Row]:
    version = f"ArcticDB {arctic.facts['arcticdb']}, LMDB, in-process"
    plane = ours.facts["plane"]
    whole = _MAPPED if plane == "local" else _TCP
    reads = (
        ("partition", "hot partition, 1.22 M rows x 8 columns", (60, 10), 40, whole),
        ("partition", "hot partition, one read at a time between those of others", (200, 1), None, whole),
        ("partition, summed", "hot partition, and every number of it summed", (50, 3), None, whole),
        ("symbol year", "1 symbol x 1 year", (150, CALLS), 3, _POINT),
        ("symbol year", "1 symbol x 1 year, one read at a time between those of others", (300, 1), None, _POINT),
        ("symbol decade", "1 symbol x 10 years", (150, CALLS), 1.5, _POINT),
        ("symbols year", "200 symbols x 1 year", (50, 5), 20, _MANY),
    )
    for work, what, (rounds, calls), target, limit in reads:
        lanes = {"ours": (ours, work), "Polars": (arctic, work), "as it comes": (arctic, f"{work}, pandas")}
        if "summed" not in work:
            check_same(list(lanes.values()), folder)
        samples = raced(lanes, scaled(rounds, effort), calls)
        row = partial(faster, samples=samples, limit=limit)
        done = f"{what} -> Polars, {plane}"
        polars, pandas = f"polars {arctic.facts['polars']}", f"pandas {arctic.facts['pandas']}"
        yield row(done, peer="Polars", target=target, peer_is=f"{version}, output_format=POLARS, {polars}")
        yield row(done, peer="as it comes", peer_is=f"{version}, its pandas as they come, nothing converted, {pandas}")
        if work == "partition" and calls > 1:
            yield _below(samples["ours"], done, limit)
    yield _never_the_same(ours, arctic, effort, f"{version}, output_format=POLARS, polars {arctic.facts['polars']}")


def _never_the_same(ours: Contender, arctic: Contender, effort: float, peer: str) -> Row:
    """Return the row for questions of which no two are alike: the server finds nothing prepared, and nothing sent before."""
    samples = raced({"ours": (ours, "symbol year, new"), "Polars": (arctic, "symbol year")}, scaled(150, effort), CALLS)
    what = f"1 symbol x 1 year, never the same question -> Polars, {ours.facts['plane']}"
    return faster(what, samples, "Polars", limit=_NEW, peer_is=peer)


def _below(samples: list[list[float]], what: str, limit: str) -> Row:
    ours = Spread.of([each for calls in samples for each in calls])
    return Row(f"{what}, p50", "ms", ours, target=f"< {MOST_MS:g} ms", met=ours.median < MOST_MS, limit=limit, ratio_is="")


def _against_files(folder: Path, ours: Contender, files: Contender, effort: float) -> Iterator[Row]:
    what = f"1 symbol x 1 year, hot -> Polars, {ours.facts['plane']}"
    lanes = {
        "ours": (ours, "symbol year"),
        "duckdb": (files, "duckdb symbol year"),
        "polars": (files, "polars symbol year"),
    }
    check_same(list(lanes.values()), folder)
    samples = raced(lanes, scaled(100, effort), 5)
    for name in ("duckdb", "polars"):
        peer = f"{name} {files.facts[name]} on the Parquet file, in-process"
        yield faster(what, samples, name, 1, limit=_POINT, peer_is=peer)


def _against_redis(
    folder: Path, readers: tuple[Contender, Contender], stored: dict[str, Any], python: Path, effort: float
) -> Iterator[Row]:
    ours, again = readers
    what = f"1 symbol x 1 year, hot -> Polars, {ours.facts['plane']}"
    if (version := redis_version()) is None:
        print(MISSING)
        return
    with redis_server(folder) as socket:
        given = {**stored, "socket": str(socket)}
        with contender("redis", "benchmarks.peers_redis", given, python) as redis:
            lanes = {"ours": (ours, "symbol year"), "redis": (redis, "symbol year")}
            check_same(list(lanes.values()), folder)
            samples = raced(lanes, scaled(150, effort), CALLS)
            client = f"redis-py {redis.facts['redis-py']}, polars {redis.facts['polars']}"
            peer = f"Redis {version} over a UNIX socket, GET of an Arrow IPC blob, {redis.facts['way']}, {client}"
            yield faster(what, samples, "redis", 1, limit=_POINT, peer_is=peer)
            lanes = {"ours": (again, "symbol again"), "redis": (redis, "symbol year")}
            samples = raced(lanes, scaled(150, effort), CALLS)
            yield faster(f"{what}, the same within a second", samples, "redis", 1, limit=_AGAIN, peer_is=peer)


def _against_flight(folder: Path, ours: Contender, flight: Contender, bare: Contender, effort: float) -> Iterator[Row]:
    naive, same, aligned = ((bare, f"partition{more}") for more in ("", ", our batches", ", our batches, aligned"))
    check_same([(ours, "partition"), (flight, "partition"), naive, same, aligned], folder, numbers=(0,))
    plainly = f"bare pyarrow {bare.facts['pyarrow']} Flight over TCP, pl.from_arrow"
    hot = f"hot partition, 1.22 M rows x 8 columns -> Polars, {ours.facts['plane']}"
    usual = f"{plainly}, {USUAL_ROWS:,} rows a batch"
    samples = raced({"ours": (ours, "partition"), "naive": naive}, scaled(30, effort), 10)
    limit = _MAPPED if ours.facts["plane"] == "local" else _TCP
    yield faster(hot, samples, "naive", 100, limit=limit, peer_is=usual)
    stream = "stream of that partition over TCP -> Polars, flight"
    lanes = {"ours": (flight, "partition"), "naive": naive, "same": same, "aligned": aligned}
    samples = raced(lanes, scaled(60, effort), 3)
    yield faster(stream, samples, "naive", 1.3, limit=_TCP, peer_is=usual)
    yield faster(stream, samples, "same", 1, limit=_TCP, peer_is=f"{plainly}, our batches")
    yield faster(stream, samples, "aligned", limit=_TCP, peer_is=f"{plainly}, our batches, ensure_alignment")


def _cold(folder: Path, effort: float) -> Iterator[Row]:
    given = {"asked": ASKED, "year": YEAR, "first_year": UNIVERSE.years[0]}
    with _files(folder) as files:
        with (
            fletching_server(folder, memory=MEMORY, first_uses=True) as server,
            contender("served", "benchmarks.ours", {**given, "url": server.tcp}) as ours,
        ):
            yield from _cold_rows(folder, ours, files, effort)
        with contender("embedded", "benchmarks.ours", {**given, "store": str(folder / "store")}) as ours:
            yield from _cold_rows(folder, ours, files, effort)


def _cold_rows(folder: Path, ours: Contender, files: Contender, effort: float) -> Iterator[Row]:
    versions = files.facts
    reads = (
        ("symbol year", "cold partition, one symbol", "duckdb", 1.3, _COLD_POINT),
        ("partition", "cold partition, whole", "polars", 1.2, _COLD_WHOLE),
    )
    for work, what, name, target, limit in reads:
        lanes = {"ours": (ours, f"cold {work}"), name: (files, f"{name} {work}")}
        check_same(list(lanes.values()), folder)
        samples = raced(lanes, scaled(100, effort), 3)
        peer = f"{name} {versions[name]} on the same file, in-process"
        yield slower(f"{what} -> Polars, {ours.name}", samples, name, target, limit=limit, peer_is=peer)

"""A small read: one symbol, one year of daily bars, in memory, answered in one round trip and already a Polars frame."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow.flight as fl

import fletching
from benchmarks.figures import Row, Spread, compared, interleaved, scaled, seconds
from benchmarks.servers import bare_server, fletching_server
from benchmarks.throughput import as_frame
from fletching_schemas import Action

DATASET: Final = "bars_1d"
SYMBOL: Final = "000001.SZ"
YEAR: Final = ("2024-01-01", "2024-12-31")
UNPREPARED: Final = "as above, and decoding and resolving the request: the server keeps what it resolved last"
MOST_RATIO: Final = 1.5
MOST_EMBEDDED_MS: Final = 0.3


def run(effort: float = 1.0) -> list[Row]:
    """Return milliseconds per read over Flight, against a bare server, and embedded."""
    rounds = scaled(1500, effort)
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        return [*_over_flight(folder, rounds), _embedded(folder, rounds)]


def _over_flight(folder: Path, rounds: int) -> list[Row]:
    with ExitStack() as opened:
        ours = opened.enter_context(fletching_server(folder, {"symbols": 500}))
        cache = opened.enter_context(fletching.connect(ours.tcp))
        _warm(cache)
        answer = cache.read(DATASET, SYMBOL, *YEAR, output="arrow").combine_chunks()
        peer = opened.enter_context(bare_server(folder, {DATASET: answer}))
        ticket = f"{DATASET}:{len(answer)}".encode()
        rows = []
        for plane in ("tcp", "unix"):
            reading = opened.enter_context(fletching.connect(getattr(ours, plane), plane="flight"))
            client = opened.enter_context(fl.FlightClient(getattr(peer, plane)))
            if not reading.read(DATASET, SYMBOL, *YEAR).equals(as_frame(client, ticket)):
                raise RuntimeError("the two servers do not answer the same rows")
            contenders = {
                "ours": partial(_milliseconds, partial(reading.read, DATASET, SYMBOL, *YEAR)),
                "peer": partial(_milliseconds, partial(as_frame, client, ticket)),
            }
            samples = interleaved(contenders, rounds)
            rows.append(_row(f"{len(answer)} rows over {plane}", *compared(samples, "ours", "peer")))
            contenders["ours"] = partial(_milliseconds, _never_the_same(reading))
            samples = interleaved(contenders, rounds)
            ours_, peer_, ratio = compared(samples, "ours", "peer")
            rows.append(Row(f"another request each time over {plane}", "ms", ours_, peer_, ratio, limit=UNPREPARED))
        return rows


def _never_the_same(cache: fletching.Cache) -> Callable[[], object]:
    """Return reads of about as many rows, no two alike: the server finds neither request nor plan prepared."""
    symbols = sorted(cache.read(DATASET, None, *YEAR, ["symbol"])["symbol"].unique())
    asked = ((symbol, f"2024-01-{day:02}") for day in range(1, 32) for symbol in symbols)
    return lambda: cache.read(DATASET, *next(asked), YEAR[1])


def _warm(cache: fletching.Cache) -> None:
    """Bring the year of 500 symbols into one partition in memory."""
    cache.read(DATASET, None, *YEAR)
    cache._transport.act(Action.COMPACT, {"dataset": DATASET})  # noqa: SLF001  # compaction is no verb of the client
    cache.read(DATASET, None, *YEAR)
    _, info = cache.read(DATASET, SYMBOL, *YEAR, info=True)
    if (info.partitions, info.tier) != (1, "hot"):
        raise RuntimeError(f"not from one hot partition: {info}")


def _milliseconds(call: Callable[[], object]) -> float:
    return 1e3 * seconds(call)


def _row(what: str, ours: Spread, peer: Spread, ratio: Spread) -> Row:
    limit = "Python after every wake-up: about 0.17 ms in the engine, 0.05 ms each in middleware and client; gRPC takes the rest"
    return Row(what, "ms", ours, peer, ratio, f"<= {MOST_RATIO}", ratio.median <= MOST_RATIO, limit)


def _embedded(folder: Path, rounds: int) -> Row:
    with fletching.open(folder / "embedded", ["sim"]) as cache:
        _warm(cache)
        samples = interleaved({"ours": partial(_milliseconds, partial(cache.read, DATASET, SYMBOL, *YEAR))}, rounds)
    ours = Spread.of(samples["ours"])
    limit = "Python: a third each for resolving, cutting 15 columns, and pyarrow -> Polars"
    return Row("embedded", "ms", ours, target=f"< {MOST_EMBEDDED_MS}", met=ours.median < MOST_EMBEDDED_MS, limit=limit)

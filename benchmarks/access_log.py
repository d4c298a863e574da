"""What the access log costs a read: small reads from memory with the log and without, in turns.

Embedded, the samples of the side that logs end with the work that is otherwise done in the background, so that all of it is
counted, although a second core would do it beside. Served, two servers in processes of their own log every second, or do not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import fletching
from benchmarks.figures import Row, compared, interleaved, scaled, seconds
from benchmarks.servers import fletching_server

DATASET: Final = "bars_1d"
YEAR: Final = ("2024-01-01", "2024-12-31")
SYMBOLS: Final = 500
MOST_RATIO: Final = 1.02
READS: Final = 8000  # per sample: about as many as one thread makes in a second, which are drained at once
LIMIT: Final = "about 1 us in the read, and 10 us for each event that is written in the background, of 1,000 a second at most"


def run(effort: float = 1.0) -> list[Row]:
    """Return microseconds per read with the log, without it, and their ratio, embedded and served."""
    rounds = scaled(24, effort)
    with TemporaryDirectory(prefix="fb-") as name:
        folder = Path(name)
        return [*_embedded(folder, rounds), *_served(folder, rounds)]


def _embedded(folder: Path, rounds: int) -> list[Row]:
    with ExitStack() as opened:
        caches: dict[str, Any] = {}
        for side, logs in (("logged", True), ("plain", False)):
            cache = fletching.open(folder / f"embedded-{side}", ["sim"], access_log=logs, access_seconds=3600, warm=False)
            caches[side] = opened.enter_context(cache)
            _warm(cache)
        logged = caches["logged"]._transport._engine.access  # noqa: SLF001  # its drain is what is measured
        drains = {"logged": logged.flush, "plain": lambda: None}
        symbols = sorted(logged_symbols(caches["plain"]))
        rows = []
        for what, names in (("the same read again, embedded", symbols[:1]), ("500 reads in turn, embedded", symbols)):
            contenders = {
                side: partial(_microseconds, _reads(cache, names), drains[side], READS) for side, cache in caches.items()
            }
            rows.append(_row(what, contenders, rounds))
        return rows


def _served(folder: Path, rounds: int) -> list[Row]:
    with ExitStack() as opened:
        rows, servers = [], {}
        for side, logs in (("logged", True), ("plain", False)):
            place = folder / side
            place.mkdir()
            servers[side] = opened.enter_context(fletching_server(place, {"symbols": SYMBOLS}, access_log=logs, warm=False))
        for plane in ("local", "flight"):
            contenders = {}
            for side, server in servers.items():
                cache = opened.enter_context(fletching.connect(server.tcp, plane=plane))  # type: ignore[arg-type]
                _warm(cache)
                # With info: else the client answers its own repeats on the local plane, and no server hears of them.
                read = partial(cache.read, DATASET, "000001.SZ", *YEAR, info=True)
                contenders[side] = partial(_microseconds, read, lambda: None, READS // 16)
            rows.append(_row(f"the same read again, {plane}", contenders, rounds))
        return rows


def logged_symbols(cache: fletching.Cache) -> list[str]:
    """Return the symbols that there are."""
    return list(cache.read(DATASET, None, *YEAR, ["symbol"])["symbol"].unique())


def _reads(cache: fletching.Cache, names: list[str]) -> Callable[[], object]:
    asked = cycle(names)
    return lambda: cache.read(DATASET, next(asked), *YEAR)


def _warm(cache: fletching.Cache) -> None:
    cache.read(DATASET, None, *YEAR)
    cache.compact(DATASET)
    for symbol in logged_symbols(cache):
        cache.read(DATASET, symbol, *YEAR)


def _microseconds(read: Callable[[], object], drain: Callable[[], object], count: int) -> float:
    def some() -> None:
        for _ in range(count):
            read()
        drain()

    return 1e6 * seconds(some) / count


def _row(what: str, contenders: dict[str, Callable[[], float]], rounds: int) -> Row:
    ours, peer, ratio = compared(interleaved(contenders, rounds), "logged", "plain")
    met = ratio.median <= MOST_RATIO
    return Row(
        what, "us", ours, peer, ratio, f"<= {MOST_RATIO}", met, LIMIT, peer_is="the same without a log", ratio_is="with / without"
    )

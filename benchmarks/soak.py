"""Sixty-four clients at once, mixed reads of what is hot, for a minute: how long they wait, and whether anything grows.

The clients are threads, each with a connection of its own, in a few processes. The server's memory and its descriptors are looked
at every half second; the slope is a least-squares fit over the second half of the time, with its standard error.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

import fletching
from benchmarks.contenders import ROOT
from benchmarks.figures import Row, Spread
from benchmarks.processes import descriptors, proportional_bytes, resident_bytes
from benchmarks.servers import Addresses, fletching_server
from fletching_schemas import Action

CLIENTS: Final = 64
PROCESSES: Final = 4
SECONDS: Final = 120.0  # allocators of 64 threads fill for the first minute; memory is judged over the second
SYMBOLS: Final = 500
DATASET: Final = "bars_1d"
YEAR: Final = ("2024-01-01", "2024-12-31")
MOST_GROWTH: Final = 5.0  # percent of its memory per minute; a kilobyte lost with each read would be four times as much
_EVERY_SECONDS: Final = 0.5
_LEAVE_SECONDS: Final = 20.0
_LIMIT: Final = f"two cores for the server and {CLIENTS} clients: what a read waits for is its turn"

Asked = Callable[[fletching.Cache, str, list[str]], Any]

# How often, of a hundred reads, and what.
READS: Final[dict[str, tuple[int, Asked]]] = {
    "one symbol": (70, lambda cache, one, _: cache.read(DATASET, one, *YEAR)),
    "one symbol, adjusted": (15, lambda cache, one, _: cache.read(DATASET, one, *YEAR, adjust="qfq")),
    "200 symbols": (12, lambda cache, _, symbols: cache.read(DATASET, symbols[::2][:200], *YEAR)),
    "whole partition": (3, lambda cache, _, symbols: cache.read(DATASET, symbols, *YEAR)),
}


def run(effort: float = 1.0) -> list[Row]:
    """Return milliseconds per kind of read, the errors, and what became of the server's memory and descriptors."""
    with TemporaryDirectory(prefix="fb-") as name, fletching_server(Path(name), {"symbols": SYMBOLS}) as server:
        with fletching.connect(server.tcp) as cache:
            symbols = _made_hot(cache)
            _, info = cache.read(DATASET, symbols, *YEAR, info=True)
        _settled(server)
        before = descriptors(server.pid)
        found, looks = _soaked(server, symbols, max(5.0, SECONDS * effort))
        after = _settled(server, before)
    return [*_latencies(found, info.plane), *_steadiness(looks, before, after, info.plane)]


def _made_hot(cache: fletching.Cache) -> list[str]:
    """Return the symbols; their year, their factors, and what each kind of read keeps are in memory from now on."""
    symbols = sorted(cache.read(DATASET, None, *YEAR, adjust="qfq")["symbol"].unique())
    for dataset in cache.datasets()["name"]:
        cache._transport.act(Action.COMPACT, {"dataset": dataset})  # noqa: SLF001  # compaction is no verb of the client
    for _ in range(3):
        for symbol in symbols:
            cache.read(DATASET, symbol, *YEAR, adjust="qfq")
    for _, ask in READS.values():
        ask(cache, symbols[0], symbols)
    return symbols


def _soaked(server: Addresses, symbols: list[str], seconds: float) -> tuple[dict[str, Any], list[tuple[float, int, int]]]:
    given = {"url": server.tcp, "symbols": symbols, "seconds": seconds, "threads": CLIENTS // PROCESSES}
    with ExitStack() as opened:
        children = [opened.enter_context(_child({**given, "seed": seed})) for seed in range(PROCESSES)]
        looks, started = [], time.monotonic()
        while any(child.poll() is None for child in children) and time.monotonic() < started + seconds + _LEAVE_SECONDS:
            looks.append((time.monotonic() - started, resident_bytes(server.pid), proportional_bytes([server.pid])))
            time.sleep(_EVERY_SECONDS)
        told = [json.loads(child.communicate()[0] or '{"errors": ["ended early"], "reads": {}}') for child in children]
    reads: dict[str, list[float]] = defaultdict(list)
    for one in told:
        for kind, found in one["reads"].items():
            reads[kind] += found
    # What they took to import and to leave is no part of the minute.
    inside = [look for look in looks if look[0] <= seconds]
    return {"reads": reads, "errors": [error for one in told for error in one["errors"]]}, inside


def _child(given: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.soak", json.dumps(given)], stdout=subprocess.PIPE, cwd=ROOT)


def _settled(server: Addresses, expected: int | None = None) -> int:
    """Return how many descriptors the server has once those of clients that left are closed."""
    until, last = time.monotonic() + _LEAVE_SECONDS, -1
    while (now := descriptors(server.pid)) != (last if expected is None else expected) and time.monotonic() < until:
        last = now
        time.sleep(_EVERY_SECONDS)
    return now


def _latencies(found: Mapping[str, Any], plane: str) -> list[Row]:
    rows = []
    for kind in READS:
        reads = found["reads"].get(kind) or [float("nan")]
        p99 = float(np.percentile(reads, 99))
        what = f"{CLIENTS} clients, {kind}, {plane}"
        rows.append(Row(what, "ms", Spread.of(reads), limit=_LIMIT, parts={"p99_ms": p99}))
        rows.append(Row(f"{what}: p99", "ms", Spread.of([p99]), limit=_LIMIT))
    errors = found["errors"]
    told = {error: float(errors.count(error)) for error in dict.fromkeys(errors)}
    rows.append(Row(f"{CLIENTS} clients, errors", "", Spread.of([len(errors)]), target="0", met=not errors, parts=told))
    return rows


def _steadiness(looks: list[tuple[float, int, int]], before: int, after: int, plane: str) -> list[Row]:
    rows = []
    for place, name in ((1, "resident"), (2, "proportional")):
        slope, error = _slope([(look[0], look[place] / 1e6) for look in looks if look[0] >= looks[-1][0] / 2])
        size = looks[-1][place] / 1e6
        spread = Spread(slope, slope - error, slope + error, slope + 2 * error, len(looks))
        flat = slope - 2 * error <= size * MOST_GROWTH / 100
        parts = {"start_mb": looks[0][place] / 1e6, "end_mb": size}
        what = f"{CLIENTS} clients, growth of the server's {name} memory, {plane}"
        rows.append(Row(what, "MB/min", spread, target=f"<= {MOST_GROWTH:g} %", met=flat, parts=parts))
    opened = Spread.of([after - before])
    rows.append(Row("descriptors that the server did not close", "", opened, target="0", met=after <= before))
    return rows


def _slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the growth per minute of a straight line through *points* of (seconds, value), and its standard error."""
    at, values = np.array(points).T
    at = (at - at.mean()) / 60
    slope = float((at * values).sum() / (at * at).sum())
    rest = values - values.mean() - slope * at
    return slope, float(np.sqrt((rest * rest).sum() / max(len(at) - 2, 1) / (at * at).sum()))


# What runs in the children


def _main(given: Mapping[str, Any]) -> None:
    found: dict[str, Any] = {"errors": [], "reads": {kind: [] for kind in READS}}
    threads = [
        threading.Thread(target=_ask, args=(given, found, random.Random(100 * given["seed"] + number)))
        for number in range(given["threads"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found))


def _ask(given: Mapping[str, Any], found: dict[str, Any], chance: random.Random) -> None:
    weights = [often for often, _ in READS.values()]
    until = time.monotonic() + given["seconds"]
    try:
        with fletching.connect(given["url"]) as cache:
            while time.monotonic() < until:
                (kind,) = chance.choices(list(READS), weights)
                one = chance.choice(given["symbols"])
                started = time.perf_counter()
                READS[kind][1](cache, one, given["symbols"])
                found["reads"][kind].append(1e3 * (time.perf_counter() - started))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what this looks for
        found["errors"].append(f"{type(error).__name__}: {error}"[:200])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

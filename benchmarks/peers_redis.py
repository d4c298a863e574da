"""Redis over a UNIX socket: a value is one symbol's year as an Arrow IPC blob, which its reader makes a Polars frame."""

from __future__ import annotations

import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from benchmarks.stopwatch import Work, serve

_START_SECONDS = 10.0
MISSING = "redis-server is not installed (apt-get install redis-server): its row is left out"


def redis_version() -> str | None:
    """Return the version of the Redis server that is installed, None where there is none."""
    if (found := shutil.which("redis-server")) is None:
        return None
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return next((word[2:] for word in told.split() if word.startswith("v=")), told.strip())


@contextmanager
def redis_server(folder: Path) -> Iterator[Path]:
    """Yield the socket of a Redis server that keeps nothing on disk and ends with the block, or with this process."""
    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    # The shell ends it when its own stdin is closed, which the system does when this process dies.
    script = 'redis-server "$@" & read -r _; kill $!; wait'
    child = subprocess.Popen(["sh", "-c", script, "sh", *options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        _wait_for(socket)
        yield socket
    finally:
        child.communicate()


def _wait_for(socket: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not socket.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"redis-server did not listen on {socket} within {_START_SECONDS:g} s")
        time.sleep(0.05)


def _filled(given: dict[str, Any]) -> Any:
    import redis  # noqa: PLC0415  # the parent, which imports this module too, does not have it

    client = redis.Redis(unix_socket_path=given["socket"])
    client.ping()
    rows = pl.read_ipc(given["years"][-1]).filter(pl.col("symbol").is_in(given["asked"]))
    for (symbol,), bars in rows.partition_by("symbol", as_dict=True, maintain_order=True).items():
        client.set(str(symbol), _blob(bars))
    return client


def _blob(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_ipc_stream(sink, compat_level=pl.CompatLevel.newest())
    return sink.getvalue()


WAYS: dict[str, Callable[[bytes], Any]] = {
    "pa.ipc + pl.from_arrow": lambda blob: pl.from_arrow(pa.ipc.open_stream(blob).read_all(), rechunk=False),
    "pl.read_ipc_stream": lambda blob: pl.read_ipc_stream(io.BytesIO(blob)),
}


def _fastest(blob: bytes) -> str:
    """Return which way from a blob to a frame takes least here."""

    def median(way: Callable[[bytes], Any]) -> float:
        found = []
        for _ in range(50):
            started = time.perf_counter()
            way(blob)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    return min(WAYS, key=lambda name: median(WAYS[name]))


def _main(tell: str, given: dict[str, Any]) -> None:
    import redis  # noqa: PLC0415  # as above

    client, asked = _filled(given), given["asked"]
    way = _fastest(client.get(asked[0]))
    read = WAYS[way]
    works = {"symbol year": Work(lambda number: read(client.get(asked[number % len(asked)])))}
    serve(int(tell), {"redis-py": redis.__version__, "polars": pl.__version__, "way": way}, works)


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))

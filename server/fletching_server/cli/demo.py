"""``fletching demo``: the main job in half a minute, with a real server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from fletching_schemas.errors import InternalError
from fletching_server.cli.access import Cache, connect

_YEAR: Final = {"start": "2024-01-01", "end": "2024-12-31"}
_DAY: Final = {"start": "2024-03-20", "end": "2024-03-20"}


def demo(
    symbols: Annotated[int, typer.Option(min=1, max=5000, help="Symbols on the simulated exchange.")] = 500,
    keep: Annotated[Path | None, typer.Option(help="Keep the store in this folder instead of removing it.")] = None,
) -> None:
    """Show the main job: no network, no configuration, nothing left behind.

    Starts a server on a simulated exchange, reads a universe from this second process (fetched once from the source,
    then from memory), kills the server with SIGKILL, starts it again, and reads the same: from Parquet, with no
    upstream call. Prints rows, megabytes, tier, upstream calls and milliseconds of each read.
    """
    console = Console()
    table = Table(title=f"{symbols} symbols on a simulated exchange, read from a second process", caption="calls: made upstream")
    for name in ("read", "rows", "MB", "from", "calls", "ms"):
        table.add_column(name, justify="left" if name in {"read", "from"} else "right", no_wrap=True)
    with tempfile.TemporaryDirectory(prefix="fletching-demo-") as folder, console.status("starting a server") as status:
        store = keep or Path(folder) / "store"
        config = Path(folder) / "sim.toml"
        config.write_text(f"symbols = {symbols}\n")
        for label, reads in _acts():
            table.add_row(f"[bold]{label}[/]")
            with _server(store, config) as cache:
                for what, request in reads:
                    status.update(f"{label}: {what}")
                    table.add_row(what, *_measured(cache, request))
            table.add_section()
    console.print(table)
    console.print(
        "The server was killed with SIGKILL between the two parts: what a read had returned was kept, so the second part "
        "made no upstream call. Next: `fletching serve --source sim`, and fletching.connect() in Python."
    )


def _acts() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    universe = {"dataset": "bars_1d", **_YEAR}
    one = {"dataset": "bars_1d", "symbols": "000001.SZ", "start": "2016-01-01", "end": "2024-12-31"}
    minutes = {"dataset": "bars_1m", "symbols": ["000001.SZ", "600000.SH"], **_DAY}
    yield (
        "first server",
        [
            ("all symbols, daily, 2024", universe),
            ("the same again", universe),
            ("one symbol, daily, 9 years", one),
            ("the same again", one),
            ("two symbols, 1-min, 1 day", minutes),
        ],
    )
    yield (
        "after kill -9, restarted",
        [
            ("all symbols, daily, 2024", universe),
            ("the same again", universe),
            ("one symbol, daily, 9 years", one),
            ("two symbols, 1-min, 1 day", minutes),
        ],
    )


def _measured(cache: Cache, request: dict[str, Any]) -> tuple[str, ...]:
    started = time.perf_counter()
    frame, info = cache.read(**request, info=True)
    elapsed = (time.perf_counter() - started) * 1e3
    megabytes = frame.estimated_size() / 1e6
    return f"{len(frame):,}", f"{megabytes:.2f}", info.tier, str(info.upstream_calls), f"{elapsed:,.1f}"


@contextmanager
def _server(store: Path, config: Path) -> Iterator[Cache]:
    """Run a server on *store* in another process, yield a connection to it, and kill it in the end."""
    command = [sys.executable, "-m", "fletching_server", "serve", "--store", str(store), "--listen", "grpc://127.0.0.1:0"]
    environment = os.environ | {"FLETCHING_LOCAL_FOLDER": str(store.parent)}  # killed, it would leave its socket there
    with subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
        [*command, "--source", f"sim:{config}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                process.kill()
                told = process.stderr.read() if process.stderr else ""
                raise InternalError(f"the demo's server did not start: {told.strip()[-500:]}")
            with connect(line.removeprefix("listening on ").strip()) as cache:
                yield cache
        finally:
            process.kill()

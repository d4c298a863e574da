"""Serve real market data files, kill the server, start it again, and read the same: nothing is read from the files twice.

    python examples/real_data.py FOLDER

FOLDER holds LEAN's data as `lean/` and A-share CSV files as `ashare/`, read in place. A server in a process of its own serves
both; this process reads daily, minute and tick data from it, kills it with SIGKILL, starts it again on the same store, and reads
again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fletching

READS = [
    ("daily bars, SPY and AAPL, 23 years", {"dataset": "us_bars_1d", "symbols": ["SPY", "AAPL"]}),
    ("minute bars, SPY, one day", {"dataset": "us_bars_1m", "symbols": "SPY", "start": "2013-10-07", "end": "2013-10-07"}),
    ("trades, SPY, one day", {"dataset": "us_trades", "symbols": "SPY", "start": "2013-10-07", "end": "2013-10-07"}),
    ("quotes, BAC, one day", {"dataset": "us_quotes_l1", "symbols": "BAC", "start": "2013-10-07", "end": "2013-10-07"}),
    ("daily bars, 000001.SZ and 000333.SZ", {"dataset": "bars_1d", "symbols": ["000001", "sz000333"]}),
]


def main(data: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        # Both publish daily bars, so one of them gets a prefix.
        (work / "lean.toml").write_text(f'mapping = "lean"\nroot = "{data / "lean"}"\nprefix = "us_"\n')
        (work / "ashare.toml").write_text(f'mapping = "ashare"\nroot = "{data / "ashare"}"\n')
        for title in ("first server", "after SIGKILL and a restart"):
            print(f"\n{title}\n{'read':<38}{'rows':>9}  {'from':<12}{'calls':>6}{'ms':>9}")
            with server(work) as cache:
                for what, request in READS:
                    started = time.perf_counter()
                    frame, info = cache.read(**request, info=True)  # type: ignore[arg-type]
                    elapsed = (time.perf_counter() - started) * 1e3
                    print(f"{what:<38}{len(frame):>9,}  {info.tier:<12}{info.upstream_calls:>6}{elapsed:>9.1f}")


@contextmanager
def server(work: Path) -> Iterator[fletching.Cache]:
    """Run a server on the store in *work*, and kill it with SIGKILL in the end."""
    command = [
        sys.executable,
        "-m",
        "fletching_server",
        "serve",
        "--listen",
        "grpc://127.0.0.1:0",
        "--store",
        str(work / "store"),
    ]
    sources = ["--source", f"files:{work / 'lean.toml'}", "--source", f"files:{work / 'ashare.toml'}"]
    with subprocess.Popen([*command, *sources], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            url = line.removeprefix("listening on ").strip()
            with fletching.connect(url) as cache:
                yield cache
        finally:
            process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())

"""``python -m benchmarks [NAME ...]``: run benchmarks, write ``results/<name>.json``, print one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import (
    access_log,
    adjusted,
    challenger,
    compaction,
    compare,
    decisions,
    hit_ratio,
    imports,
    latency,
    opening,
    page,
    plans,
    read_through,
    soak,
    throughput,
    upstream,
    warming,
    workers,
    writes,
)
from benchmarks.figures import Row, environment, save

BENCHMARKS: Final[dict[str, Callable[[float], list[Row]]]] = {
    "throughput": throughput.run,
    "latency": latency.run,
    "read_through": read_through.run,
    "upstream": upstream.run,
    "decisions": decisions.run,
    "plans": plans.run,
    "adjusted": adjusted.run,
    "imports": imports.run,
    "opening": opening.run,
    "writes": writes.run,
    "access_log": access_log.run,
}
# They take minutes and most of the machine; the first installs the peers, and does what the others do too.
ON_DEMAND: Final[dict[str, Callable[[float], list[Row]]]] = {
    "compare": compare.run,
    "workers": workers.run,
    "soak": soak.run,
    "compaction": compaction.run,
    "hit_ratio": hit_ratio.run,
    "warming": warming.run,
    "challenger": challenger.run,
}
PEERS: Final[dict[str, Callable[..., list[Row]]]] = {  # need an environment
    "compare": compare.run,
    "hit_ratio": hit_ratio.run,
    "challenger": challenger.run,
}
_NAMES: Final = f"which to run: {', '.join(BENCHMARKS)} (default: all of these), {', '.join(ON_DEMAND)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, *ON_DEMAND, []], help=_NAMES, metavar="NAME")
    parser.add_argument("--effort", type=float, default=1.0, help="scales the number of rounds; 0.1 is a quick look")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environment (default: in the user's cache)")
    asked = parser.parse_args(arguments)
    with_peers = {name: partial(PEERS[name], folder=asked.peers) for name in PEERS}
    benchmarks = {**BENCHMARKS, **ON_DEMAND, **with_peers}
    console = Console(width=None if Console().is_terminal else 240)
    machine = environment()
    console.print("  ".join(f"{name} {value}" for name, value in machine.items()))
    found = {}
    for name in asked.names or BENCHMARKS:
        with console.status(f"measuring {name}"):
            found[name] = benchmarks[name](asked.effort)
        save(name, machine, found[name])
    if "compare" in found:
        page.write(machine, found["compare"])
    console.print(_table(found))
    for number, peer in enumerate(_peers(found), 1):
        console.print(f"[{number}] {peer}", markup=False)


def _peers(found: dict[str, list[Row]]) -> list[str]:
    """Return the named peers, each once; a row of the table refers to its own by number."""
    return list(dict.fromkeys(row.peer_is for rows in found.values() for row in rows if row.peer_is))


def _table(found: dict[str, list[Row]]) -> Table:
    numbers = {peer: f"[{number}] " for number, peer in enumerate(_peers(found), 1)}
    table = Table(title="median (p25-p75)", title_justify="left")
    for heading in ("benchmark", "what", "unit", "fletching", "peer", "ratio by round", "target", ""):
        table.add_column(heading, no_wrap=True)
    for name, rows in found.items():
        for row in rows:
            mark = "" if row.met is None else "met" if row.met else "MISSED"
            peer = f"{numbers.get(row.peer_is, '')}{row.peer or ''}"
            ratio = f"{row.ratio}  {row.ratio_is}" if row.ratio else ""
            cells = (row.what, row.unit, str(row.ours), peer, ratio, row.target, mark)
            table.add_row(name, *map(escape, cells))
            name = ""  # noqa: PLW2901  # only on the first line of a benchmark
        table.add_section()
    return table


if __name__ == "__main__":
    main()

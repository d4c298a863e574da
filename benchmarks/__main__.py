"""``python -m benchmarks [NAME ...]``: run benchmarks, write ``results/<name>.json``, print one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import adjusted, latency, plans, read_through, throughput, upstream
from benchmarks.figures import Row, environment, save
from rich.console import Console
from rich.table import Table

BENCHMARKS: Final[dict[str, Callable[[float], list[Row]]]] = {
    "throughput": throughput.run,
    "latency": latency.run,
    "read_through": read_through.run,
    "upstream": upstream.run,
    "plans": plans.run,
    "adjusted": adjusted.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which to run (default: all)", metavar="NAME")
    parser.add_argument("--effort", type=float, default=1.0, help="scales the number of rounds; 0.1 is a quick look")
    asked = parser.parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    machine = environment()
    console.print("  ".join(f"{name} {value}" for name, value in machine.items()))
    found = {}
    for name in asked.names or BENCHMARKS:
        with console.status(f"measuring {name}"):
            found[name] = BENCHMARKS[name](asked.effort)
        save(name, machine, found[name])
    console.print(_table(found))


def _table(found: dict[str, list[Row]]) -> Table:
    table = Table(title="median (p25-p75)", title_justify="left")
    for heading in ("benchmark", "what", "unit", "fletching", "peer", "ratio by round", "target", ""):
        table.add_column(heading, no_wrap=True)
    for name, rows in found.items():
        for row in rows:
            mark = "" if row.met is None else "met" if row.met else "MISSED"
            cells = (row.what, row.unit, row.ours, row.peer or "", row.ratio or "", row.target, mark)
            table.add_row(name, *map(str, cells))
            name = ""  # noqa: PLW2901  # only on the first line of a benchmark
        table.add_section()
    return table


if __name__ == "__main__":
    main()

"""A process killed by SIGKILL at any moment loses nothing that it had acknowledged.

``FLETCHING_LONG=1`` kills many more times than the default.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
from tests.conftest import SYMBOLS, Opener, TableSource, bars, expected, read, read_info, weekdays

from fletching_schemas import canonical
from fletching_server.testing import ManualClock

ROUNDS = 150 if os.environ.get("FLETCHING_LONG") else 8
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
ROOT = Path(__file__).parents[2]

Table = dict[tuple[str, date], int]


@dataclass
class Told:
    """What processes said before they were killed: finished reads, acknowledged writes, and the one write under way."""

    reads: set[tuple[str, date, date]] = field(default_factory=set)
    table: Table = field(default_factory=dict)
    under_way: list[str] = field(default_factory=list)

    def hear(self, line: str) -> None:
        verb, *words = line.split()
        if verb == "read":
            self.reads.add((words[0], date.fromisoformat(words[1]), date.fromisoformat(words[2])))
        elif verb == "writing":
            self.under_way = words
        elif verb == "wrote":
            self.table, self.under_way = self.after(words), []

    def after(self, words: list[str]) -> Table:
        """Return the table after the write that *words* tell."""
        mode, name, day, number = words
        return ({} if mode == "replace" else self.table) | {(name, date.fromisoformat(day)): int(number)}

    def settle(self, held: Table) -> None:
        """Check what the store holds: the acknowledged writes, and of the one under way all or nothing."""
        possible = [self.table, *([self.after(self.under_way)] if self.under_way else [])]
        assert held in possible
        self.table, self.under_way = held, []


def run_and_kill(store: Path, seed: int, chance: random.Random, told: Told) -> None:
    """Start a process, let it work for a random while, and kill it."""
    packages = [ROOT, *(ROOT / folder for folder in ("schemas", "client", "server"))]  # of this tree, whatever is installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages))}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(store), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        lines = chance.randrange(1, 40)
        for _ in range(lines):
            line = worker.stdout.readline()
            assert line, worker.stderr.read()
            told.hear(line)
        with suppress(subprocess.TimeoutExpired):  # somewhere inside what comes next
            worker.wait(chance.random() * 0.03)
        worker.kill()
        for line in worker.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                told.hear(line)


@pytest.mark.slow
def test_what_was_acknowledged_is_there_after_any_kill(open_store: Opener, clock: ManualClock) -> None:
    del clock
    chance, told = random.Random(20261120), Told()
    for seed in range(ROUNDS):
        run_and_kill(open_store.root / "store", seed, chance, told)
        source = TableSource(canonical("bars_1d", calendar="XSHG", period="day"), bars(SYMBOLS, DAYS))
        engine = open_store(source)
        assert engine.verify() == []
        assert engine.store.orphans() == []
        for symbol, first, last in told.reads:
            table, info = read_info(engine, symbols=symbol, start=first, end=last, max_age=0)
            assert info.upstream_calls == 0
            assert table.equals(expected(source.dataset, source.rows, [symbol], first, last))
        rows = read(engine, "mine").to_pylist() if "mine" in engine.names() else []
        told.settle({(row["id"], row["day"]): row["x"] for row in rows})
        assert source.requests == []
        engine.close()
    assert told.reads
    assert told.table

"""A process that reads and writes until it is killed, and says on stdout what it was told is done."""

from __future__ import annotations

import random
import sys
from datetime import date
from typing import Any

from tests.conftest import NOW, SYMBOLS, TableSource, bars, read, weekdays, write

from fletching_schemas import canonical
from fletching_server import open_engine
from fletching_server.testing import ManualClock

DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))


def say(*words: Any) -> None:
    """Print one line that has left the process when this returns."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(store: str, seed: int) -> None:
    """Read and write for ever; each line tells what begins, or what was acknowledged."""
    chance = random.Random(seed)
    source = TableSource(canonical("bars_1d", calendar="XSHG", period="day"), bars(SYMBOLS, DAYS))
    engine = open_engine(
        store,
        [source],
        clock=ManualClock(NOW),
        compact_segments=3,
        compact_idle_seconds=0.01,
        memory="4MiB",
        query_memory="64MiB",
        threads=1,
    )
    say("ready")
    number = seed * 1000
    while True:
        number += 1
        if chance.random() < 0.5:
            symbol, (first, last) = chance.choice(SYMBOLS), sorted(chance.sample(DAYS, 2))
            read(engine, symbols=symbol, start=first, end=last)
            say("read", symbol, first, last)
        else:
            name, day, mode = (
                chance.choice("abcdef"),
                chance.choice(DAYS),
                chance.choice(["upsert", "upsert", "upsert", "replace"]),
            )
            say("writing", mode, name, day, number)
            write(engine, "mine", [{"id": name, "day": day, "x": number}], mode=mode, keys=["id", "day"])
            say("wrote", mode, name, day, number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

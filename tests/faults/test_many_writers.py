"""32 writers and readers at once: what is acknowledged is seen, what is seen is one moment, and the past stays as it was.

Each write tells its generation, and each read that which it shows; so once all is done it is known what each read had to
show, row by row. Half of those of each kind are threads over the engine, the others clients over Flight. Folds go on meanwhile.

The run is so many writes, not so many seconds: half a minute on two cores. ``FLETCHING_LONG=1`` makes twenty times as many.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import polars as pl
import pytest
from tests.conftest import Opener

import fletching
from fletching import Cache
from fletching._embed import EmbeddedTransport
from fletching_schemas import Action
from fletching_server import Engine
from fletching_server.service import Service
from fletching_server.testing import ManualClock

WRITES = 3000 if os.environ.get("FLETCHING_LONG") else 150  # of each writer
OWN, SHARING, READERS = 12, 4, 16  # writers of symbols of their own, writers of the same rows, readers
DAYS = [date(2025, 12, 30), date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 2)]  # of two partitions
COMMON = "common"
DEADLINE = 1800.0
MOST_AGAIN = 6  # reads of the past by each reader
SHOWN_DAYS = 5.0  # pass in all, so that there are several bases


@dataclass
class Log:
    """What was acknowledged, and what was seen."""

    writes: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))  # generation, number
    reads: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)


def rows(symbol: str, number: int) -> pl.DataFrame:
    return pl.DataFrame({"id": [symbol] * len(DAYS), "day": DAYS, "x": [number] * len(DAYS)})


def write_own(cache: Cache, log: Log, symbol: str, clock: ManualClock) -> None:
    for number in range(1, WRITES + 1):
        told = cache.write("mine", rows(symbol, number), keys=["id", "day"])
        log.writes[symbol].append((told.generation, number))
        log.acknowledged[symbol] = number
        clock.advance(days=SHOWN_DAYS / WRITES / OWN)


def write_common(cache: Cache, log: Log, writer: int) -> None:
    """Write rows that others write as well; each number is written once."""
    for count in range(WRITES):
        number = count * SHARING + writer
        told = cache.write("mine", rows(COMMON, number), keys=["id", "day"])
        log.writes[COMMON].append((told.generation, number))


def shown(frame: pl.DataFrame) -> dict[str, int]:
    """Return the number of each symbol, which all its rows have: a write is seen as a whole."""
    found = frame.group_by("id").agg(pl.col("x").n_unique().alias("numbers"), pl.len(), pl.col("x").first())
    assert set(found["numbers"]) <= {1}, f"a part of a write: {frame}"
    assert set(found["len"]) <= {len(DAYS)}
    return dict(zip(found["id"], found["x"], strict=True))


def read_on(cache: Cache, log: Log, chance: random.Random) -> None:
    """Read until all is written; generations never go back, and what was acknowledged before a read is in it."""
    before, kept = 0, dict[int, pl.DataFrame]()
    while not log.over.is_set():
        due = dict(log.acknowledged)
        frame, info = cache.read("mine", info=True)
        numbers = shown(frame)
        assert info.generation >= before, f"from {before} back to {info.generation}"
        late = {symbol: number for symbol, number in due.items() if numbers.get(symbol, 0) < number}
        assert not late, f"acknowledged, and not there: {late}, {numbers}"
        before = info.generation
        log.reads.append((info.generation, numbers))
        if chance.random() < 0.1 and len(kept) < MOST_AGAIN:
            kept[info.generation] = frame
            generation, was = chance.choice(list(kept.items()))
            assert cache.read("mine", as_of=generation).equals(was), f"generation {generation} is not what it was"
    for generation, was in kept.items():
        assert cache.read("mine", as_of=generation).equals(was), f"generation {generation} is not what it was"


def all_at_once(calls: list[Callable[[], None]], over: threading.Event, writers: int) -> None:
    """Run each of *calls* in a thread; the first *writers* of them end by themselves, then *over* is set for the others."""
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)
            over.set()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    until = time.monotonic() + DEADLINE
    for thread in threads[:writers]:
        thread.join(until - time.monotonic())
        assert not thread.is_alive(), "a writer hangs"
    over.set()
    for thread in threads[writers:]:
        thread.join(60)
        assert not thread.is_alive(), "a reader hangs"
    if errors:
        raise errors[0]


def check(log: Log) -> None:
    """Compare every read with what had been written by its generation, exactly."""
    for generation, numbers in log.reads:
        for symbol, written in log.writes.items():
            last = max((told for told, _ in written if told <= generation), default=0)
            right = [number for told, number in written if told == last]  # several, where writes shared a commit
            found = numbers.get(symbol)
            assert found in right or (found is None and not right), f"{symbol} at {generation}: {found}, not {right}"


@pytest.mark.slow
def test_32_at_once_see_whole_writes_in_order_and_lose_none(open_store: Opener, clock: ManualClock) -> None:
    engine: Engine = open_store(compact_segments=12, compact_idle_seconds=0.1, threads=2)
    log, chance = Log(), random.Random(8)
    with ExitStack() as closing:
        service = closing.enter_context(Service(engine, "grpc://127.0.0.1:0", drain_seconds=5))

        def cache(number: int) -> Cache:
            plane = EmbeddedTransport(engine) if number % 2 else None
            return closing.enter_context(Cache(plane) if plane else fletching.connect(service.url, timeout=60, plane="flight"))

        cache(1).write("mine", rows("first", 0), keys=["id", "day"])
        own = [partial(write_own, cache(n), log, f"s{n:02}", clock) for n in range(OWN)]
        common = [partial(write_common, cache(n), log, n) for n in range(SHARING)]
        readers = [partial(read_on, cache(n), log, random.Random(chance.random())) for n in range(READERS)]
        all_at_once([*own, *common, *readers], log.over, OWN + SHARING)
        assert len(log.reads) > WRITES
        check(log)
        final = shown(cache(1).read("mine"))
        assert {name: number for name, number in final.items() if name[0] == "s"} == dict.fromkeys(log.acknowledged, WRITES)
        facts: Any = engine.act(Action.STATS, {})
        assert facts["folded_segments"] > 0
    assert len({generation for generation, _ in log.reads}) > WRITES

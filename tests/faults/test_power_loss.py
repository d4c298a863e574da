"""Whatever a power failure leaves, the store opens, acknowledged writes are there, and nothing wrong is served.

A real workload is recorded, and from every step of it states are made that the disk may hold then. ``FLETCHING_LONG=1`` makes
a hundred thousand, the default two thousand; ``FLETCHING_SEED`` chooses others.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOW, SYMBOLS, TableSource, bar, bars, read, write
from tests.faults.power import State, lay_out, states
from tests.faults.recording import DAYS, TABLES, Recording, Told, Workload, daily_bars, opened

from fletching_server.almanac import Calendars
from fletching_server.calendars import day_number, from_day_number
from fletching_server.cold import ColdTier
from fletching_server.gathering import Gathering
from fletching_server.hot import HotTier
from fletching_server.policy import LruPolicy
from fletching_server.repair import Repairs
from fletching_server.spans import Days
from fletching_server.store import Store
from fletching_server.testing import ManualClock
from fletching_server.verify import problems_of
from fletching_server.volume import Operation

LONG = bool(os.environ.get("FLETCHING_LONG"))
SEED = int(os.environ.get("FLETCHING_SEED", "20261120"))
WORKLOADS, VERBS, STATES = (100, 60, 1000) if LONG else (4, 60, 500)
WHOLE_ENGINE = 20  # one state in so many is opened by a whole engine, which also goes on working
EVER = Days(day_number(DAYS[0]), day_number(DAYS[-1]))


class Opener:
    """Opens states by the parts of an engine that recover, verify and read; it keeps what takes long to make."""

    def __init__(self) -> None:
        self.chance = random.Random(1)
        self.clock = ManualClock(NOW)
        self.calendars = Calendars(self.clock, {})
        self.cold = ColdTier(None, 64 << 20, 1)  # type: ignore[arg-type]  # it is given each store in turn

    def check(self, root: Path, told: Told) -> None:
        with ExitStack() as held:
            store = Store(root, self.clock)
            held.callback(store.close)
            self.cold._store = store
            hot = HotTier(1 << 20, LruPolicy())
            store.sweep()
            Repairs(store, hot, self.calendars).at_start()
            assert problems_of(store, self.cold, self.calendars) == []
            gathering = Gathering(hot, self.cold)
            self._check_tables(store, gathering, told)
            self._check_cells(store, gathering, told)
            self._check_past(store, gathering, told)

    def _check_tables(self, store: Store, gathering: Gathering, told: Told) -> None:
        held = dict.fromkeys(TABLES, ())
        for name in TABLES:
            if store.catalogue.state(name) is not None:
                with store.pinned(name) as state:
                    held[name] = gathering.rows(state, state.symbols, EVER).to_pylist()
        check_tables(held, told)

    def _check_past(self, store: Store, gathering: Gathering, told: Told) -> None:
        for name, generation in self.chance.sample(sorted(told.past), min(2, len(told.past))):
            with store.pinned_past(name, generation) as state:
                rows = gathering.rows(state, state.symbols, EVER).to_pylist()
            assert {(row["id"], row["day"]): row["x"] for row in rows} == told.past[name, generation], (
                f"{name} as of {generation}"
            )

    def _check_cells(self, store: Store, gathering: Gathering, told: Told) -> None:
        if store.catalogue.state("bars_1d") is None:
            return
        with store.pinned("bars_1d") as state:
            rows = {(row["symbol"], row["trading_date"]): row for row in gathering.rows(state, state.symbols, EVER).to_pylist()}
            for symbol, spans in state.coverage.items():
                for span in spans:
                    for day in map(from_day_number, range(span.first, span.last + 1)):
                        if day in DAYS:
                            check_cell(rows.get((symbol, day)), symbol, day, told)


def check_tables(held: dict[str, Any], told: Told) -> None:
    """Check that each acknowledged write is there, and of one under way all or nothing."""
    found = {name: {(row["id"], row["day"]): row["x"] for row in rows} for name, rows in held.items()}
    assert all(len(found[name]) == len(rows) for name, rows in held.items()), "a key is there twice"
    assert found in [told.tables, *([told.next_tables] if told.next_tables else [])]


def check_cell(row: dict[str, Any] | None, symbol: str, day: Any, told: Told) -> None:
    """Check that a cell that counts as known holds what the source told when it was asked."""
    versions = {told.cells.get((symbol, day)), told.fetching} - {None}
    possible = [bar(symbol, day, version) for version in versions if version is not None]
    assert row is not None, f"there is no row of {symbol} on {day}"
    assert {name: row[name] for name in possible[0]} in possible


def check_by_engine(root: Path, told: Told) -> None:
    """Check one state through the verbs that people use, and that work goes on there."""
    versions = [*told.cells.values(), told.fetching or 0]
    source = TableSource(daily_bars(), bars(SYMBOLS, DAYS, max(versions)))
    with opened(root, source) as engine:
        assert engine.verify() == []
        check_tables({name: read(engine, name).to_pylist() if name in engine.names() else [] for name in TABLES}, told)
        write(engine, "more", [{"id": "a", "day": DAYS[0], "x": 1}], keys=["id", "day"])
        rows = read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1]).to_pylist()
        assert len(rows) == len(SYMBOLS) * len(DAYS)
        fetched = Told({}, told.cells, {}, fetching=max(versions))
        for row in rows:
            check_cell(row, row["symbol"], row["trading_date"], fetched)
        assert read(engine, "more").num_rows == 1
        assert engine.verify() == []


def enumerated(recording: Recording, seed: int, count: int) -> Iterator[State]:
    """Yield *count* states, spread over all steps; they are made twice, as all of them together would not fit in memory."""
    per_step = -(-count * 2 // len(recording.steps))
    total = sum(1 for _ in states(recording, random.Random(seed), per_step))
    chosen = {*random.Random(seed).sample(range(total), count)}
    return (state for place, state in enumerate(states(recording, random.Random(seed), per_step)) if place in chosen)


def _short(step: Any) -> str:
    return f"{step.verb} {step.path.name}" if isinstance(step, Operation) else "transaction"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(WORKLOADS))
def test_after_any_power_failure_nothing_acknowledged_is_lost_and_nothing_wrong_is_served(folder: Path, number: int) -> None:
    seed = SEED + number
    recording = Workload(folder / "recorded", seed).run(VERBS)
    opener = Opener()
    for count, (point, found) in enumerate(enumerated(recording, seed, STATES)):
        root = folder / "state"
        lay_out(found, recording.root, root)
        check = check_by_engine if count % WHOLE_ENGINE == 0 else opener.check
        try:
            check(root, recording.known_at(point))
        except BaseException as error:
            steps = [_short(step) for step in recording.steps[max(point - 3, 0) : point + 1]]
            error.add_note(f"FLETCHING_SEED={SEED}, workload {number}, state {count}, at step {point}, around: {steps}")
            raise
        shutil.rmtree(root)
    opener.cold.close()

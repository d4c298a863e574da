"""Journals in every shape against a dictionary: whatever is merged, folded or forgotten, each generation is read as it was.

Fills and writes are committed as they come, refreshes and rows that were taken back among them; any neighbours are merged,
any journal is folded. The oracle is a copy of a dict per generation, and shares no code with the server.

``FLETCHING_LONG=1`` runs more and longer histories than the default.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.conftest import NOW, TableSource, bar, read, weekdays, write

from fletching_schemas import Action, FetchRequest, canonical
from fletching_schemas.errors import HistoryGone
from fletching_server import Engine, open_engine
from fletching_server import tables as t
from fletching_server.calendars import day_number
from fletching_server.changes import Fill
from fletching_server.image import build_image
from fletching_server.snapshot import Fact
from fletching_server.spans import UNCONFIRMED, Days, Span
from fletching_server.testing import ManualClock
from fletching_server.tiers import segments_of

LONG = bool(os.environ.get("FLETCHING_LONG"))
NAMES = ("000001.SZ", "000002.SZ", "600519.SH")
SESSIONS = weekdays(date(2025, 12, 29), date(2026, 1, 9))  # two years, so that one fold writes two partitions

Cell = tuple[str, date]
Contents = dict[Cell, int]

cells = st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(SESSIONS)), max_size=8)
ranges = st.tuples(st.sampled_from(SESSIONS), st.sampled_from(SESSIONS)).map(lambda pair: (min(pair), max(pair)))
symbols = st.sets(st.sampled_from(NAMES), min_size=1).map(lambda names: tuple(sorted(names)))
datasets = st.sampled_from(["bars_1d", "mine"])


class CompactionMachine(RuleBasedStateMachine):
    """One engine with a dataset that fills and a table that users write, and what both were at each generation."""

    @initialize(
        buckets=st.sampled_from([1, 3]),
        period=st.sampled_from(["year", "day"]),
        memory=st.sampled_from(["64MiB", "1KiB"]),
        history_days=st.sampled_from([7.0, 7.0, 7.0, 0.0]),
    )
    def begin(self, buckets: int, period: Any, memory: str, history_days: float) -> None:
        self.folder, self.clock = Path(tempfile.mkdtemp(prefix="fletching-")), ManualClock(NOW)
        self.chosen: dict[str, Any] = {"memory": memory, "history_days": history_days}
        self.forgets = history_days == 0
        self.source = TableSource(canonical("bars_1d", calendar="XSHG", buckets=buckets, period=period), {})
        self.version = 0
        self.present: dict[str, Contents] = {"bars_1d": {}, "mine": {}}
        self.told: dict[str, list[tuple[int, Contents]]] = {"bars_1d": [], "mine": []}
        self.engine = self.opened()
        self.users_write({(NAMES[0], SESSIONS[0])})

    def opened(self) -> Engine:
        waiting: dict[str, Any] = {
            "compact_segments": 10_000,
            "compact_idle_seconds": 3600,
            "compact_settle_seconds": 1e9,
            "vacuum_seconds": 1e9,
        }
        return open_engine(
            self.folder / "store", [self.source], self.clock, query_memory="64MiB", threads=1, **self.chosen, **waiting
        )

    def note(self, dataset: str) -> None:
        self.told[dataset].append((self.engine.store.state(dataset).generation, dict(self.present[dataset])))

    # What is committed

    @rule(names=symbols, days=ranges, kept=cells)
    def a_fill_comes(self, names: tuple[str, ...], days: tuple[date, date], kept: set[Cell]) -> None:
        """Any cells, held or not: of those that were asked the rows in *kept* come, the others are no more."""
        self.version += 1
        asked = {(name, day) for name in names for day in SESSIONS if days[0] <= day <= days[1]}
        self.commit_fill(names, days, asked & kept)
        held = {cell: version for cell, version in self.present["bars_1d"].items() if cell not in asked}
        self.present["bars_1d"] = held | dict.fromkeys(asked & kept, self.version)
        self.note("bars_1d")

    @rule(name=st.sampled_from(NAMES), day=st.sampled_from(SESSIONS))
    def a_small_fill_comes(self, name: str, day: date) -> None:
        self.a_fill_comes((name,), (day, day), {(name, day)})

    def commit_fill(self, names: tuple[str, ...], days: tuple[date, date], brought: set[Cell]) -> None:
        store, dataset = self.engine.store, self.source.dataset
        rows = [bar(*cell, self.version) for cell in sorted(brought)]
        image = build_image(dataset, pa.Table.from_pylist(rows, schema=dataset.schema))
        segment = store.publish(dataset, image, "segment", sync=False, asked=FetchRequest("bars_1d", names, *days))
        first, last = day_number(days[0]), day_number(days[1])
        facts = tuple(Fact(name, Span(first, last, UNCONFIRMED, "", 0.0), segment.id) for name in names)
        adjacent = self.engine.calendars.get("XSHG").adjacent
        store.commit(Fill("bars_1d", segment.id, segment, facts, adjacent, "table", 0.0, Days(first, last), names))

    @rule(brought=cells.filter(bool))
    def users_write(self, brought: set[Cell]) -> None:
        self.version += 1
        rows = [{"id": name, "day": day, "x": self.version} for name, day in brought]
        write(self.engine, "mine", rows, keys=["id", "day"] if not self.told["mine"] else None)
        self.present["mine"] |= dict.fromkeys(brought, self.version)
        self.note("mine")

    # What must not change anything

    @rule(dataset=datasets, start=st.integers(0, 9), size=st.integers(2, 6))
    def neighbours_are_merged(self, dataset: str, start: int, size: int) -> None:
        run = segments_of(self.engine.store.state(dataset))[start : start + size]
        if len(run) > 1:
            assert self.engine._parts.write_path.compaction._merge(dataset, run)
            self.note(dataset)

    @rule(dataset=datasets)
    def a_quiet_moment_comes(self, dataset: str) -> None:
        while self.engine._parts.write_path.compaction.step(dataset, quiet=True):
            self.note(dataset)

    @rule(dataset=datasets)
    def a_journal_is_folded(self, dataset: str) -> None:
        self.engine.act(Action.COMPACT, {"dataset": dataset})
        self.note(dataset)

    @rule()
    def a_restart(self) -> None:
        self.engine.close()
        self.engine = self.opened()

    @rule(hours=st.sampled_from([1, 30, 24 * 8]))
    def time_passes(self, hours: int) -> None:
        self.clock.advance(hours=hours)

    @rule(dataset=datasets)
    def the_past_expires(self, dataset: str) -> None:
        self.engine.act(Action.VACUUM, {"dataset": dataset})
        self.forgets = True

    @precondition(lambda self: self.forgets)
    @rule(dataset=datasets, days=st.sampled_from([0.0, 7.0]))
    def the_past_is_kept_for_another_time(self, dataset: str, days: float) -> None:
        self.engine.act(Action.RETENTION, {"dataset": dataset, "history_days": days})

    # What always holds

    @rule()
    def every_generation_is_as_it_was(self) -> None:
        for dataset, told in self.told.items():
            assert self.contents(dataset) == self.present[dataset]
            for generation, contents in told:
                try:
                    assert self.contents(dataset, as_of=generation) == contents, (dataset, generation)
                except HistoryGone:
                    assert self.forgets
                    assert generation < self.since(dataset)
        assert self.engine.verify() == []
        on_disk = set(self.engine.store.root.rglob("*.parquet"))
        assert on_disk == {self.engine.store.root / path for path in self.engine.store.catalogue.paths()}

    def contents(self, dataset: str, **asked: Any) -> Contents:
        rows = read(self.engine, dataset, on_miss="cached", **asked).to_pylist()
        if dataset == "mine":
            return {(row["id"], row["day"]): row["x"] for row in rows}
        return {(row["symbol"], row["trading_date"]): row["volume"] - row["trading_date"].toordinal() * 100 for row in rows}

    def since(self, dataset: str) -> int:
        query = sa.select(t.datasets.c.since).where(t.datasets.c.name == dataset)
        return int(self.engine.store.catalogue.rows(query)[0]["since"])

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.every_generation_is_as_it_was()
            self.a_restart()
            self.every_generation_is_as_it_was()
            self.engine.close()
            shutil.rmtree(self.folder)


@pytest.mark.slow
def test_whatever_is_merged_and_folded_each_generation_is_read_as_it_was() -> None:
    run_state_machine_as_test(
        CompactionMachine,
        settings=settings(
            max_examples=1000 if LONG else 40,
            stateful_step_count=40 if LONG else 20,
            deadline=None,
            # Shrinking takes minutes; a failure is shrunk in the long run only.
            phases=(Phase.reuse, Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )

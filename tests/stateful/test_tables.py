"""User tables against a dict: whatever was written, folded, forgotten, restarted in whatever order, present and past are right.

The oracle knows dicts and instants, and shares no code with the server. A process that is killed is played by copying the
store as it lies there, log and all, and going on with the copy: ``tests/faults`` kills real ones.

``FLETCHING_LONG=1`` runs 5,000 histories instead of 100.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.conftest import NOW, read, write

from fletching_schemas import Action, WriteResult
from fletching_schemas.errors import HistoryGone, InvalidRequest, UnknownDataset, UnknownSymbol
from fletching_server import Engine, open_engine
from fletching_server.testing import ManualClock

LONG = bool(os.environ.get("FLETCHING_LONG"))

KEYS = ["id", "day"]
NAMES = ("a", "b", "c", "d")
DAYS = (date(2025, 12, 30), date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 2))  # of two years
DAY_SECONDS = 86_400.0
HISTORY_DAYS = 7.0
WIDER = {pa.int32(): pa.int64(), pa.int64(): pa.int64()}

Key = tuple[str, date]
Columns = dict[str, pa.DataType]
Rows = dict[Key, dict[str, Any]]

tables = st.sampled_from(("mine", "ours"))
cells = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(DAYS), st.integers(0, 99)), max_size=5)
modes = st.sampled_from(("upsert", "upsert", "append", "replace"))
symbols = st.none() | st.sampled_from(NAMES)
spans = st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)).map(lambda pair: (min(pair), max(pair)))


@dataclass(frozen=True)
class Version:
    """What a table was from one commit to the next."""

    generation: int
    at: float
    columns: Columns
    rows: Rows


@dataclass
class Model:
    """One table, and what it was."""

    columns: Columns
    rows: Rows
    versions: list[Version] = field(default_factory=list)
    kept_days: float = HISTORY_DAYS
    cutoff: float = 0.0  # what was no longer true then may be forgotten

    def add(self, generation: int, at: float) -> None:
        """Take in that it is now what it is since *generation*."""
        if not self.versions or generation != self.versions[-1].generation:
            self.versions.append(Version(generation, at, self.columns, self.rows))
        if self.kept_days == 0:
            self.cutoff = at

    def is_kept(self, place: int) -> bool:
        """Return whether the version at *place* must still be readable."""
        return place + 1 == len(self.versions) or self.versions[place + 1].at > self.cutoff


@dataclass(frozen=True)
class Sent:
    """A write that was acknowledged."""

    table: str
    rows: pa.Table
    asked: dict[str, Any]
    result: WriteResult
    at: float


class TablesMachine(RuleBasedStateMachine):
    """One engine, and two dicts."""

    @initialize(seed=st.integers(0, 2**32), memory=st.sampled_from(["64MiB", "60KiB", "1KiB"]))
    def begin(self, seed: int, memory: str) -> None:
        self.random = random.Random(seed)  # which of many, not a secret
        self.folder = Path(tempfile.mkdtemp(prefix="fletching-"))
        self.clock, self.memory = ManualClock(NOW), memory
        self.models: dict[str, Model] = {}
        self.sent: dict[str, Sent] = {}
        self.count = 0
        self.store = self.folder / "store-0"
        self.engine = self.opened()

    def opened(self) -> Engine:
        chosen: dict[str, Any] = {"compact_segments": 10_000, "compact_idle_seconds": 3600, "history_days": HISTORY_DAYS}
        chosen |= {"compact_settle_seconds": 1e9, "vacuum_seconds": 1e9, "scrub_days": 0}  # what happens is what a rule says
        chosen |= {"hot_list": False, "access_seconds": 3600.0, "warm": False}  # and no file changes while the store is copied
        return open_engine(self.store, clock=self.clock, memory=self.memory, query_memory="64MiB", threads=1, **chosen)

    @property
    def now(self) -> float:
        return self.clock.now().timestamp()

    def committed(self, name: str) -> None:
        """Take in that something was committed to a table."""
        self.models[name].add(self.engine.store.state(name).generation, self.now)

    # Writes

    def given(self, rows: list[tuple[str, date, int]], columns: Columns) -> pa.Table:
        """Return *rows* as a table, each column's value made of the number."""
        data: dict[str, Any] = {"id": [row[0] for row in rows], "day": [row[1] for row in rows]}
        kinds = {"id": pa.string(), "day": pa.date32(), **columns}
        data |= {column: [row[2] if column == "x" else row[2] * 2 for row in rows] for column in columns}
        return pa.table({column: pa.array(data[column], kind) for column, kind in kinds.items()})

    def send(self, name: str, rows: list[tuple[str, date, int]], columns: Columns, **asked: Any) -> WriteResult:
        table = self.given(rows, columns)
        self.count += 1
        asked |= {"key": f"write {self.count}", "keys": KEYS if name not in self.models or self.random.random() < 0.5 else None}
        if name not in self.models:
            asked["partition"] = self.random.choice(["year", "month", "day"])
        result = write(self.engine, name, table, **asked)
        assert (result.rows, result.created) == (len(rows), name not in self.models)
        self.sent[asked["key"]] = Sent(name, table, asked, result, self.now)
        return result

    @rule(name=tables, rows=cells, mode=modes, fewer=st.booleans())
    def writing(self, name: str, rows: list[tuple[str, date, int]], mode: str, *, fewer: bool) -> None:
        model = self.models.get(name)
        columns = dict(model.columns) if model else {"x": pa.int32()}
        if fewer and model and len(columns) > 1:  # what can be null may be left out
            del columns[self.random.choice(list(columns))]
        fresh = {(row[0], row[1]): {column: row[2] if column == "x" else row[2] * 2 for column in columns} for row in rows}
        held = model.rows if model else {}
        refused = (mode != "upsert" and len(fresh) < len(rows)) or (mode == "append" and bool(fresh.keys() & held.keys()))
        try:
            result = self.send(name, rows, columns, mode=mode)
        except InvalidRequest:
            assert refused, f"{mode} of {rows} was refused"
            return
        assert not refused, f"{mode} of {rows} was taken"
        model = self.models.setdefault(name, Model(columns, {}))
        model.rows = fresh if mode == "replace" else {**model.rows, **fresh}
        assert result.generation == self.engine.store.state(name).generation
        self.committed(name)

    @rule(name=tables, rows=cells, what=st.sampled_from(["add", "widen"]), evolve=st.booleans(), mode=modes)
    def evolving(self, name: str, rows: list[tuple[str, date, int]], what: str, mode: str, *, evolve: bool) -> None:
        model = self.models.get(name)
        rows = list({(row[0], row[1]): row for row in rows}.values())
        if model is None or (mode == "append" and {(row[0], row[1]) for row in rows} & model.rows.keys()):
            return
        columns = dict(model.columns)
        if what == "add" and len(columns) < 4:
            columns[f"y{len(columns)}"] = pa.int32()
        else:
            chosen = self.random.choice(list(columns))
            columns[chosen] = WIDER[columns[chosen]]
        try:
            self.send(name, rows, columns, mode=mode, evolve=evolve)
        except InvalidRequest:
            assert not evolve
            assert columns.keys() - model.columns.keys(), "wider values that fit are taken"
            return
        assert evolve or columns.keys() == model.columns.keys()
        fresh = {(row[0], row[1]): {column: row[2] if column == "x" else row[2] * 2 for column in columns} for row in rows}
        model.rows = fresh if mode == "replace" else {**model.rows, **fresh}
        if evolve:
            model.columns = columns
        self.committed(name)

    @rule(other=st.booleans())
    def the_same_write_again(self, *, other: bool) -> None:
        if not self.sent:
            return
        key = self.random.choice(sorted(self.sent))
        sent = self.sent[key]
        if not other:
            assert write(self.engine, sent.table, sent.rows, **sent.asked) == sent.result
            return
        if sent.asked["keys"] is None and sent.table not in self.models:
            return
        more = self.given([("a", DAYS[0], 7), *(("b", DAYS[1], 7) for _ in range(sent.rows.num_rows))], {"x": pa.int32()})
        with pytest.raises(InvalidRequest):
            write(self.engine, sent.table, more, key=key, keys=KEYS)

    @rule(name=tables)
    def deleting(self, name: str) -> None:
        try:
            told = self.engine.act(Action.DELETE, {"dataset": name})
        except UnknownDataset:
            assert name not in self.models
            return
        assert isinstance(told, dict)
        assert self.models.pop(name)
        self.sent = {key: sent for key, sent in self.sent.items() if sent.table != name}

    # What must not change anything

    @rule(name=tables)
    def folding(self, name: str) -> None:
        if name in self.models:
            self.engine.act(Action.COMPACT, {"dataset": name})
            self.committed(name)

    @rule(name=tables, days=st.sampled_from([None, 0, 1, 3]))
    def vacuuming(self, name: str, days: float | None) -> None:
        if (model := self.models.get(name)) is None:
            return
        self.engine.act(Action.VACUUM, {"dataset": name} | ({} if days is None else {"history_days": days}))
        model.cutoff = max(model.cutoff, self.now - DAY_SECONDS * (model.kept_days if days is None else days))
        self.sent = {key: sent for key, sent in self.sent.items() if sent.table != name or sent.at >= model.cutoff}
        self.committed(name)

    @rule(name=tables, days=st.sampled_from([None, 0, 2, 30]))
    def retaining(self, name: str, days: float | None) -> None:
        if (model := self.models.get(name)) is None:
            return
        self.engine.act(Action.RETENTION, {"dataset": name, "history_days": days})
        model.kept_days = HISTORY_DAYS if days is None else days
        self.committed(name)

    @rule(step=st.sampled_from([{"minutes": 1}, {"hours": 5}, {"days": 1}, {"days": 2}]))
    def time_passes(self, step: dict[str, float]) -> None:
        self.clock.advance(**step)
        for model in self.models.values():
            model.cutoff = max(model.cutoff, self.now - DAY_SECONDS * model.kept_days)

    @rule()
    def a_restart(self) -> None:
        self.engine.close()
        self.engine = self.opened()
        assert self.engine.verify() == []

    @rule()
    def a_kill(self) -> None:
        killed, engine = self.store, self.engine
        self.count += 1
        self.store = self.folder / f"store-{self.count}"
        shutil.copytree(killed, self.store)  # as it lies there: nothing was closed, nothing was folded into the database
        engine.close()
        shutil.rmtree(killed)
        self.engine = self.opened()
        assert self.engine.verify() == []

    @rule()
    def eviction(self) -> None:
        self.engine.act(Action.EVICT, {})

    # Reads

    @rule(name=tables, symbol=symbols, days=st.none() | spans, narrow=st.booleans())
    def reading(self, name: str, symbol: str | None, days: tuple[date, date] | None, *, narrow: bool) -> None:
        if (model := self.models.get(name)) is None:
            with pytest.raises(UnknownDataset):
                read(self.engine, name)
            return
        self.compare(name, Version(0, 0, model.columns, model.rows), symbol, days, narrow=narrow)

    @rule(
        name=tables,
        symbol=st.none() | st.sampled_from(NAMES),
        days=st.none() | spans,
        narrow=st.booleans(),
        place=st.floats(0, 1),
    )
    def reading_the_past(
        self, name: str, symbol: str | None, days: tuple[date, date] | None, place: float, *, narrow: bool
    ) -> None:
        if (model := self.models.get(name)) is None:
            return
        first, last = model.versions[0].generation, model.versions[-1].generation
        generation = first + round(place * (last - first))
        (chosen,) = [number for number, version in enumerate(model.versions) if version.generation <= generation][-1:]
        try:
            self.compare(name, model.versions[chosen], symbol, days, narrow=narrow, as_of=generation)
        except HistoryGone:
            assert not model.is_kept(chosen), f"{name} as of {generation} is gone"

    @rule(name=tables, place=st.floats(0, 1))
    def reading_an_instant_of_the_past(self, name: str, place: float) -> None:
        if (model := self.models.get(name)) is None:
            return
        first = model.versions[0].at - 3600
        instant = first + place * (self.now - first)
        before = [number for number, version in enumerate(model.versions) if version.at <= instant]
        try:
            moment = datetime.fromtimestamp(instant, tz=NOW.tzinfo)
            instant = moment.timestamp()
            self.compare(name, model.versions[before[-1]] if before else None, None, None, narrow=False, as_of=moment)
        except HistoryGone:
            assert not before or not model.is_kept(before[-1]), f"{name} as of {moment} is gone"

    @rule(name=tables)
    def reading_what_never_was(self, name: str) -> None:
        if (model := self.models.get(name)) is None:
            return
        with pytest.raises(HistoryGone):
            read(self.engine, name, as_of=model.versions[0].generation - 1)
        with pytest.raises(InvalidRequest):
            read(self.engine, name, as_of=model.versions[-1].generation + 1)
        with pytest.raises(InvalidRequest):
            read(self.engine, name, as_of=self.clock.now() + timedelta(hours=1))

    def compare(
        self,
        name: str,
        version: Version | None,
        symbol: str | None,
        days: tuple[date, date] | None,
        *,
        narrow: bool,
        **asked: Any,
    ) -> None:
        """Read, and compare with *version*; None: nothing can be read."""
        columns = {"id": pa.string(), "day": pa.date32(), **(version.columns if version else {})}
        if narrow and version:
            columns = {column: columns[column] for column in self.random.sample(list(columns), self.random.randrange(1, 3))}
            asked["columns"] = list(columns)
        start, end = days or (None, None)
        try:
            found = read(self.engine, name, symbols=symbol, start=start, end=end, **asked)
        except UnknownSymbol:
            assert version is None or symbol not in {key[0] for key in version.rows}
            return
        assert version is not None, f"{name} was read as of before it was there"
        want = [
            {column: {"id": key[0], "day": key[1], **row}.get(column) for column in columns}
            for key, row in sorted(version.rows.items())
            if symbol in (None, key[0]) and (days is None or days[0] <= key[1] <= days[1])
        ]
        assert found.to_pylist() == want, f"{name} {asked}"
        assert {item.name: str(item.type).replace("string_view", "string") for item in found.schema} == {
            column: str(kind) for column, kind in columns.items()
        }

    # What always holds

    @invariant()
    def nothing_lies_about(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert self.engine.hot.check() == []
        assert not any(self.engine.store._pins.values())
        assert self.engine.store.orphans() == []
        assert set(self.engine.names()) == set(self.models)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine.verify() == []
            self.engine.close()
            shutil.rmtree(self.folder)


@pytest.mark.slow
def test_any_history_of_tables_reads_like_a_dict_of_then() -> None:
    run_state_machine_as_test(
        TablesMachine,
        settings=settings(
            max_examples=5000 if LONG else 100,
            stateful_step_count=50 if LONG else 25,
            deadline=None,
            # Shrinking takes minutes; a failure is shrunk in the long run only.
            phases=(Phase.reuse, Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )

"""The whole cache against two dicts: whatever happens in whatever order, a read is what a reader of the source would get.

The oracle knows dates and dicts, and shares no code with the server. A cell of a session that is under way may be as old
as the dataset's freshness allows, so any version that was current in that time is right.

``FLETCHING_LONG=1`` runs more and longer histories than the default.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tests.conftest import WAIT_SECONDS, Row, TableSource, bar, read, weekdays, write

from fletching_schemas import Action, FetchRequest, canonical
from fletching_schemas.errors import InvalidRequest, SourceUnavailable, UnknownDataset, UnknownSymbol
from fletching_server import Engine, open_engine
from fletching_server.testing import ManualClock

LONG = bool(os.environ.get("FLETCHING_LONG"))

NAMES = ("000001.SZ", "000002.SZ", "600519.SH")
SESSIONS = weekdays(date(2026, 11, 2), date(2026, 11, 20))  # no holiday among them
START = datetime(2026, 11, 9, 1, 0, tzinfo=UTC)
SHANGHAI = timedelta(hours=8)
SETTLED_AT = timedelta(hours=8)  # 16:00 in Shanghai, in UTC
OPENS_AT = timedelta(hours=9, minutes=30)
FRESH = timedelta(seconds=300)

Cell = tuple[str, date]
Version = int | None  # None: the source has no row

ranges = st.tuples(st.sampled_from(SESSIONS), st.sampled_from(SESSIONS)).map(lambda pair: (min(pair), max(pair)))
symbols = st.sets(st.sampled_from(NAMES), min_size=1).map(lambda names: tuple(sorted(names)))
rows = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(SESSIONS[:3]), st.integers(0, 9)), min_size=1, max_size=4)


def settled(day: date, now: datetime) -> bool:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + SETTLED_AT <= now


class CacheMachine(RuleBasedStateMachine):
    """One engine, its source, and what a reader of the source would know."""

    shares = False

    @initialize(
        seed=st.integers(0, 2**32),
        buckets=st.sampled_from([1, 3]),
        period=st.sampled_from(["year", "day"]),
        memory=st.sampled_from(["64MiB", "60KiB", "1KiB"]),
    )
    def begin(self, seed: int, buckets: int, period: Any, memory: str) -> None:
        self.random = random.Random(seed)  # which rows there are, not a secret
        self.folder = Path(tempfile.mkdtemp(prefix="fletching-"))
        self.clock = ManualClock(START)
        self.memory = memory
        dataset = canonical("bars_1d", calendar="XSHG", buckets=buckets, period=period, symbols_per_call=2)
        self.source = TableSource(dataset, {})
        self.source.answer = self.deliver
        # When the source said what about a cell, oldest first; the last is the truth now.
        self.history: dict[Cell, list[tuple[datetime, Version]]] = {
            (name, day): [(START - timedelta(days=999), None if self.random.random() < 0.2 else 0)]
            for name in NAMES
            for day in SESSIONS
        }
        self.fetched: dict[Cell, datetime] = {}
        self.table: dict[tuple[str, date], int] | None = None
        self.dirty = False
        self.then: dict[int, tuple[dict[str, Any], list[Row]]] = {}  # by generation: a read, and what it gave
        self.engine = self.opened()

    def opened(self) -> Engine:
        engine = open_engine(
            self.folder / "store",
            [self.source],
            clock=self.clock,
            memory=self.memory,
            query_memory="64MiB",
            threads=1,
            compact_segments=10_000,
            compact_idle_seconds=3600,
            compact_settle_seconds=1e9,
            vacuum_seconds=1e9,
            shares=self.shares,
        )
        assert engine.hot_list.restored.wait(WAIT_SECONDS)
        return engine

    def shut(self) -> None:
        self.engine.close()

    def empty_memory(self) -> None:
        self.engine.act(Action.EVICT, {})

    def read(self, dataset: str = "bars_1d", **asked: Any) -> pa.Table:
        return read(self.engine, dataset, **asked)

    def deliver(self, request: FetchRequest) -> pa.Table:
        cells = [(name, day) for name in request.symbols for day in SESSIONS if request.start <= day <= request.end]
        truth = [(cell, self.history[cell][-1][1]) for cell in cells]
        found: list[Row] = [bar(*cell, version) for cell, version in truth if version is not None]
        return pa.Table.from_pylist(found, schema=self.source.dataset.schema)

    # What a reader of the source would know

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def today(self) -> date:
        """Return the last day on which there can be bars: before 09:30 that is yesterday."""
        return (self.now + SHANGHAI - OPENS_AT).date()

    def allowed(self, cell: Cell) -> list[Row | None]:
        """Return the rows that a read may give for *cell* now."""
        past = self.history[cell]
        since = self.now - FRESH
        if self.source.error is not None:  # what is held is served, however old: it was true when it was fetched
            since = min(since, self.fetched.get(cell, since))
        current = [version for (_, version), (until, _) in itertools.pairwise(past) if until >= since]
        return [None if version is None else bar(*cell, version) for version in (*current, past[-1][1])]

    def check_answer(self, table: pa.Table, names: Sequence[str], first: date, last: date) -> None:
        got = table.select(["symbol", "trading_date", "open", "volume"]).to_pylist()
        keys = [(row["symbol"], row["trading_date"]) for row in got]
        assert keys == sorted(set(keys)), "rows must be sorted and unique"
        by_key = dict(zip(keys, got, strict=True))
        wanted = {(name, day) for name in names for day in SESSIONS if first <= day <= min(last, self.today)}
        assert set(by_key) <= wanted
        for cell in wanted:
            row = by_key.get(cell)
            right = [
                want and {name: want[name] for name in ("symbol", "trading_date", "open", "volume")}
                for want in self.allowed(cell)
            ]
            assert row in right, f"{cell}: {row} is none of {right}"

    def land(self) -> None:
        """Wait for calls that a read which failed has left under way."""
        fills = self.engine._parts.upstream.fills
        with fills._lock:
            under_way = [flight for flights in fills._board.values() for flight in flights]
        for flight in under_way:
            flight.landed.exception(WAIT_SECONDS)

    def check_calls(self) -> None:
        """A cell is asked once per absence, and never while what is known of it vouches for it."""
        if self.dirty:  # any read may find the damage, and fetch again what rested on it
            self.source.requests.clear()
            return
        asked: set[Cell] = set()
        for request in self.source.requests:
            for cell in ((name, day) for name in request.symbols for day in SESSIONS if request.start <= day <= request.end):
                assert cell not in asked, f"{cell} was asked twice by one read"
                asked.add(cell)
                if (when := self.fetched.get(cell)) is not None:
                    assert self.may_be_asked_again(cell, when), f"{cell} was known since {when} and is asked again"
        if self.source.error is None:
            self.fetched |= dict.fromkeys(asked, self.now)
        self.source.requests.clear()

    def may_be_asked_again(self, cell: Cell, when: datetime) -> bool:
        """Return whether what was learned about *cell* at *when* no longer vouches for it.

        A session under way ages; one that had settled is looked at for the second time once a later one has settled; after
        that it is final, unless nothing was ever there, which is looked at once per session.
        """
        if not settled(cell[1], when):
            return self.now - when > FRESH
        final = any(settled(day, when) for day in weekdays(cell[1] + timedelta(days=1), when.date()))
        absent = all(version is None for _, version in self.history[cell])
        news = any(settled(day, self.now) and not settled(day, when) for day in weekdays(cell[1], self.now.date()))
        return news and (absent or not final)

    # What may happen

    @rule(names=symbols, days=ranges)
    def reading(self, names: tuple[str, ...], days: tuple[date, date]) -> None:
        try:
            table = self.read(symbols=names, start=days[0], end=days[1])
        except SourceUnavailable:
            assert self.source.error is not None
            self.land()
        else:
            self.check_answer(table, names, *days)
        self.check_calls()

    @rule(names=symbols, days=ranges, columns=st.sampled_from([["close"], ["volume", "symbol"]]))
    def reading_what_is_held(self, names: tuple[str, ...], days: tuple[date, date], columns: list[str]) -> None:
        held = self.read(symbols=names, start=days[0], end=days[1], columns=columns, on_miss="cached")
        assert held.column_names == columns
        assert self.source.requests == []

    @precondition(lambda self: not self.dirty)
    @rule(names=symbols, days=ranges)
    def keeping_what_was_read(self, names: tuple[str, ...], days: tuple[date, date]) -> None:
        asked: dict[str, Any] = {"symbols": names, "start": days[0], "end": days[1]}
        generation = self.engine.store.state("bars_1d").generation
        with suppress(UnknownSymbol):
            rows = self.read(**asked, on_miss="cached").to_pylist()
            if self.engine.store.state("bars_1d").generation == generation:  # else damage was found
                self.then[generation] = (asked, rows)

    @precondition(lambda self: self.then)
    @rule(place=st.floats(0, 1))
    def reading_as_of_then(self, place: float) -> None:
        generation = list(self.then)[round(place * (len(self.then) - 1))]
        asked, rows = self.then[generation]
        try:
            assert self.read(**asked, as_of=generation).to_pylist() == rows, f"as of {generation}"
        except UnknownSymbol:  # that there was nothing of it has been forgotten since
            assert set(asked["symbols"]) - {row["symbol"] for row in rows}
        assert self.source.requests == []

    @rule(step=st.sampled_from([{"seconds": 200}, {"seconds": 301}, {"hours": 4}, {"hours": 11}, {"days": 1}]))
    def time_passes(self, step: dict[str, float]) -> None:
        self.clock.advance(**step)

    @rule(name=st.sampled_from(NAMES), version=st.none() | st.integers(1, 5))
    def the_session_under_way_changes(self, name: str, version: Version) -> None:
        cell = (name, self.today)
        if cell in self.history and not settled(self.today, self.now):
            self.history[cell].append((self.now, version))

    @rule(failing=st.booleans())
    def the_source_fails_or_recovers(self, *, failing: bool) -> None:
        self.source.error = RuntimeError("upstream is down") if failing else None

    @rule()
    def folding(self) -> None:
        for name in self.engine.names():
            self.engine.act(Action.COMPACT, {"dataset": name})
        if self.dirty:  # what folding found damaged was set aside
            self.fetched.clear()

    @rule()
    def eviction(self) -> None:
        self.engine.act(Action.EVICT, {})

    @rule()
    def a_restart(self) -> None:
        self.shut()
        self.engine = self.opened()

    @rule(names=symbols, days=ranges)
    def forgetting(self, names: tuple[str, ...], days: tuple[date, date]) -> None:
        self.engine.act(
            Action.INVALIDATE, {"dataset": "bars_1d", "symbols": list(names), "start": str(days[0]), "end": str(days[1])}
        )
        for cell in list(self.fetched):
            if cell[0] in names and days[0] <= cell[1] <= days[1]:
                del self.fetched[cell]

    @rule(how=st.sampled_from(["flip", "truncate", "delete"]), place=st.floats(0, 1), restart=st.booleans())
    def a_file_breaks(self, how: str, place: float, *, restart: bool) -> None:
        files = self.engine.store.state("bars_1d").files
        if not files:
            return
        path = self.engine.store.root / self.random.choice(files).path
        if restart or how == "flip":  # a flip may lie in what is checked once per start only
            self.shut()
        if path.exists():
            raw = bytearray(path.read_bytes())
            spot = min(int(place * len(raw)), len(raw) - 1)
            if how == "flip":
                raw[spot : spot + 1] = bytes([raw[spot] ^ 0x20]) if raw else b""
                path.write_bytes(raw)
            elif how == "truncate":
                path.write_bytes(raw[:spot])
            else:
                path.unlink()
        if restart or how == "flip":
            self.engine = self.opened()
        self.fetched.clear()
        self.then.clear()  # what lies before a lost file cannot be read any more
        self.dirty = True

    @precondition(lambda self: self.dirty and self.source.error is None)
    @rule()
    def everything_is_read_again(self) -> None:
        self.empty_memory()
        table = self.read(symbols=NAMES, start=SESSIONS[0], end=SESSIONS[-1])
        self.check_answer(table, NAMES, SESSIONS[0], SESSIONS[-1])
        self.source.requests.clear()
        self.fetched = {}
        self.dirty = False

    @rule(cells=rows, mode=st.sampled_from(["upsert", "append", "replace"]))
    def a_user_writes(self, cells: list[tuple[str, date, int]], mode: str) -> None:
        given = {(name, day): x for name, day, x in cells}
        held = self.table or {}
        refused = (mode != "upsert" and len(given) < len(cells)) or (mode == "append" and bool(given.keys() & held.keys()))
        data = [{"id": name, "day": day, "x": x} for name, day, x in cells]
        try:
            write(self.engine, "mine", data, mode=mode, keys=["id", "day"])
        except InvalidRequest:
            assert refused
        else:
            assert not refused
            self.table = given if mode == "replace" else held | given

    @precondition(lambda self: self.table is not None)
    @rule()
    def a_user_deletes_the_table(self) -> None:
        self.engine.act(Action.DELETE, {"dataset": "mine"})
        self.table = None

    @rule()
    def a_user_reads(self) -> None:
        try:
            found = [(row["id"], row["day"], row["x"]) for row in self.read("mine").to_pylist()]
        except UnknownDataset:
            assert self.table is None
        else:
            assert found == sorted((name, day, x) for (name, day), x in (self.table or {}).items())

    # What always holds

    @invariant()
    def the_books_add_up(self) -> None:
        if hasattr(self, "engine"):
            facts = self.engine.hot.facts()
            assert self.engine.hot.check() == []
            assert facts["hot_bytes"] <= facts["hot_max_bytes"]
            assert (facts["hot_leases"], facts["hot_reserved_bytes"]) == (0, 0)
            assert not any(self.engine.store._pins.values())

    @invariant()
    def the_store_is_sound(self) -> None:
        if hasattr(self, "engine") and not self.dirty:
            assert self.engine.verify() == []
            on_disk = {path for path in self.engine.store.root.rglob("*.parquet") if path.parent.name != "set-aside"}
            assert on_disk == {self.engine.store.root / path for path in self.engine.store.catalogue.paths()}

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.shut()
            shutil.rmtree(self.folder)


@pytest.mark.slow
def test_any_history_reads_like_the_source_and_the_users_writes() -> None:
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=500 if LONG else 40,
            stateful_step_count=60 if LONG else 20,
            deadline=None,
            # Shrinking takes minutes; a failure is shrunk in the long run only.
            phases=(Phase.reuse, Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )

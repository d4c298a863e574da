"""One store taken through every step that has a failpoint, and a ledger of what its users were told."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from tests.conftest import NOW, SYMBOLS, LibrarySource, TableSource, bars, expected, read, read_info, weekdays, write

from fletching_schemas import Action, FetchRequest, canonical
from fletching_schemas.calls import CallRequest
from fletching_schemas.errors import BadSourceData, Error, StoreUnwritable
from fletching_server import Engine, failpoints, importing, open_engine
from fletching_server.testing import ManualClock
from fletching_server.volume import volume_of

DAYS: Final = weekdays(date(2026, 11, 2), date(2026, 11, 20))


Rows = dict[str, int]  # "id day" to x, so that it is JSON
Tables = dict[str, Rows]


@dataclass
class Ledger:
    """What the tables may hold, and which reads were finished. After a failure a change may have happened or not."""

    possible: list[Tables] = field(default_factory=lambda: [{}])
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    under_way: list[Any] | None = None

    def hear(self, verb: str, *words: Any) -> None:
        """Take down what was told: a change *begins*, it is *done* or *failed*, or a read was finished."""
        if verb == "begin":
            self.under_way = [*words]
        elif verb == "read":
            self.reads.append((words[0], words[1], words[2]))
        elif verb == "evicting":
            self.reads.clear()  # from here on their rows may be gone, which is no loss
        elif self.under_way is not None:
            before, change, self.under_way = self.possible, self.under_way, None
            after = [_changed(tables, *change) for tables in before]
            self.possible = after if verb == "done" else [*before, *after]

    def settle(self, held: Tables) -> None:
        """Check what the tables hold against what they may; from now on it is what they must."""
        assert held in self.possible
        self.possible = [held]


def _changed(tables: Tables, mode: str, name: str, rows: Rows) -> Tables:
    after = {} if mode in {"replace", "delete"} else tables.get(name, {})
    return {kept: found for kept, found in {**tables, name: {**after, **rows}}.items() if found}


class Scenario:
    """The steps; *say* hears what is acknowledged, as a ledger does."""

    def __init__(self, root: Path, say: Callable[..., None]) -> None:
        self.root, self.say = root, say
        self.source = TableSource(canonical("bars_1d", calendar="XSHG", period="month"), bars(SYMBOLS, DAYS))
        self.library = LibrarySource(len_of)
        self.clock = ManualClock(NOW)
        self.engine: Engine | None = None

    def steps(self) -> list[Callable[[], None]]:
        """Return what happens, in order."""
        return [
            self.open,
            lambda: self.fill(SYMBOLS[0], 0, 5),
            lambda: self.write("upsert", "mine", {"a 2": 1, "b 3": 2, "c 3": 3}),
            lambda: self.write("append", "mine", {"a 4": 4, "b 5": 5}),
            self.fold_in_vain,
            self.call,
            self.call,  # the answer before this one goes
            self.refused_answer,
            lambda: self.fold("bars_1d"),
            lambda: self.fold("mine"),
            lambda: self.fill(SYMBOLS[1], 2, 8),
            lambda: self.write("upsert", "mine", {"a 2": 6, "d 3": 7}),
            lambda: self.write("upsert", "yours", {"a 2": 8}),
            lambda: self.fold("mine"),
            lambda: self.write("replace", "mine", {"e 2": 9}),
            lambda: self.bulk("mine", {"e 2": 12, "g 6": 13}),
            lambda: self.bulk("ours", {"a 2": 14, "b 3": 15}),
            self.leave_an_orphan,
            self.close,
            self.open,
            self.damage,
            lambda: self.delete("yours"),
            *(lambda symbol=symbol: self.fill(symbol, 9, 10) for symbol in SYMBOLS[:4]),
            lambda: self.fold("bars_1d"),  # which merges them first
            self.vacuum,
            self.evict,
            lambda: self.write("upsert", "mine", {"f 2": 10}),
            self.close,
        ]

    @property
    def running(self) -> Engine:
        """The engine, which must be open."""
        assert self.engine is not None
        return self.engine

    @property
    def trusted(self) -> bool:
        """Whether no sync has failed since the store was opened."""
        try:
            volume_of(self.root).check()
        except StoreUnwritable:
            return False
        return True

    def open(self) -> None:
        settings: dict[str, Any] = {"memory": "8MiB", "query_memory": "64MiB", "threads": 1}
        settings |= {"compact_idle_seconds": 3600, "compact_segments": 10_000, "compact_settle_seconds": 1e9}
        settings |= {"access_seconds": 3600}  # else it would be chance how often a run comes by its steps
        self.engine = open_engine(self.root, [self.source, self.library], clock=self.clock, **settings)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def fill(self, symbol: str, first: int, last: int) -> None:
        read(self.running, symbols=symbol, start=DAYS[first], end=DAYS[last])
        self.say("read", symbol, first, last)

    def write(self, mode: str, name: str, rows: Rows) -> None:
        self.say("begin", mode, name, rows)
        write(self.running, name, listed(rows), mode=mode, keys=["id", "day"])
        self.say("done")

    def bulk(self, name: str, rows: Rows) -> None:
        """Import *rows* from a file, with one that is refused."""
        path = self.root.parent / f"{self.root.name}-{name}.csv"
        lines = [f"{row['id']},{row['day']},{row['x']}" for row in listed(rows)]
        path.write_text("\n".join(["id,day,x", *lines, "a,never,1"]) + "\n")
        request = importing.ImportRequest([path], name, keys=("id", "day"))
        plan = importing.plan_import(self.running, request)
        self.say("begin", "upsert", name, rows)
        importing.run_import(self.running, plan)
        self.say("done")

    def delete(self, name: str) -> None:
        if name in self.running.names():
            self.say("begin", "delete", name, {})
            self.running.act(Action.DELETE, {"dataset": name})
            self.say("done")

    def fold_in_vain(self) -> None:
        """Fold a table that is deleted meanwhile: its new file is for nobody."""
        write(self.running, "fleeting", listed({"a 2": 1}), keys=["id", "day"])
        deleted: list[str] = []

        def delete(_name: str) -> None:
            if not deleted:
                deleted.append("fleeting")
                self.running.act(Action.DELETE, {"dataset": "fleeting"})

        with failpoints.doing("fold.rename", delete):
            self.fold("fleeting")

    def vacuum(self) -> None:
        """Forget the past, so that its files leave."""
        self.running.act(Action.VACUUM, {"history_days": 0})

    def call(self) -> None:
        self.clock.advance(seconds=1)
        self.running.act(Action.CALL, CallRequest.asking("len_of", ["x"], {}, max_age=0.0).body())

    def refused_answer(self) -> None:
        """Fetch what is no answer: it is kept aside."""
        self.source.answer = _without_prices
        with suppress(BadSourceData):
            read(self.running, symbols=SYMBOLS[4], start=DAYS[0], end=DAYS[0])
        self.source.answer = None

    def fold(self, name: str) -> None:
        if name in self.running.names():
            self.running.act(Action.COMPACT, {"dataset": name})

    def leave_an_orphan(self) -> None:
        journal = self.root / "journal"
        journal.mkdir(exist_ok=True)
        (journal / "of a process that died.parquet").write_bytes(b"half")

    def damage(self) -> None:
        """Read a fetched file that rots meanwhile: it is set aside, and fetched again."""
        read(self.running, symbols=SYMBOLS[3], start=DAYS[0], end=DAYS[3])
        store = self.running.store
        (file,) = [file for file in store.state("bars_1d").files if file.kind == "segment" and file.symbols == (SYMBOLS[3],)]
        raw = bytearray((store.root / file.path).read_bytes())
        raw[-3] ^= 1
        (store.root / file.path).write_bytes(raw)
        self.running.act(Action.EVICT, {})
        table = read(self.running, symbols=SYMBOLS[3], start=DAYS[0], end=DAYS[3])
        assert table.equals(expected(self.source.dataset, self.source.rows, [SYMBOLS[3]], DAYS[0], DAYS[3]))

    def evict(self) -> None:
        """Let all fetched rows leave, as a quota of nothing does."""
        self.say("evicting")
        quota = self.running.quota
        quota.most_bytes, quota._low_bytes = 1, 0
        try:
            quota.settle()
        finally:
            quota.most_bytes = 0

    def held(self) -> Tables:
        """Return what the tables hold now."""
        there = [name for name in self.running.names() if name not in {"bars_1d", "fleeting"}]
        found = {
            name: {f"{row['id']} {row['day'].day}": row["x"] for row in read(self.running, name).to_pylist()} for name in there
        }
        return {name: rows for name, rows in found.items() if rows}


def run(root: Path, say: Callable[..., None]) -> None:
    """Take the store at *root* through all steps; the first error ends it."""
    for step in Scenario(root, say).steps():
        step()


def run_with_failures(root: Path, ledger: Ledger) -> None:
    """Take the store at *root* through all steps with one failure on the way, after which all reads and the other steps go on.

    Only where a sync failed there are more: nothing is written until the store is opened again.
    """
    scenario, failures = Scenario(root, ledger.hear), 0
    for step in scenario.steps():
        trusted = scenario.trusted
        try:
            step()
        except Error:
            failures += trusted
            ledger.hear("failed")
            if scenario.engine is None:  # it was not opened: the next try must
                scenario.open()
        if scenario.engine is not None:
            ledger.settle(scenario.held())
            assert failures <= 1, "one failure of the disk made others"


def check(root: Path, ledger: Ledger) -> None:
    """Check the store at *root* after a failure: what was told is there, nothing else is half there, and work goes on."""
    scenario = Scenario(root, ledger.hear)
    scenario.open()
    engine, source = scenario.running, scenario.source
    try:
        assert engine.verify() == []
        assert engine.store.orphans() == []
        ledger.settle(scenario.held())
        for symbol, first, last in ledger.reads:
            table, info = read_info(engine, symbols=symbol, start=DAYS[first], end=DAYS[last])
            assert info.upstream_calls == 0
            assert table.equals(expected(source.dataset, source.rows, [symbol], DAYS[first], DAYS[last]))
        scenario.write("upsert", "mine", {"a 2": 11})
        table = read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[9])
        assert table.equals(expected(source.dataset, source.rows, SYMBOLS, DAYS[0], DAYS[9]))
        for name in engine.names():
            scenario.fold(name)
        ledger.settle(scenario.held())
        assert engine.verify() == []
    finally:
        scenario.close()


def listed(rows: Rows) -> list[dict[str, Any]]:
    """Return *rows* as a write takes them."""
    return [{"id": key.split()[0], "day": date(2026, 11, int(key.split()[1])), "x": x} for key, x in rows.items()]


def len_of(text: str) -> int:
    """Return something that can be kept."""
    return len(text)


def _without_prices(request: FetchRequest) -> pa.Table:
    return pa.table({"symbol": list(request.symbols)})


def tell(place: Path) -> Callable[..., None]:
    """Return what writes each word to the file at *place* before it returns, for another process to read."""
    file = place.open("a")

    def say(*words: Any) -> None:
        file.write(json.dumps(words) + "\n")
        file.flush()

    return say


def heard(place: Path) -> Ledger:
    """Return the ledger of a process that died: what was under way may have happened."""
    ledger = Ledger()
    for line in place.read_text().splitlines() if place.exists() else []:
        ledger.hear(*json.loads(line))
    ledger.hear("failed")
    return ledger

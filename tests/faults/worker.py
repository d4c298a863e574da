"""Processes that work on one store until they are killed, and a parent that compares what they find with what it was told.

``python tests/faults/worker.py FOLDER KILLS SEED`` kills so many, with no pytest around it. The parent imports everything, starts
no thread and opens no store; its children are forked, which takes milliseconds. Each child first checks what the one before it
has left, then works on: its lines on a pipe tell what begins and what was acknowledged. What was under way when it died
is there as a whole, or not at all; and the next child sends some of these writes again, with the same keys.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import select
import signal
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import duckdb  # noqa: F401  # what an engine imports when it opens is there before the fork
import exchange_calendars
import pyarrow as pa
import pyarrow.parquet as pq
from tests.conftest import NOW, SYMBOLS, TableSource, bars, expected, read, read_info, weekdays, write

from fletching_schemas import Action, canonical
from fletching_schemas.errors import HistoryGone
from fletching_server import Engine, open_engine
from fletching_server.importing import ImportRequest, plan_import, run_import
from fletching_server.testing import ManualClock

DAYS: Final = weekdays(date(2026, 11, 2), date(2026, 11, 18))  # settled, and a later session as well: final
KEYS: Final = ["id", "day"]
TABLES: Final = ("mine", "ours")  # one thread writes each
STEP: Final = timedelta(hours=6)  # passes from one child to the next
HISTORY_DAYS: Final = 7.0
HANGS_SECONDS: Final = 60
OLD_STORES: Final = sorted((Path(__file__).parents[1] / "formats").glob("format-*.tar.gz"))

Row = dict[str, Any]
Rows = dict[str, Row]  # by "id|day"; a column that is null is left out
Op = dict[str, Any]


@dataclass(frozen=True)
class Past:
    """What a table was at a generation, and when that was."""

    generation: int
    at: float
    rows: Rows


@dataclass
class Table:
    """One user table as its writer was told that it is; ``rows`` is None where there is none."""

    rows: Rows | None = None
    columns: tuple[str, ...] = ("x",)
    past: list[Past] = field(default_factory=list)
    cutoff: float = 0.0  # what was then, or before, may be forgotten
    days: float = HISTORY_DAYS
    under_way: Op | None = None
    last: Op | None = None  # the last write that was acknowledged

    def after(self, op: Op) -> Rows | None:
        """Return the rows once *op* has happened."""
        if op["do"] == "delete":
            return None
        given = op.get("rows", {})
        held = {} if op["do"] == "replace" else self.rows
        return held if op["do"] not in WRITES else {**(held or {}), **given}

    def settle(self, op: Op, generation: int, at: float) -> None:
        """Take in that *op* has happened."""
        self.rows, self.under_way = self.after(op), None
        if op["do"] == "delete":
            self.past, self.last, self.days, self.columns = [], None, HISTORY_DAYS, ("x",)
        elif op["do"] == "retention":
            self.days = op["days"]
        elif op["do"] in WRITES:
            self.columns = tuple(dict.fromkeys([*self.columns, *(name for row in op["rows"].values() for name in row)]))
            self.last = op if "key" in op else None
        if self.rows is not None and generation:
            self.past.append(Past(generation, at, self.rows))

    def begin(self, op: Op, now: float) -> None:
        """Take in that *op* begins: from here on what it forgets may be gone."""
        self.under_way = op
        if op["do"] == "vacuum":
            self.cutoff = max(self.cutoff, now - 86_400 * self.days, now - 86_400 * op["days"])
        elif op["do"] == "delete":
            self.last = None


@dataclass
class World:
    """All that was told so far."""

    seed: int
    life: int = 0
    tables: dict[str, Table] = field(default_factory=lambda: {name: Table() for name in TABLES})
    reads: set[tuple[str, str, str, int, int]] = field(default_factory=set)
    checked: int = 0

    @property
    def now(self) -> datetime:
        return NOW + STEP * self.life

    def hear(self, told: dict[str, Any]) -> None:
        """Take in one line of a child."""
        at, name = self.now.timestamp(), told.get("table", "")
        if "begin" in told:
            self.tables[name].begin(told["begin"], at)
        elif "done" in told:
            table = self.tables[name]
            assert table.under_way is not None
            table.settle(table.under_way, told["done"], at)
        elif "lost" in told:  # the one that was under way has not happened
            self.tables[name].under_way = None
        elif "read" in told:
            self.reads.add((*told["read"], self.life))
        elif "forget" in told:
            self.reads = {fact for fact in self.reads if fact[0] not in told["forget"]}
        self.checked += "sound" in told

    def grow_old(self) -> None:
        """Go on to the next child, and forget what nobody needs to be able to read any more."""
        self.life += 1
        for table in self.tables.values():
            table.cutoff = max(table.cutoff, self.now.timestamp() - 86_400 * table.days)
            table.past = [past for past in table.past if past.at > table.cutoff]
        self.reads = set(random.Random(self.life).sample(sorted(self.reads), min(len(self.reads), 12)))


# A child


class Child:
    """One process that has the store open: it checks what it finds, and works on."""

    def __init__(self, folder: Path, world: World, pipe: int) -> None:
        self.folder, self.world, self.pipe = folder, world, pipe
        self.chance = random.Random(world.seed * 100_003 + world.life)
        self.clock = ManualClock(world.now)
        self.turn = threading.Lock()
        self.source = TableSource(canonical("bars_1d", calendar="XSHG", period="day"), bars(SYMBOLS, DAYS))

    def opened(self, *, calm: bool) -> Engine:
        chosen: dict[str, Any] = {"compact_segments": 10_000, "compact_idle_seconds": 3600, "vacuum_seconds": 1e9} if calm else {}
        folding = {"compact_segments": 3, "compact_idle_seconds": 0.01}
        size = {"memory": "4MiB", "query_memory": "64MiB", "threads": 1, "history_days": HISTORY_DAYS, "disk": "16KiB"}
        engine = open_engine(self.folder, [self.source], clock=self.clock, **{**folding, **size, **chosen})
        engine._parts.housekeeping.evicting.close()  # the quota is kept where the parent is told so
        return engine

    def say(self, **told: Any) -> None:
        """Tell the parent, in one write so that it arrives whole, and know it as well."""
        if "table" in told:
            self.world.hear(told)
        os.write(self.pipe, json.dumps(told).encode() + b"\n")

    def live(self) -> None:
        """Check, then work until killed."""
        if self.chance.random() < 0.3:
            with self.opened(calm=True) as engine:
                assert engine.store.orphans() == []
                self.check(engine)
        engine = self.opened(calm=False)
        self.check(engine)
        threads = [threading.Thread(target=self.guarded, args=(self.work, engine, name)) for name in TABLES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def look(self) -> None:
        """Check, and end."""
        with self.opened(calm=True) as engine:
            self.check(engine)

    def guarded(self, call: Callable[..., None], *given: Any) -> None:
        """End the process with a word on what went wrong, from whichever thread."""
        try:
            call(*given)
        except BaseException:  # noqa: BLE001  # whatever it is, the parent must learn of it
            sys.stderr.write(f"seed {self.world.seed}, life {self.world.life}\n{traceback.format_exc()}")
            sys.stderr.flush()
            os._exit(1)

    # What it must find

    def check(self, engine: Engine) -> None:
        assert engine.verify() == []
        for name, table in self.world.tables.items():
            self.check_table(engine, name, table)
        for symbol, first, last, generation, life in sorted(self.world.reads):
            kept = STEP * (self.world.life - life) < timedelta(days=HISTORY_DAYS)
            self.check_read(engine, symbol, date.fromisoformat(first), date.fromisoformat(last), generation if kept else None)
        assert self.source.requests == []
        self.say(sound=True)

    def check_table(self, engine: Engine, name: str, table: Table) -> None:
        held, generation = found(engine, name), engine.store.state(name).generation if name in engine.names() else 0
        if (op := table.under_way) is not None:
            happened = held == table.after(op) and (held != table.rows or op["do"] not in WRITES)
            assert happened or held == table.rows, f"{name}: {op} is half there: {held}, not {table.rows}"
            if op["do"] in WRITES and self.chance.random() < 0.5:
                self.say(table=name, done=self.send(engine, name, op))  # the same write again
            else:
                self.say(table=name, **({"done": generation} if happened else {"lost": True}))
        held = found(engine, name)
        assert held == table.rows, f"{name} holds {held}, not {table.rows}"
        self.check_past(engine, name, table)

    def check_past(self, engine: Engine, name: str, table: Table) -> None:
        """Compare the latest generations, and some of the others."""
        chosen = {past.generation: past for past in (*table.past[-3:], *self.chance.sample(table.past, min(len(table.past), 4)))}
        for past in chosen.values():
            try:
                assert found(engine, name, as_of=past.generation) == past.rows, f"{name} as of {past.generation}"
            except HistoryGone:
                assert past.at <= table.cutoff, f"{name} as of {past.generation} is gone"

    def check_read(self, engine: Engine, symbol: str, first: date, last: date, generation: int | None) -> None:
        want = expected(self.source.dataset, self.source.rows, [symbol], first, last)
        table, info = read_info(engine, symbols=symbol, start=first, end=last)
        assert info.upstream_calls == 0
        assert table.equals(want)
        assert read(engine, symbols=symbol, start=first, end=last, as_of=generation).equals(want)

    # What it does

    def work(self, engine: Engine, name: str) -> None:
        chance, table = random.Random(self.chance.random() + len(name)), self.world.tables[name]
        for number in range(1_000_000):
            what = chance.choice(OPERATIONS)
            if what == "fetch":
                self.fetch(engine, chance)
            elif what in ("forget", "evict"):
                self.forget(engine, chance.choice(SYMBOLS) if what == "forget" else None)
            elif table.rows is not None or what in WRITES:
                op = made(what, table, chance, f"{name}-{self.world.life}-{number}")
                self.say(table=name, begin=op)
                generation = self.send(engine, name, op)
                self.say(table=name, done=generation)
                if table.last is not None and chance.random() < 0.1:
                    assert self.send(engine, name, table.last), "what was acknowledged is acknowledged again"

    def fetch(self, engine: Engine, chance: random.Random) -> None:
        symbol, (first, last) = chance.choice(SYMBOLS), sorted(chance.sample(DAYS, 2))
        with self.turn:  # or the other thread's forgetting comes between reading and telling
            _, info = read_info(engine, symbols=symbol, start=first, end=last)
            self.say(read=[symbol, str(first), str(last), info.generation])

    def forget(self, engine: Engine, symbol: str | None) -> None:
        """Forget what was fetched of *symbol*; None: let go of what the quota has no room for."""
        with self.turn:
            self.say(forget=[symbol] if symbol else SYMBOLS)
            if symbol is None:
                engine.quota.work()
            else:
                engine.act(Action.INVALIDATE, {"dataset": "bars_1d", "symbols": [symbol]})

    def send(self, engine: Engine, name: str, op: Op) -> int:
        """Do *op*, and return the table's generation (0: not known)."""
        if op["do"] == "import":
            return self.bring_in(engine, name, op)
        if op["do"] in WRITES:
            mode = op["do"] if op["do"] != "evolve" else "upsert"
            asked = {"mode": mode, "keys": KEYS, "evolve": op["do"] == "evolve", "key": op["key"]}
            return write(engine, name, data_of(op), **asked).generation
        body = {"dataset": name, **({"history_days": op["days"]} if "days" in op else {})}
        engine.act(Action(op["do"]), body)
        return 0

    def bring_in(self, engine: Engine, name: str, op: Op) -> int:
        """Import the rows of *op* from a file, and return the table's generation."""
        kinds = {column: pa.int64() for row in op["rows"].values() for column in row}
        schema = pa.schema({"id": pa.string(), "day": pa.date32(), **kinds})
        path = self.folder.parent / f"{op['file']}.parquet"
        pq.write_table(pa.Table.from_pylist(data_of(op), schema=schema), path)
        run_import(engine, plan_import(engine, ImportRequest([path], name, keys=tuple(KEYS), time="day")))
        return engine.store.state(name).generation


def data_of(op: Op) -> list[Row]:
    """Return the rows that *op* writes."""
    return [{"id": key[:1], "day": date.fromisoformat(key[2:]), **row} for key, row in op["rows"].items()]


WRITES: Final = ("upsert", "append", "replace", "evolve", "import")

# What a child does, each as often as it stands here.
OPERATIONS: Final = (
    *(["upsert"] * 6),
    *(["append"] * 3),
    *(["fetch"] * 4),
    *(["compact"] * 2),
    *(["import"] * 2),
    *("replace", "evolve", "delete", "forget", "evict", "vacuum", "retention"),
)


def made(what: str, table: Table, chance: random.Random, key: str) -> Op:
    """Return an operation on *table* as it is."""
    if what in ("vacuum", "retention"):
        return {"do": what, "days": chance.choice([0.5, 2, 5] if what == "vacuum" else [3, 7])}
    if what not in WRITES:
        return {"do": what}
    held = table.rows or {}
    cells = [f"{name}|{day}" for name in "abcdef" for day in DAYS[:5]]
    free = [cell for cell in cells if cell not in held]
    if what == "append" and not free:
        what = "upsert"
    chosen = chance.sample(free if what == "append" else cells, min(len(free) if what == "append" else 9, chance.randrange(1, 6)))
    columns = list(table.columns) if table.rows is not None else ["x"]
    new = f"y{len(columns)}"
    if what == "evolve" and len(columns) < 4:
        columns.append(new)
    named = {"file": key} if what == "import" else {"key": key}
    return {"do": what, **named, "rows": {cell: {name: chance.randrange(1000) for name in columns} for cell in chosen}}


def found(engine: Engine, name: str, **asked: Any) -> Rows | None:
    """Return what the store holds of a table; None where there is none."""
    if name not in engine.names():
        return None
    rows = read(engine, name, **asked).to_pylist()
    keyed = {f"{row['id']}|{row['day']}": row for row in rows}
    assert len(keyed) == len(rows), f"{name} has a key twice"
    return {
        cell: {column: value for column, value in row.items() if column not in KEYS and value is not None}
        for cell, row in keyed.items()
    }


# The parent


class Forked:
    """A child of its own memory that does *live* with the end of a pipe, heard and killed from here."""

    def __init__(self, live: Callable[[int], None]) -> None:
        self._pipe, theirs = os.pipe()
        self._buffer = b""
        self._child = os.fork()
        if not self._child:
            os.close(self._pipe)
            _live(live, theirs)
        os.close(theirs)

    def lines(self, seconds: float = HANGS_SECONDS) -> Iterator[dict[str, Any]]:
        """Yield what it says until so much time has passed, or it ends."""
        until = time.monotonic() + seconds
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                yield json.loads(line)
            elif not select.select([self._pipe], [], [], max(until - time.monotonic(), 0))[0]:
                return
            elif more := os.read(self._pipe, 65536):
                self._buffer += more
            else:
                return

    def kill(self) -> list[dict[str, Any]]:
        """Kill it, and return what it had said before; nothing else may have ended it."""
        os.kill(self._child, signal.SIGKILL)
        return self.end(killed=True)

    def end(self, *, killed: bool = False) -> list[dict[str, Any]]:
        """Return what it says until its end, which must be a good one."""
        left = list(self.lines())
        _, status = os.waitpid(self._child, 0)
        os.close(self._pipe)
        assert status == 0 or (killed and os.WIFSIGNALED(status)), "a child ended by itself; what it said is above"
        return left


def _live(live: Callable[[int], None], pipe: int) -> NoReturn:
    faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
    status = 1
    try:
        live(pipe)
        status = 0
    except BaseException:  # noqa: BLE001  # a child must not go on as its parent would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_once(folder: Path, world: World, chance: random.Random) -> None:
    """Let one child live on the store for a random while."""
    child = Forked(lambda pipe: Child(folder, world, pipe).live())
    early = chance.random() < 0.2  # while it opens, or checks
    count, delay = (0, chance.random() * 0.2) if early else (chance.randrange(1, 30), chance.random() * 0.03)
    for _, told in zip(range(count), child.lines(), strict=False):
        world.hear(told)
    for told in child.lines(delay):
        world.hear(told)
    for told in child.kill():
        world.hear(told)
    world.grow_old()


def kill_an_upgrade(folder: Path, chance: random.Random, number: int) -> None:
    """Kill a child while it opens a store of an older format, and check what the next one finds."""
    store = folder / f"old-{number}"
    with tarfile.open(chance.choice(OLD_STORES)) as archive:
        archive.extractall(store, filter="data")
    child = Forked(lambda _pipe: look_at_old(store))
    list(child.lines(chance.random() * 0.12))
    child.kill()
    Forked(lambda _pipe: look_at_old(store)).end()


def look_at_old(store: Path) -> None:
    """Open a store of an older format, and check that it says what it said."""
    with open_engine(store, ["sim"], clock=ManualClock(NOW), query_memory="64MiB", threads=1) as engine:
        assert engine.verify() == []
        rows = [(row["id"], row["x"]) for row in read(engine, "mine").to_pylist()]
        assert rows == [("a", 5), ("a", 10), ("a", 3), ("b", 6), ("b", 2), ("b", 4)]
        asked: dict[str, Any] = {"symbols": ["000001.SZ", "600198.SH"], "start": date(2026, 10, 8), "end": date(2026, 10, 21)}
        assert read(engine, on_miss="error", **asked).num_rows == 20


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill so many children, every sixth in an upgrade; the last checks what is left."""
    exchange_calendars.get_calendar("XSHG")
    chance, world = random.Random(seed), World(seed)
    for number in range(kills):
        if number % 6 == 5:
            kill_an_upgrade(folder, chance, number)
        else:
            kill_once(folder / "store", world, chance)
    for told in Forked(lambda pipe: Child(folder / "store", world, pipe).look()).end():
        world.hear(told)
    rows = sum(len(table.rows or ()) for table in world.tables.values())
    sys.stdout.write(f"{kills} kills, {world.checked} times all was there, {rows} rows at the end\n")
    assert world.checked > kills / 3, "hardly any child came to check"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

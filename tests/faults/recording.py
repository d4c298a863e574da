"""What a store's files went through, step by step, and what its users were told meanwhile: a real workload, recorded."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from tests.conftest import NOW, SYMBOLS, TableSource, bars, read, weekdays, write

from fletching_schemas import Action, Dataset, canonical
from fletching_schemas.errors import InvalidRequest
from fletching_server import Engine, failpoints, open_engine
from fletching_server.testing import ManualClock
from fletching_server.volume import Operation, observed

DAYS: Final = weekdays(date(2026, 11, 2), date(2026, 11, 20))
TABLES: Final = ("mine", "yours")
CHECKPOINT_PAGES: Final = 12  # far fewer than the usual 1000, so that checkpoints are among the steps

Cell = tuple[str, date]
Rows = dict[Cell, int]
Generation = tuple[str, int]
Database = tuple[bytes, bytes | None]  # the database's file, and its write-ahead log


def daily_bars() -> Dataset:
    """Return the dataset that is filled."""
    return canonical("bars_1d", calendar="XSHG", period="month", symbols_per_call=2)


@dataclass(frozen=True)
class Transaction:
    """The catalogue's files before and after one COMMIT, or before and after they were closed."""

    before: Database
    after: Database


@dataclass(frozen=True)
class Told:
    """What users know at one moment: the rows of each table, versions of fetched cells, what tables were at generations.

    *next_tables* and *next_cells* are there while a change is under way: it may have happened, or not.
    """

    tables: dict[str, Rows]
    cells: dict[Cell, int]
    past: dict[Generation, Rows]
    next_tables: dict[str, Rows] | None = None
    fetching: int | None = None  # the version that arrives


@dataclass
class Recording:
    """The steps in order, and what users were told before each."""

    root: Path
    steps: list[Operation | Transaction] = field(default_factory=list)
    told: list[tuple[int, Told]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _before: Database = (b"", None)

    def add(self, step: Operation | Transaction) -> None:
        with self._lock:
            self.steps.append(step)

    def tell(self, told: Told) -> None:
        self.told.append((len(self.steps), told))

    def known_at(self, point: int) -> Told:
        """Return what users knew when *point* steps had been made."""
        return next(told for place, told in reversed(self.told) if place <= point)

    def database(self) -> Database:
        path = self.root / "catalogue.sqlite"
        log = path.with_name(path.name + "-wal")
        return path.read_bytes() if path.exists() else b"", log.read_bytes() if log.exists() else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record all changes of the files under the root, until the end."""
        sa.event.listen(sa.pool.Pool, "connect", _checkpoint_often)
        try:
            with observed(self.root, self.add), failpoints.doing("*", self._commits):
                yield
        finally:
            sa.event.remove(sa.pool.Pool, "connect", _checkpoint_often)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Record the block as one transaction: closing the catalogue checkpoints it."""
        before = self.database()
        yield
        self.add(Transaction(before, self.database()))

    def _commits(self, name: str) -> None:
        if name == "catalogue.commit":
            self._before = self.database()
        elif name == "catalogue.committed":
            self.add(Transaction(self._before, self.database()))


class Workload:
    """Fills, writes of each mode, deletes, folds, restatements and restarts, in an order that a seed decides."""

    def __init__(self, root: Path, seed: int) -> None:
        self.recording = Recording(root)
        self.chance = random.Random(seed)
        self.source = TableSource(daily_bars(), bars(SYMBOLS, DAYS))
        self.tables: dict[str, Rows] = {name: {} for name in TABLES}
        self.cells: dict[Cell, int] = {}
        self.past: dict[Generation, Rows] = {}
        self.version = 0
        self.history_days = self.chance.choice([0.0, 7.0])
        self.engine: Engine

    def run(self, count: int) -> Recording:
        """Return the recording of *count* verbs."""
        with ExitStack() as held:
            held.enter_context(self.recording.watching())
            self._tell()
            self.engine = opened(self.recording.root, self.source, history_days=self.history_days)
            verbs: list[Callable[[], None]] = [self._fill] * 5 + [self._write] * 9 + [self._fold] * 4
            verbs += [self._restate, self._delete, self._refuse, self._reopen, self._vacuum]
            for _ in range(count):
                self.chance.choice(verbs)()
            self._close()
        return self.recording

    def _tell(self, tables: dict[str, Rows] | None = None, fetching: int | None = None) -> None:
        self.recording.tell(Told(dict(self.tables), dict(self.cells), dict(self.past), tables, fetching))

    def _fill(self) -> None:
        symbols = self.chance.sample(SYMBOLS, self.chance.choice([1, 1, 2, 3]))
        first, last = sorted(self.chance.sample(DAYS, 2))
        self._tell(fetching=self.version)
        read(self.engine, symbols=symbols, start=first, end=last)
        for symbol in symbols:
            for day in weekdays(first, last):
                self.cells.setdefault((symbol, day), self.version)
        self._tell()

    def _write(self) -> None:
        name, mode = self.chance.choice(TABLES), self.chance.choice(["upsert", "upsert", "append", "replace"])
        held = {} if mode == "replace" else self.tables[name]
        size = self.chance.choice([1, 3, 30, 300])
        cells = {(f"{self.chance.randrange(12):02}", self.chance.choice(DAYS)) for _ in range(size)}
        fresh = {cell: self.chance.getrandbits(60) for cell in sorted(cells) if mode != "append" or cell not in held}
        if not fresh:
            return
        after = {**self.tables, name: {**held, **fresh}}
        self._tell(after)
        done = write(self.engine, name, _listed(fresh), mode=mode, keys=["id", "day"])
        self.tables = after
        if self.history_days:
            self.past[name, done.generation] = after[name]
        self._tell()

    def _refuse(self) -> None:
        """Write an append that is refused after its file was written."""
        name = self.chance.choice([name for name in TABLES if self.tables[name]] or [""])
        if name:
            with suppress(InvalidRequest):
                write(self.engine, name, _listed(dict(list(self.tables[name].items())[:5])), mode="append")

    def _fold(self) -> None:
        name = self.chance.choice([*TABLES, "bars_1d", "bars_1d"])
        if name in self.engine.names():
            self.engine.act(Action.COMPACT, {"dataset": name})

    def _vacuum(self) -> None:
        self.past = {}
        self._tell()
        self.engine.act(Action.VACUUM, {"history_days": 0})

    def _delete(self) -> None:
        name = self.chance.choice(TABLES)
        if name in self.engine.names():
            after = {**self.tables, name: {}}
            self.past = {generation: rows for generation, rows in self.past.items() if generation[0] != name}
            self._tell(after)
            self.engine.act(Action.DELETE, {"dataset": name})
            self.tables = after
            self._tell()

    def _restate(self) -> None:
        """Let the source change what it told, and forget what is held of it."""
        self.version += 1
        self.source.rows = dict(bars(SYMBOLS, DAYS, self.version))
        self.engine.act(Action.INVALIDATE, {"dataset": "bars_1d"})
        self.cells = {}
        self._tell()

    def _close(self) -> None:
        with self.recording.transaction():
            self.engine.close()

    def _reopen(self) -> None:
        self._close()
        self.engine = opened(self.recording.root, self.source, history_days=self.history_days)


def opened(root: Path, source: TableSource, **settings: Any) -> Engine:
    """Return an engine that does nothing in the background."""
    chosen = {
        "memory": "8MiB",
        "query_memory": "64MiB",
        "threads": 1,
        "compact_idle_seconds": 3600,
        "compact_segments": 10_000,
        "compact_settle_seconds": 1e9,
    }
    return open_engine(root, [source], clock=ManualClock(NOW), **{**chosen, **settings})


def _checkpoint_often(connection: Any, _record: object) -> None:
    sqlite3.Connection.cursor(connection).execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")


def _listed(rows: Rows) -> list[dict[str, Any]]:
    return [{"id": name, "day": day, "x": number} for (name, day), number in rows.items()]

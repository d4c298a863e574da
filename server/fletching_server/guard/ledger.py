"""What the guard remembers across restarts: requests sent, circuits, unknown symbols, functions that stopped; in SQLite.

A restart loop must not refill a budget, and a ban does not end because a server does. The requests of each family are a bucket
of pyrate-limiter; timestamps are milliseconds since 1970 of the clock that is passed in.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
from pyrate_limiter import AbstractBucket, Duration, InMemoryBucket, Rate, RateItem
from pyrate_limiter.buckets.sqlite_bucket import SQLiteBucket

from fletching_schemas.errors import StoreUnwritable
from fletching_server import disk
from fletching_server.clock import Clock
from fletching_server.guard.circuit import CLOSED, Circuit
from fletching_server.sources import Budget

log = structlog.get_logger(__name__)

HOUR, DAY = int(Duration.HOUR), int(Duration.DAY)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS circuits (family TEXT PRIMARY KEY, step INTEGER, retry_at REAL, since REAL, why TEXT);
CREATE TABLE IF NOT EXISTS remembered (kind TEXT, name TEXT, item TEXT, until REAL, message TEXT, PRIMARY KEY (kind, name, item));
"""


# The table's name is a number of ours: see _table_number.
_PUT_BACK: Final = "UPDATE {table} SET item_timestamp = ? WHERE item_timestamp > ?"
_COUNT: Final = "SELECT COUNT(*) FROM {table} WHERE item_timestamp > ?"


class Ledger:
    """The guard's memory. One connection, one lock: each call takes microseconds."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.RLock()
        self._connection = self._opened()
        self._buckets: dict[str, SQLiteBucket] = {}
        self._spacing: dict[str, InMemoryBucket] = {}

    def _opened(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if disk.refused(error):
                raise StoreUnwritable(
                    f"cannot open the guard's memory {self._path}: {error}; check permissions and free room"
                ) from error
            aside = self._path.with_name(f"{self._path.name}.damaged")
            with suppress(OSError):
                self._path.replace(aside)
            log.warning("the guard's memory is damaged; it begins anew", why=str(error), kept=str(aside))
            return _connect(self._path)

    @property
    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    # Requests

    def define(self, family: str, budget: Budget) -> None:
        """Keep the requests of *family* within *budget* from now on."""
        if budget.spacing_seconds > 0:
            self._spacing[family] = InMemoryBucket([Rate(1, max(1, int(budget.spacing_seconds * 1000)))])
        if not (rates := _rates(budget)):
            return
        with self._lock:
            number = _table_number(self._connection, family)
            table = f"requests_{number}"
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (name VARCHAR, item_timestamp INTEGER)")
            self._connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_time ON {table} (item_timestamp)")
            self._connection.commit()
            self._buckets[family] = SQLiteBucket(rates, self._connection, table)

    def pay(self, family: str, requests: int) -> tuple[float, int] | None:
        """Record *requests*, or return for how many seconds, and the interval (ms) of which budget, they do not fit.

        Several at once keep the pauses that whoever sends them keeps: only the hour and the day are charged.
        """
        with self._lock:
            now = self._now_ms
            if requests == 1 and (pause := self._pause(family, now)) is not None:
                return pause
            bucket = self._buckets.get(family)
            if bucket is None:
                return None
            # A clock that was put back must neither hide requests nor make us wait for the time it comes from.
            self._connection.execute(_PUT_BACK.format(table=bucket.table), (now, now))
            bucket.leak(now)
            return _refusal(bucket, RateItem(family, now, weight=requests))

    def _pause(self, family: str, now: int) -> tuple[float, int] | None:
        bucket = self._spacing.get(family)
        if bucket is None:
            return None
        if bucket.items and bucket.items[-1].timestamp > now:
            bucket.flush()
        bucket.leak(now)
        return _refusal(bucket, RateItem(family, now))

    def spent(self, family: str, window_ms: int) -> int:
        """Return how many requests were sent to *family* in the last *window_ms*."""
        with self._lock:
            bucket = self._buckets.get(family)
            if bucket is None:
                return 0
            since = (self._now_ms - window_ms,)
            return int(self._connection.execute(_COUNT.format(table=bucket.table), since).fetchone()[0])

    # Circuits

    def circuits(self) -> dict[str, Circuit]:
        """Return the circuits that were left open."""
        with self._lock:
            rows = self._connection.execute("SELECT family, step, retry_at, since, why FROM circuits").fetchall()
        return {family: Circuit(step, retry_at, since, probing=False, why=why) for family, step, retry_at, since, why in rows}

    def save(self, family: str, circuit: Circuit) -> None:
        """Remember *circuit*; a closed one needs no memory."""
        with self._lock:
            if circuit == CLOSED:
                self._connection.execute("DELETE FROM circuits WHERE family = ?", (family,))
            else:
                values = (family, circuit.step, circuit.retry_at, circuit.since, circuit.why)
                self._connection.execute("INSERT OR REPLACE INTO circuits VALUES (?, ?, ?, ?, ?)", values)
            self._connection.commit()

    # Answers that need not be asked for again soon

    def remember(self, kind: str, name: str, item: str, seconds: float, message: str) -> None:
        """Keep *message* about *item* of *name* for so long."""
        until = self._clock.now().timestamp() + seconds
        with self._lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO remembered VALUES (?, ?, ?, ?, ?)", (kind, name, item, until, message)
            )
            self._connection.commit()

    def remembered(self, kind: str, name: str, item: str, longest: float) -> tuple[float, str] | None:
        """Return until when, and what, is remembered; None where it is not, or no longer, or from a clock that was ahead."""
        query = "SELECT until, message FROM remembered WHERE kind = ? AND name = ? AND item = ?"
        with self._lock:
            row = self._connection.execute(query, (kind, name, item)).fetchone()
        now = self._clock.now().timestamp()
        return (row[0], row[1]) if row and now < row[0] <= now + longest else None

    def forget(self, kind: str, name: str, items: list[str] | None) -> None:
        """Forget what is remembered of *items* (None: all) of *name*."""
        with self._lock:
            self._connection.execute(
                "DELETE FROM remembered WHERE kind = ? AND name = ? AND ? IS NULL", (kind, name, items and "x")
            )
            for item in items or ():
                self._connection.execute("DELETE FROM remembered WHERE kind = ? AND name = ? AND item = ?", (kind, name, item))
            self._connection.commit()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_TABLES)
        connection.execute("CREATE TABLE IF NOT EXISTS families (number INTEGER PRIMARY KEY, family TEXT UNIQUE)")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _table_number(connection: sqlite3.Connection, family: str) -> int:
    """Return the number of the family's table: a name from a configuration does not become SQL."""
    connection.execute("INSERT OR IGNORE INTO families (family) VALUES (?)", (family,))
    return int(connection.execute("SELECT number FROM families WHERE family = ?", (family,)).fetchone()[0])


def _refusal(bucket: AbstractBucket, item: RateItem) -> tuple[float, int] | None:
    """Return the wait in seconds and the interval of the rate that refuses *item*; None where it was taken."""
    decision: Any = bucket.put_decision(item)
    if decision.allowed:
        return None
    interval = int(decision.failing_rate.interval)
    wait = decision.retry_after_ms
    return (interval if wait is None else wait) / 1000, interval


def _rates(budget: Budget) -> list[Rate]:
    """Return the windows of *budget*, the shorter first; an hour that the day implies is left out."""
    hour, day = budget.per_hour, budget.per_day
    if hour is not None and day is not None and hour >= day:
        hour = None
    if hour is not None and day is not None and hour * 24 <= day:
        day = None
    return [Rate(limit, interval) for limit, interval in ((hour, HOUR), (day, DAY)) if limit is not None]

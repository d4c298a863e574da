"""What left memory lately, with the numbers that decided it, for people who wonder why."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Final, NamedTuple

import pyarrow as pa
import structlog

log = structlog.get_logger(__name__)

MOST: Final = 100  # records, of some hundred bytes

_SCHEMA: Final = pa.schema(
    [
        ("at", pa.timestamp("us", "UTC")),
        ("lineage", pa.string()),
        ("key", pa.string()),
        ("bytes", pa.int64()),
        ("uses", pa.float64()),
        ("refill_seconds", pa.float64()),
        ("density", pa.float64()),
        ("made_room_for", pa.string()),
    ]
)


class Eviction(NamedTuple):
    """One entry that left: when, which, what the policy told of it, and the lineage it made room for."""

    at: float
    lineage: str
    key: str
    bytes: int
    told: dict[str, float]
    made_room_for: str


class Evictions:
    """The last evictions of one tier."""

    def __init__(self) -> None:
        self._kept: deque[Eviction] = deque(maxlen=MOST)
        self._unsaid: deque[Eviction] = deque(maxlen=MOST)

    def add(self, eviction: Eviction) -> None:
        """Record *eviction*; called under the tier's lock, so nothing is logged here."""
        self._kept.append(eviction)
        self._unsaid.append(eviction)

    def say(self) -> None:
        """Log what was recorded since the last time."""
        while self._unsaid:
            try:
                one = self._unsaid.popleft()
            except IndexError:  # said by somebody else
                return
            numbers = {name: round(value, 6) for name, value in one.told.items() if name != "bytes"}
            log.debug("evicted from memory", lineage=one.lineage, bytes=one.bytes, made_room_for=one.made_room_for, **numbers)

    def table(self) -> pa.Table:
        """Return a row per eviction, the newest first; *density* is null where the policy does not rank by it."""
        names = ("uses", "refill_seconds", "density")
        rows = [
            {**one._asdict(), "at": datetime.fromtimestamp(one.at, UTC), **{name: one.told.get(name) for name in names}}
            for one in reversed(tuple(self._kept))
        ]
        return pa.Table.from_pylist(rows, _SCHEMA)

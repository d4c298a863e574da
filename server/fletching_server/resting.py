"""Upstreams that failed and are left alone: for a minute at first, twice as long each time, or as long as they say themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from fletching_schemas.errors import Error
from fletching_server.clock import Clock
from fletching_server.desk import Desk

log = structlog.get_logger(__name__)

FIRST_SECONDS: Final = 60.0
MOST_SECONDS: Final = 3600.0
_TOLD: Final = 200  # characters of an error


@dataclass
class _Rest:
    """Until when, on the monotonic clock, how long that was, and why."""

    until: float
    seconds: float
    why: str


class Resting:
    """Which upstreams rest; one that answers again is forgotten."""

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk, self._clock = desk, clock
        self._by_lane: dict[str, _Rest] = {}

    def why(self, dataset: str) -> str:
        """Return why the upstream of *dataset* is not asked now; empty where it is."""
        rest = self._by_lane.get(self._lane(dataset))
        if rest is None or rest.until <= self._clock.monotonic():
            return ""
        return f"its upstream rests for {rest.until - self._clock.monotonic():,.0f} s more: {rest.why}"

    def _lane(self, dataset: str) -> str:
        return self._desk.lane(dataset) if self._desk.source(dataset) is not None else ""

    def failed(self, dataset: str, error: Error) -> None:
        """Leave the upstream of *dataset* alone, which is one line in the log, however long it lasts."""
        now, lane = self._clock.monotonic(), self._lane(dataset)
        known = self._by_lane.get(lane)
        seconds = min(known.seconds * 2, MOST_SECONDS) if known else FIRST_SECONDS
        if error.retry_at is not None:
            seconds = max(seconds, (error.retry_at - self._clock.now()).total_seconds())
        self._by_lane[lane] = _Rest(now + seconds, seconds, error.message[:_TOLD])
        if known is None:
            log.warning(
                "upstream fails: nothing is warmed from it until it answers again", upstream=lane, why=error.message[:_TOLD]
            )

    def answered(self, dataset: str) -> None:
        """Note that the upstream of *dataset* has answered."""
        if self._by_lane.pop(lane := self._lane(dataset), None) is not None:
            log.info("upstream answers again: what is expected is warmed from it", upstream=lane)

    def told(self) -> Iterator[str]:
        """Yield a line for each that rests."""
        for lane, rest in list(self._by_lane.items()):
            yield f"upstream {lane or 'none'} rests: {rest.why}"

    def __len__(self) -> int:
        """Return how many rest now."""
        return sum(rest.until > self._clock.monotonic() for rest in list(self._by_lane.values()))

"""What it takes to have a partition from memory, from Parquet and from upstream: a latency and a rate for each."""

from __future__ import annotations

from dataclasses import dataclass

_MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Seconds before the first byte, and megabytes a second from then on."""

    seconds: float
    megabytes_per_second: float

    def of(self, size: int) -> float:
        """Return the seconds that *size* bytes take."""
        return self.seconds + size / (self.megabytes_per_second * _MB)


@dataclass(frozen=True)
class Costs:
    """The three tiers; the defaults are those that the desk simulator assumes."""

    memory: Cost = Cost(0.002, 5000.0)
    disk: Cost = Cost(0.010, 600.0)
    upstream: Cost = Cost(1.5, 40.0)

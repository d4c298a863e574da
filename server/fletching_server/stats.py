"""Counters: what happened since the start, told as one small dictionary."""

from __future__ import annotations

import threading
from collections import Counter, deque

_LATENCIES_KEPT = 2048  # percentiles over the last reads; enough for a stable p99 without growing


class Stats:
    """Counters of one engine, safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def add(self, **amounts: float) -> None:
        """Add each named amount to its counter."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount  # type: ignore[assignment]  # Counter is typed for int only

    def read_took(self, milliseconds: float) -> None:
        """Record how long one read took from its request to the end of its stream."""
        with self._lock:
            self._latencies.append(milliseconds)

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and percentiles of the last reads in milliseconds."""
        with self._lock:
            counts, latencies = dict(self._counts), sorted(self._latencies)
        for name, share in (("read_ms_p50", 0.5), ("read_ms_p95", 0.95), ("read_ms_p99", 0.99)):
            counts[name] = round(latencies[int(share * (len(latencies) - 1))], 3) if latencies else 0.0  # type: ignore[assignment]
        return counts  # type: ignore[return-value]

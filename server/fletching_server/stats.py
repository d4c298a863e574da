"""Counters: what happened since the start, told as one small dictionary."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from fletching_schemas import ReadInfo

_LATENCIES_KEPT: Final = 2048  # percentiles over the last reads; enough for a stable p99 without growing
_PERCENTILES: Final = (("read_ms_p50", 0.5), ("read_ms_p95", 0.95), ("read_ms_p99", 0.99))

COUNTERS: Final[dict[str, str]] = {
    "reads": "Reads that ended.",
    "full_hits": "Reads that neither called a source nor waited for another's call.",
    "rows": "Rows answered.",
    "bytes": "Bytes answered, as Arrow.",
    "hot_rows": "Rows answered from memory.",
    "cold_rows": "Rows answered from Parquet.",
    "source_rows": "Rows answered that were fetched for the very read.",
    "upstream_calls": "Calls to sources.",
    "failed_fills": "Calls to sources that failed, or whose answer was refused.",
    "restated_rows": "Settled rows that came back from a source with other values.",
    "stale_reads": "Reads answered with older rows than the rule allows, because upstream could not be asked.",
    "partial_reads": "Reads answered without some of their symbols, because these could not be fetched.",
    "filled_rows": "Rows that sources delivered.",
    "fetch_seconds": "Time spent in sources.",
    "store_seconds": "Time spent checking, writing and committing what they delivered.",
    "calls": "Calls of functions through the call cache.",
    "call_hits": "Calls of functions that a kept answer served.",
    "logged_reads": "Reads in the access log, those included that are only counted there.",
    "unlogged_reads": "Reads left out of it: too many at once, or the disk refused.",
    "writes": "Writes into user tables.",
    "written_rows": "Rows of those writes.",
    "merged_segments": "Segments that became part of larger ones.",
    "merged_bytes": "Bytes of the segments that were written for this.",
    "folded_segments": "Segments folded into partitions.",
    "folded_bytes": "Bytes of the partitions that were written for this.",
    "evicted_files": "Files of fetched rows that left the disk because of its quota.",
    "evicted_bytes": "Bytes of those files.",
    "warm_tasks": "Expected reads that were made ready before anybody asked.",
    "warm_calls": "Calls to sources for these.",
    "warm_rows": "Rows that those calls brought.",
    "warm_bytes": "Bytes that were loaded into memory for these.",
    "warm_seconds": "Time spent on these, in the background.",
    "warm_failures": "Such calls that failed.",
    "scrubbed_files": "Files whose checksum the scrubber read again.",
    "scrubbed_bytes": "Bytes of those files.",
    "damaged_files": "Files that the scrubber found damaged.",
}


class Stats:
    """Counters of one engine, safe to use from any thread; every counter is there from the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def add(self, **amounts: float) -> None:
        """Add each named amount to its counter; ``KeyError`` for a counter that does not exist."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def read_ended(self, info: ReadInfo) -> None:
        """Count one read, and how long it took from its request to the end of its stream."""
        counts = self._counts
        with self._lock:
            self._latencies.append(info.milliseconds)
            counts["reads"] += 1
            counts["full_hits"] += not (info.upstream_calls or info.joined_calls)
            counts["rows"] += info.rows
            counts["bytes"] += info.bytes
            for tier, use in info.tiers.items():
                if use.rows:
                    counts[f"{tier}_rows"] += use.rows

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and percentiles of the last reads in milliseconds."""
        with self._lock:
            counts, latencies = dict(self._counts), sorted(self._latencies)
        for name, share in _PERCENTILES:
            counts[name] = round(latencies[int(share * (len(latencies) - 1))], 3) if latencies else 0.0
        return counts

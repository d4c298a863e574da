"""When a journal is merged and when it is folded: what a step costs, and whether that is worth it. Pure.

A *merge* makes one segment of a run of them, a *fold* writes anew all partitions that the journal touches. Both pay with
bytes that are written again. ``docs/storage.md`` says what that comes to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from fletching_schemas import Dataset
from fletching_server.calendars import from_day_number
from fletching_server.snapshot import DatasetState, StoredFile

FOLD_BYTES: Final = 256 << 20  # of segments in memory at once
FULL_BYTES: Final = 64 << 20  # this much in the journal is folded without waiting for a quiet moment, where it is worth it
WORTH: Final = 16.0  # so many bytes of partitions may be written for one of the journal, without waiting
FEW: Final = 4  # in a quiet moment so many segments are merged already


@dataclass(frozen=True)
class Rules:
    """How many segments are merged without waiting, and after how long what is cheap to fold is folded in any case."""

    fan_out: int = 16
    settle_seconds: float = 3600.0


def segments_of(state: DatasetState) -> list[StoredFile]:
    """Return the journal of one dataset, in commit order."""
    return sorted((file for file in state.files if file.kind == "segment"), key=lambda file: file.rank)


def prefix(segments: Sequence[StoredFile]) -> list[StoredFile]:
    """Return the oldest of *segments* that fit in memory together, at least one."""
    chosen: list[StoredFile] = []
    size = 0
    for segment in segments:
        size += segment.memory_bytes
        if chosen and size > FOLD_BYTES:
            break
        chosen.append(segment)
    return chosen


def cost(state: DatasetState, segments: Sequence[StoredFile]) -> float:
    """Return how many bytes of partitions folding *segments* writes again, at most, for each byte of theirs."""
    partitions = [file for file in state.files if file.kind == "partition"]
    touched = {file.id: file.bytes for segment in segments for file in _touched(state.dataset, segment, partitions)}
    return sum(touched.values()) / max(sum(segment.bytes for segment in segments), 1)


def _touched(dataset: Dataset, segment: StoredFile, partitions: Sequence[StoredFile]) -> Iterable[StoredFile]:
    first, last = (dataset.period_of(from_day_number(day)) for day in segment.reach)
    near = [file for file in partitions if first <= file.period <= last]  # periods are ISO dates, as far as they go
    if dataset.buckets == 1 or not near:
        return near
    buckets = {bucket_of(symbol, dataset.buckets) for symbol in segment.symbols}
    return [file for file in near if file.bucket in buckets]


def worth_folding(state: DatasetState, segments: Sequence[StoredFile], age: float, rules: Rules, *, quiet: bool) -> bool:
    """Return whether to fold the journal *segments* now, whose oldest rows were committed *age* seconds ago.

    What is cheap waits for a quiet moment, what is dear waits longer, and nothing waits that is as much as one step takes.
    """
    size = sum(segment.memory_bytes for segment in segments)
    if size >= FOLD_BYTES:
        return True
    if not quiet and size < FULL_BYTES and age < rules.settle_seconds:
        return False  # without working out what it costs: this is asked after every commit
    price = cost(state, segments)
    eager = quiet or size >= FULL_BYTES
    return (eager and price <= WORTH) or age >= rules.settle_seconds * max(1.0, price / WORTH)


def cheapest_run(segments: Sequence[StoredFile], least: int) -> Sequence[StoredFile]:
    """Return at least *least* neighbours among *segments* to make one of, the fewest bytes per file saved; none: not worth it.

    None of them may be more than half of the whole, or a third where *least* are many: so a byte that is written again is in
    a file of twice or three times the size at least.
    """
    growth = 3 if least > FEW else 2
    best, price = (0, 0), float("inf")
    for start in range(len(segments) - least + 1):
        size = memory = largest = 0
        for stop in range(start + 1, len(segments) + 1):
            last = segments[stop - 1]
            size, memory, largest = size + last.bytes, memory + last.memory_bytes, max(largest, last.bytes)
            if memory > FOLD_BYTES:
                break
            if stop - start >= least and size >= growth * largest and size < price * (stop - start - 1):
                best, price = (start, stop), size / (stop - start - 1)
    return segments[slice(*best)]


def bucket_of(symbol: str, buckets: int) -> int:
    """Return the bucket of *symbol*: xxh3 of its name, the same in every process and release."""
    return int(xxhash.xxh3_64_intdigest(symbol.encode()) % buckets)

"""What a memory could have answered whose owner knows the future: the yardstick at the end of the scale. Pure.

``belady`` is the optimum where all objects are of one size. Where they are not, finding the optimum is intractable, and two
figures enclose it: ``greedy`` can be reached, though not always with the fewest misses; ``ceiling`` cannot be exceeded, though
perhaps not reached. All of them may serve an object through without holding it, and none has anything before it was asked for.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


def next_uses(keys: Numbers) -> Numbers:
    """Return for each request when its key is asked for next, counted in requests; the number of requests: never."""
    order = np.argsort(keys, kind="stable")
    again = keys[order[1:]] == keys[order[:-1]]
    found = np.full(len(keys), len(keys), np.int64)
    found[order[:-1][again]] = order[1:][again]
    return found


def compulsory(keys: Numbers) -> Flags:
    """Return which requests an endless memory would answer: all but the first for each key."""
    flags = np.zeros(len(keys), bool)
    later = next_uses(keys)
    flags[later[later < len(keys)]] = True
    return flags


def belady(keys: Numbers, objects: int) -> Flags:
    """Return which requests are answered by a memory of *objects* that gives up what is wanted last.

    Uses to come are all different, so one number in the heap stands for its object. Numbers of objects that have been used
    since are smaller than all others, so none of them ever comes to the top.
    """
    hits, later = np.zeros(len(keys), bool), next_uses(keys).tolist()
    wanted: set[int] = set()  # when each object that is held is used next
    heap: list[int] = []
    for now, use in enumerate(later):
        if now in wanted:
            wanted.remove(now)
            hits[now] = True
        if use == len(later) or objects == 0:
            continue
        if len(wanted) == objects:
            if use > -heap[0]:
                continue
            wanted.remove(-heapq.heappop(heap))
        wanted.add(use)
        heapq.heappush(heap, -use)
        if len(heap) > 4 * len(wanted) + 64:  # mostly uses of the past
            heap = [-each for each in wanted]
            heapq.heapify(heap)
    return hits


def greedy(keys: Numbers, sizes: Numbers, max_bytes: int) -> Flags:
    """Return which requests are answered by holding, from one use to the next, what takes the fewest bytes for the shortest time.

    A gap between two uses is kept where there still is room all the way through; each asks for a look at that stretch only.
    """
    starts, ends, taken = _gaps(keys, sizes, max_bytes)
    hits, used = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    order = np.argsort(taken * (ends - starts), kind="stable")
    for start, end, size in zip(starts[order].tolist(), ends[order].tolist(), taken[order].tolist(), strict=True):
        stretch = used[start:end]
        if stretch.max() + size <= max_bytes:
            stretch += size
            hits[end] = True
    return hits


def ceiling(keys: Numbers, sizes: Numbers, max_bytes: int, worth: np.ndarray[tuple[int], np.dtype[Any]] | None = None) -> float:
    """Return what the answered requests of no memory of *max_bytes* can be worth together (default: 1 each, their number).

    To answer a request from memory takes its bytes times the requests since the use before; a memory has its bytes times all
    requests to spend. Spending them on the best first, whenever they are, the last one in part, is at least the optimum.
    """
    starts, ends, taken = _gaps(keys, sizes, max_bytes)
    values = np.ones(len(ends)) if worth is None else np.asarray(worth, np.float64)[ends]
    prices = (taken * (ends - starts)).astype(np.float64)
    order = np.argsort(prices / np.maximum(values, 1e-300), kind="stable")
    spent = np.cumsum(prices[order])
    whole = int(np.searchsorted(spent, float(max_bytes) * len(keys), "right"))
    total = float(values[order][:whole].sum())
    if whole < len(order):
        left = float(max_bytes) * len(keys) - (spent[whole - 1] if whole else 0.0)
        total += float(values[order[whole]] * left / prices[order[whole]])
    return total


def _gaps(keys: Numbers, sizes: Numbers, max_bytes: int) -> tuple[Numbers, Numbers, Numbers]:
    """Return between which uses something could be held, and its bytes: those of its last use before."""
    ends = next_uses(keys)
    starts = np.flatnonzero((ends < len(keys)) & (sizes <= max_bytes))
    return starts, ends[starts], sizes[starts]

"""What goes wrong with a tidy desk: data that come late, and keys in which there is nothing to learn."""

from __future__ import annotations

import numpy as np

from benchmarks.desk.profiles import Late
from benchmarks.desk.requests import Rows
from benchmarks.desk.sessions import MINUTE, Numbers, Sessions
from benchmarks.desk.universe import Universe

Generator = np.random.Generator
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


def postpone(rows: Rows, told: Late, sessions: Sessions, datasets: list[str], chance: Generator) -> None:
    """Move reads of data that are not there yet behind their arrival; what else the request wanted is read in time."""
    arrives = np.tile(sessions.closes + int(told.settle_minutes * MINUTE), (len(datasets), 1))
    for dataset in told.datasets:
        late = chance.random(len(sessions.closes)) < told.share
        hours = chance.uniform(*told.hours, len(sessions.closes))
        arrives[datasets.index(dataset)] += np.where(late, hours * 60 * MINUTE, 0).astype(np.int64)
    there = np.where(rows.session >= 0, arrives[rows.dataset, rows.session], 0)
    early = rows.at < there
    numbers, inverse = np.unique(rows.request[early], return_inverse=True)
    pauses = (chance.uniform(*told.comes_back_minutes, len(numbers)) * MINUTE).astype(np.int64)
    rows.at[early] = there[early] + pauses[inverse]
    rows.request[early] = rows.request.max() + 1 + inverse


def scatter(rows: Rows, chosen: Flags, universe: Universe, sessions: Sessions, *, daily: bool, chance: Generator) -> None:
    """Exchange the keys of *chosen* reads for random ones of the same dataset: each key once a day, or every read by itself."""
    chosen = chosen & (rows.dataset <= 1)
    day = np.searchsorted(sessions.midnights, rows.at[chosen], "right") - 1
    keys = np.stack([day, rows.dataset[chosen], rows.bucket[chosen], rows.session[chosen]])
    which = np.unique(keys, axis=1, return_inverse=True)[1].ravel() if daily else np.arange(keys.shape[1])
    count = int(which.max(initial=-1)) + 1
    buckets = np.where(keys[1] == 0, universe.profile.symbols, universe.profile.sectors)
    rows.bucket[chosen] = (chance.random(count)[which] * buckets).astype(np.int64)
    rows.session[chosen] = (chance.random(count)[which] * day).astype(np.int64)


def interactive(profiles: Numbers, names: list[str]) -> Flags:
    """Return which rows somebody waits for."""
    return np.array([name != "backtesting" for name in names])[profiles]

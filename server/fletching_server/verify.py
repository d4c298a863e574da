"""Checking a store end to end: every file, every checksum, every fact of coverage; nothing is changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import numpy as np

from fletching_schemas.errors import StoreError, UnknownDataset
from fletching_server.admission import check_unique
from fletching_server.almanac import Calendars
from fletching_server.calendars import from_day_number
from fletching_server.cold import ColdTier
from fletching_server.image import Image
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import FINAL
from fletching_server.store import DamagedFile, Store
from fletching_server.tiers import bucket_of


def problems_of(store: Store, cold: ColdTier, calendars: Calendars) -> list[str]:
    """Return what is wrong with *store*, one sentence each; an empty list is the good answer."""
    found = list(store.catalogue.integrity())
    for name in [state.dataset.name for state in store.catalogue.states()]:
        with suppress(UnknownDataset), store.pinned(name) as state:  # it may be folded or deleted while it is checked
            found += _dataset_problems(store, cold, calendars, state)
    return found


def _dataset_problems(store: Store, cold: ColdTier, calendars: Calendars, state: DatasetState) -> Iterator[str]:
    yield from _twice(state)
    sessions: dict[str, list[np.ndarray]] = defaultdict(list)
    readable = True
    for file in state.files:
        try:
            store.verify(file)
            image = cold.whole(state.dataset, file)
            yield from _file_problems(state, file, image)
        except (DamagedFile, StoreError, ValueError) as error:
            readable = False
            yield str(error)
        else:
            for symbol, (start, stop) in image.runs.items():
                sessions[symbol].append(np.unique(image.sessions[start:stop]))
    yield from _overlapping_facts(state)
    if readable and not state.is_table and state.dataset.calendar:
        yield from _unfounded_facts(state, calendars, sessions)


def _twice(state: DatasetState) -> Iterator[str]:
    targets = Counter((file.period, file.bucket) for file in state.files if file.kind == "partition")
    for (period, bucket), count in targets.items():
        if count > 1:
            yield f"{state.dataset.name}: partition {period}/{bucket} has {count} generations at once"


def _file_problems(state: DatasetState, file: StoredFile, image: Image) -> Iterator[str]:
    told = (file.rows, file.first_day, file.last_day, file.symbols)
    # A fill names the symbols that were asked: some may have no rows.
    named = file.symbols if file.asked and set(image.symbols) <= set(file.symbols) else image.symbols
    if told != (image.table.num_rows, *image.days, named):
        yield f"{file.path}: the catalogue's rows, sessions or symbols are not the file's"
    check_unique(state.dataset, image.table, StoreError, file.path)
    if file.kind == "partition":
        periods = {state.dataset.period_of(from_day_number(int(day))) for day in np.unique(image.sessions)}
        buckets = {bucket_of(symbol, state.dataset.buckets) for symbol in image.symbols}
        if not periods <= {file.period} or not buckets <= {file.bucket}:
            yield f"{file.path}: holds rows of {sorted(periods)}, buckets {sorted(buckets)}"


def _overlapping_facts(state: DatasetState) -> Iterator[str]:
    for symbol, spans in state.coverage.items():
        for one, other in pairwise(spans):
            if one.last >= other.first:
                yield f"{state.dataset.name}: two facts cover {symbol} on {from_day_number(other.first)}"


def _unfounded_facts(state: DatasetState, calendars: Calendars, sessions: dict[str, list[np.ndarray]]) -> Iterator[str]:
    """Tell cells that are called final, with rows, but have none."""
    calendar = calendars.get(state.dataset.calendar)
    for symbol, spans in state.coverage.items():
        held = np.concatenate(sessions[symbol]) if sessions.get(symbol) else np.array([], dtype=np.int32)
        for span in spans:
            if span.state != FINAL or span.reason:
                continue
            due = calendar.between(span.first, span.last)
            due = due[calendar.knows(due)]  # a holiday that nobody has announced yet looks like a session
            missing = due[~np.isin(due, held)]
            if len(missing):
                first = from_day_number(int(missing[0]))
                yield f"{state.dataset.name}: {symbol} counts as held on {len(missing)} sessions without rows, first {first}"

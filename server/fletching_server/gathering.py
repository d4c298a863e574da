"""Rows that are held, as one table: for whoever compares them with what comes in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pyarrow as pa

from fletching_schemas import Dataset, ReadInfo
from fletching_server.cold import ColdTier
from fletching_server.hot import HotTier
from fletching_server.image import Image, Window
from fletching_server.pieces import Run, Tally, pieces, slices
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Days


class Gathering:
    """The held rows of some cells, merged over all files that have any."""

    def __init__(self, hot: HotTier, cold: ColdTier) -> None:
        self._hot, self._cold = hot, cold

    def rows(self, state: DatasetState, symbols: Sequence[str], days: Days) -> pa.Table:
        """Return the rows of *symbols* (sorted) in *days*, sorted by key; *state* must be pinned. ``DamagedFile`` passes."""
        dataset, window = state.dataset, Window(days.first, days.last)
        names = tuple(dataset.schema.names)
        near = [file for file in state.files if file.reach.first <= days.last and file.reach.last >= days.first]
        with ExitStack() as held:
            runs = [self._run(state, file, symbols, window, held) for file in near if file.share_of(symbols) > 0]
            tally = Tally(ReadInfo(dataset.name), names, {})
            parts = list(slices(pieces(dataset, symbols, window, runs), tally))
            return pa.concat_tables([dataset.schema.empty_table(), *parts])

    def whole(self, dataset: Dataset, file: StoredFile) -> Image:
        """Return all rows of *file*, which must be pinned; what is read for this does not stay in memory."""
        lease = self._hot.peek(self._hot.item(file))
        if lease is None:
            return self._cold.whole(dataset, file)
        with lease:
            return lease.image

    def _run(self, state: DatasetState, file: StoredFile, symbols: Sequence[str], window: Window, held: ExitStack) -> Run:
        lease = self._hot.peek(self._hot.item(file))
        if lease is None:
            image = self._cold.select(state.dataset, file, symbols, window, state.dataset.schema.names)
            return Run(image, "cold", file.rank, file)
        held.callback(lease.release)
        return Run(lease.image, "hot", file.rank, file)

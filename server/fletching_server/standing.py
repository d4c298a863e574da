"""What still counts of older rows, where later fills asked for their cells. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl

from fletching_schemas import Dataset
from fletching_server.image import Image, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days

AskedCells = dict[str, list[tuple[Days, int]]]


def asked_cells(segments: Sequence[StoredFile]) -> AskedCells:
    """Return, per symbol, the sessions that fills asked for, with their ranks."""
    asked: AskedCells = defaultdict(list)
    for segment in segments:
        for symbol, days, rank in segment.asked_cells():
            asked[symbol].append((days, rank))
    return asked


def standing(dataset: Dataset, image: Image, rank: int, asked: AskedCells) -> Image:
    """Return the rows of *image* in cells that no fill above *rank* asked for: what that did not bring again is no more."""
    keep = np.ones(image.table.num_rows, dtype=bool)
    for symbol, (start, stop) in image.runs.items():
        days = image.sessions[start:stop]
        for cells, above in asked.get(symbol, ()):
            if above > rank and cells.first <= days[-1] and cells.last >= days[0]:
                keep[start + days.searchsorted(cells.first) : start + days.searchsorted(cells.last, "right")] = False
    if keep.all():
        return image
    rows = pl.DataFrame(pl.from_arrow(image.table)).filter(pl.Series(keep))
    return build_image(dataset, rows.to_arrow(compat_level=pl.CompatLevel.newest()).cast(image.table.schema))

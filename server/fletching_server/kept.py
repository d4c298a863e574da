"""Adjusted prices that are likely wanted again: columns in the hot tier, within its budget, beside the raw rows they belong to.

Only the prices are kept, in buffers of their own: a view of a stored file's other columns would hold on to bytes that the tier
has let go. Whoever reads them again puts them into the raw rows, which are views themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from fletching_server.adjustment import with_prices
from fletching_server.hot import HotTier
from fletching_server.image import unindexed_image

# Returns the changed prices of the next rows of an answer.
Pricing = Callable[[pa.Table], Mapping[str, pa.Array | pa.ChunkedArray]]

_MOST_SHARE = 8  # an answer's prices are kept where they take at most this part of the tier's budget


class KeptPrices:
    """The prices of an answer that were kept, row by row as its raw rows come."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self._names, self._next = table, table.column_names, 0

    def __call__(self, rows: pa.Table) -> Mapping[str, pa.ChunkedArray]:
        """Return the prices of *rows*, which follow those asked for before."""
        start, count = self._next, rows.num_rows
        self._next += count
        found = self._table if count == self._table.num_rows else self._table.slice(start, count)
        return dict(zip(self._names, found.columns, strict=True))


class Keeper:
    """The prices of an answer that *pricing* works out; ``keep`` holds them in memory under *key* once all rows have passed."""

    def __init__(self, pricing: Pricing, prices: list[str], hot: HotTier, key: str) -> None:
        self._pricing, self._prices, self._hot, self._key = pricing, prices, hot, key
        self._parts: list[pa.Table] = []
        self._changed: set[str] = set()
        self._room = hot.max_bytes // _MOST_SHARE

    def __call__(self, rows: pa.Table) -> Mapping[str, pa.Array | pa.ChunkedArray]:
        """Return the changed prices of *rows*, and remember them."""
        found = self._pricing(rows)
        if self._room >= 0:
            part = with_prices(rows, found).select(self._prices)
            self._parts.append(part)
            self._changed.update(found)
            self._room -= part.nbytes
        return found

    def keep(self) -> None:
        """Hold what has passed, where something was changed and it is not too large."""
        names = [name for name in self._prices if name in self._changed]
        if names and self._room >= 0:
            together = pa.concat_tables(self._parts).select(names)
            # One part with a change has new buffers in every column of it; several are copied together.
            image = unindexed_image(together.combine_chunks())
            self._hot.offer(self._hot.other(self._key, image.nbytes), image)

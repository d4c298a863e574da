"""What a source must do. Users' own sources implement this; nothing needs to be inherited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pyarrow as pa

from fletching_schemas import Dataset, FetchRequest


@runtime_checkable
class Source(Protocol):
    """Where missing rows come from.

    ``fetch`` returns ONLY rows of the symbols and sessions asked for (a dataset with ``range_pushdown=False`` may return
    a symbol's whole history), sorted by symbol, time and the remaining keys, unique by key, with the dataset's columns.
    Nullable columns may be left out. A row missing from the answer means "there is nothing for that cell", and that
    is remembered: trouble must be raised (any exception), never returned as an empty table. ``fetch`` is called from
    several threads at once, unless the source has an attribute ``concurrent_calls`` that allows fewer. A method ``close``
    is called when the cache closes.
    """

    name: str

    def datasets(self) -> Sequence[Dataset]:
        """Return what this source offers; asked once, when the server starts."""
        ...

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the rows of the asked symbols and sessions (both ends inclusive)."""
        ...


@runtime_checkable
class SymbolLister(Protocol):
    """A source that can also say which symbols it has: needed for reads that name none, and to tell unknown ones."""

    def symbols(self, dataset: str) -> Sequence[str]:
        """Return the canonical symbols of *dataset*, in any order."""
        ...

"""What a piece of an input holds before anything of it is judged: its columns, and the records that are no rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

Positions = np.ndarray[tuple[int], np.dtype[np.uint32]]


class Bad(NamedTuple):
    """A record that cannot be imported: its place in the chunk (from 0), why, and its text."""

    place: int
    reason: str
    text: str


@dataclass(frozen=True)
class Raw:
    """The rows of a chunk as columns of the source, with the *bad* records between them; ``records`` counts both.

    Where values were already converted while they were read, *as_text* reads them again as they were written.
    """

    frame: pl.DataFrame
    records: int
    bad: Sequence[Bad] = field(default=())
    as_text: Callable[[], Raw] | None = None

    @classmethod
    def of_table(cls, table: pa.Table) -> Raw:
        """Return the rows of *table*, of which none is bad yet."""
        return cls(pl.DataFrame(pl.from_arrow(_plain(table))), table.num_rows)

    @property
    def places(self) -> Positions:
        """The place in the chunk of each row, from 0."""
        every = np.arange(self.records, dtype=np.uint32)
        return np.delete(every, [bad.place for bad in self.bad]) if self.bad else every


def _plain(table: pa.Table) -> pa.Table:
    """Return *table* with dictionaries decoded: categories of Polars are global, and would stay for ever."""
    fields = [item.with_type(item.type.value_type) if pa.types.is_dictionary(item.type) else item for item in table.schema]
    return table.cast(pa.schema(fields)) if fields != list(table.schema) else table


def row_text(values: Sequence[Any]) -> str:
    """Return a row as text, as the rejects show it."""
    return ",".join("" if value is None else str(value) for value in values)

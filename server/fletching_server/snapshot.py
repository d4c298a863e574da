"""What the store holds at one moment, as immutable values: files, coverage, and the dataset they belong to. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from fletching_schemas import Dataset
from fletching_server.spans import Days, Span, Spans

FileKind = Literal["segment", "partition"]


@dataclass(frozen=True)
class StoredFile:
    """One immutable Parquet file: a *segment* of the journal, or a *partition*'s present generation.

    ``seq`` is the commit that brought it: where keys collide, a segment of a later commit wins, and any segment wins over
    a partition. ``memory_bytes`` is what its rows take as Arrow. Days are day numbers of sessions.

    A fill's segment stands for all cells that were *asked*: ``symbols`` are the asked ones, and rows of older files in
    these cells count no more, because the source may have taken them back.
    """

    id: str
    dataset: str
    kind: FileKind
    period: str
    bucket: int
    path: str
    digest: str
    bytes: int
    memory_bytes: int
    rows: int
    first_day: int
    last_day: int
    symbols: tuple[str, ...] = field(repr=False)
    seq: int = 0
    asked_first: int | None = None
    asked_last: int | None = None

    @property
    def asked(self) -> Days | None:
        """The sessions that a fill asked for; None for what users wrote, and for partitions."""
        return None if self.asked_first is None or self.asked_last is None else Days(self.asked_first, self.asked_last)

    @property
    def reach(self) -> Days:
        """The sessions of which the file says something, with rows or without."""
        asked = self.asked
        if asked is None or not self.rows:
            return asked or Days(self.first_day, self.last_day)
        return Days(min(self.first_day, asked.first), max(self.last_day, asked.last))

    def has(self, symbol: str) -> bool:
        """Return whether it says anything of *symbol*."""
        place = bisect_left(self.symbols, symbol)
        return place < len(self.symbols) and self.symbols[place] == symbol

    def share_of(self, symbols: Sequence[str]) -> float:
        """Return which share of its symbols is among *symbols*."""
        if len(symbols) < len(self.symbols):
            common = sum(self.has(symbol) for symbol in symbols)
        else:
            common = len(set(symbols) & set(self.symbols))
        return common / max(len(self.symbols), 1)

    @property
    def rank(self) -> int:
        """The order in which files override each other."""
        return self.seq if self.kind == "segment" else 0


@dataclass(frozen=True)
class Fact:
    """What a fill learned about one symbol, resting on *file* (None: nothing was there, so no file holds it)."""

    symbol: str
    span: Span
    file: str | None


class Life(NamedTuple):
    """When a symbol was listed and when it traded last, as day numbers; None: not known, or still listed."""

    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class DatasetState:
    """One dataset at one moment: its files and its coverage."""

    dataset: Dataset
    source: str | None
    files: tuple[StoredFile, ...] = ()
    coverage: Mapping[str, Spans] = field(default_factory=dict)
    generation: int = 0

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """All symbols of which anything is held or known, sorted; worked out once per picture, as every whole read asks."""
        return tuple(sorted(set(self.coverage).union(*(file.symbols for file in self.files))))

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What was worked out from this picture alone, by who works it out; it ends with the picture."""
        return {}

    @property
    def is_table(self) -> bool:
        """Whether users write it: it has no source, and nothing of it can be fetched again."""
        return self.source is None

"""What the store holds at one moment, as immutable values: files, coverage, and the dataset they belong to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fletching_schemas import Dataset
from fletching_server.spans import Span, Spans

FileKind = Literal["segment", "partition"]


@dataclass(frozen=True)
class StoredFile:
    """One immutable Parquet file: a *segment* of the journal, or a *partition*'s present generation.

    ``seq`` is the commit that brought it: where keys collide, a segment of a later commit wins, and any segment wins over
    a partition. ``memory_bytes`` is what its rows take as Arrow. Days are day numbers of sessions.
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


@dataclass(frozen=True)
class DatasetState:
    """One dataset at one moment: its files and its coverage."""

    dataset: Dataset
    source: str | None
    files: tuple[StoredFile, ...] = ()
    coverage: Mapping[str, Spans] = field(default_factory=dict)
    generation: int = 0

    @property
    def is_table(self) -> bool:
        """Whether users write it: it has no source, and nothing of it can be fetched again."""
        return self.source is None

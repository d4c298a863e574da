"""What the store holds at one moment, as immutable values: files, coverage, and the dataset they belong to. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from fletching_schemas import Dataset
from fletching_server.spans import Days, Span, Spans

FileKind = Literal["segment", "partition"]


class Asked(NamedTuple):
    """Cells that a fill asked for: of these symbols (None: all of the file's), the sessions from *first* to *last*.

    *rank* is that of the fill, where the file has become part of a larger one; 0: the file's own.
    """

    first: int
    last: int
    symbols: tuple[str, ...] | None = None
    rank: int = 0

    @property
    def days(self) -> Days:
        """The sessions."""
        return Days(self.first, self.last)


@dataclass(frozen=True)
class StoredFile:
    """One immutable Parquet file: a *segment* of the journal, or a *partition*'s present generation.

    ``seq`` is the commit that brought it. Where keys collide the file of the higher ``rank`` wins: a segment has that of its
    first commit, a merged one the highest of those it was merged from, a partition 0. ``memory_bytes`` is what its rows take
    as Arrow. Days are day numbers of sessions.

    A fill's segment stands for all cells that were ``asked``: ``symbols`` are the asked ones, and rows of older files in
    these cells count no more, because the source may have taken them back.

    ``shape`` counts the changes of the dataset's columns before it was written, ``read_shape`` those before it is read: where
    they differ its rows are brought up to the dataset's columns as they are read. ``retired`` is the commit since which only
    the past refers to it. ``since`` is the lowest rank of those it was merged from, 0 where it was not: it has all rows of the
    ranks from there to its own. ``hidden`` are cells whose rows count not, because it is read as of a commit before theirs.
    """

    id: str  # begins with the instant of writing, so that ids are in that order
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
    rank: int = 0
    asked: tuple[Asked, ...] = ()
    shape: int = 0
    read_shape: int = 0
    since: int = 0
    retired: int | None = None
    hidden: tuple[Asked, ...] = ()
    through: str = ""

    @property
    def place(self) -> str:
        """Where its rows stand among those of others, in the order of writing: the id of the last file that went into it."""
        return self.through or self.id

    @property
    def key(self) -> str:
        """What names its rows as they are read, in memory and to clients: never used for other rows."""
        return self.id if self.shape == self.read_shape else f"{self.id}.{self.read_shape}"

    @property
    def lineage(self) -> str:
        """What is asked for again whatever its generation: the partition; what lies in the journal is its own."""
        return f"{self.dataset}/{self.period}/{self.bucket}" if self.kind == "partition" else self.key

    @property
    def reach(self) -> Days:
        """The sessions of which the file says something, with rows or without."""
        ends = [cells.days for cells in self.asked] + ([Days(self.first_day, self.last_day)] if self.rows else [])
        if not ends:
            return Days(self.first_day, self.last_day)
        return Days(min(days.first for days in ends), max(days.last for days in ends))

    @property
    def lowest(self) -> int:
        """The lowest rank of which it has rows."""
        return self.since or self.rank

    @property
    def tells_ranks(self) -> bool:
        """Whether it was merged and yet tells which rows came with which commit: it can be read as of any of them."""
        return bool(self.since and self.asked and self.asked[0].rank)

    def asked_cells(self) -> Iterator[tuple[str, Days, int]]:
        """Yield what fills asked for: symbol, sessions, and the fill's rank."""
        for cells in self.asked:
            for symbol in self.symbols if cells.symbols is None else cells.symbols:
                yield symbol, cells.days, cells.rank or self.rank

    def asked_of(self, symbol: str) -> Sequence[tuple[Days, int]]:
        """Return what fills asked for of one symbol: sessions, with the fill's rank."""
        return self._asked_by_symbol.get(symbol, ())

    def hidden_of(self, symbol: str) -> Sequence[Days]:
        """Return the sessions of one symbol whose rows do not count."""
        return self._hidden_by_symbol.get(symbol, ()) if self.hidden else ()

    @cached_property
    def _asked_by_symbol(self) -> dict[str, list[tuple[Days, int]]]:
        """Worked out once, as a merged file has as many entries as there were fills."""
        found: dict[str, list[tuple[Days, int]]] = {}
        for symbol, days, rank in self.asked_cells():
            found.setdefault(symbol, []).append((days, rank))
        return found

    @cached_property
    def _hidden_by_symbol(self) -> dict[str, list[Days]]:
        found: dict[str, list[Days]] = {}
        for cells in self.hidden:
            for symbol in cells.symbols or self.symbols:
                found.setdefault(symbol, []).append(cells.days)
        return found

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


@dataclass(frozen=True)
class Fact:
    """What a fill learned about one symbol, resting on *file* (None: nothing was there, so no file holds it)."""

    symbol: str
    span: Span
    file: str | None

    def told(self) -> list[Any]:
        """Return the fact as a file's footer tells it."""
        return [self.symbol, *self.span]


class Life(NamedTuple):
    """When a symbol was listed and when it traded last, as day numbers; None: not known, or still listed."""

    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class DatasetState:
    """One dataset at one moment: its files and its coverage. ``shape`` counts the changes of its columns so far."""

    dataset: Dataset
    source: str | None
    files: tuple[StoredFile, ...] = ()
    coverage: Mapping[str, Spans] = field(default_factory=dict)
    generation: int = 0
    shape: int = 0

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

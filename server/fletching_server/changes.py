"""What a commit can do: each change says what it does to the database and to the picture in memory, side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server import tables as t
from fletching_server.restatement import Restated
from fletching_server.snapshot import DatasetState, Fact, StoredFile
from fletching_server.spans import Adjacent, Days, Span, Spans, overlay, without


def _known(state: DatasetState | None, dataset: str) -> DatasetState:
    if state is None:
        raise LookupError(f"{dataset} was deleted while this was being committed")
    return state


def _insert_facts(connection: sa.Connection, dataset: str, facts: Iterable[Fact], seq: int) -> None:
    rows = [
        {
            "dataset": dataset,
            "symbol": fact.symbol,
            "first_day": fact.span.first,
            "last_day": fact.span.last,
            "state": fact.span.state,
            "reason": fact.span.reason,
            "fetched_at": fact.span.fetched_at,
            "file": fact.file,
            "seq": seq,
        }
        for fact in facts
    ]
    if rows:
        connection.execute(t.coverage.insert(), rows)


def _cover(coverage: dict[str, Spans], facts: Iterable[Fact], adjacent: Adjacent) -> dict[str, Spans]:
    fresh: dict[str, list[Span]] = defaultdict(list)
    for fact in facts:
        fresh[fact.symbol].append(fact.span)
    return coverage | {symbol: overlay(coverage.get(symbol, ()), new, adjacent) for symbol, new in fresh.items()}


@dataclass(frozen=True)
class Define:
    """Record a dataset, or what its source promises of it now; ``LookupError`` where a *new* one is there already."""

    definition: Dataset
    source: str | None
    new: bool = False

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        return self.definition.name

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Replace the definition."""
        connection.execute(t.datasets.delete().where(t.datasets.c.name == self.dataset))
        connection.execute(
            t.datasets.insert().values(name=self.dataset, source=self.source, definition=self.definition.to_json(), seq=seq)
        )

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState:
        """Return the picture with the new definition; files and coverage stay."""
        if state is None:
            return DatasetState(self.definition, self.source)
        if self.new:
            raise LookupError(f"somebody else has just created {self.dataset}")
        return replace(state, dataset=self.definition, source=self.source)


@dataclass(frozen=True)
class Fill:
    """Add what a source delivered: at most one segment, coverage that rests on it, and what it *told* about itself.

    *restated* are settled rows that came back changed (the first of *restated_count*), and *rule* what was done about it.
    """

    dataset: str
    id: str
    segment: StoredFile | None
    facts: tuple[Fact, ...]
    adjacent: Adjacent
    provider: str
    fetched_at: float
    asked: Days
    symbols: tuple[str, ...]
    told: Mapping[str, str | None] = field(default_factory=dict)
    restated: tuple[Restated, ...] = ()
    restated_count: int = 0
    rule: str = ""

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Insert segment, coverage and provenance."""
        if self.segment:
            connection.execute(t.files.insert().values(t.file_row(self.segment, seq)))
        _insert_facts(connection, self.dataset, self.facts, seq)
        connection.execute(
            t.provenance.insert().values(
                id=self.id,
                dataset=self.dataset,
                symbols=json.dumps(self.symbols),
                first_day=self.asked.first,
                last_day=self.asked.last,
                rows=self.segment.rows if self.segment else 0,
                provider=self.provider,
                fetched_at=self.fetched_at,
                digest=self.segment.digest if self.segment else "",
                seq=seq,
                restated=self.restated_count,
                **self.told,
            )
        )
        rows = [
            {**vars(each), "dataset": self.dataset, "rule": self.rule, "fill": self.id, "noticed_at": self.fetched_at, "seq": seq}
            for each in self.restated
        ]
        if rows:
            connection.execute(t.restatements.insert(), rows)

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the segment and its coverage."""
        known = _known(state, self.dataset)
        added = (replace(self.segment, seq=seq),) if self.segment else ()
        coverage = _cover(dict(known.coverage), self.facts, self.adjacent)
        return replace(known, files=(*known.files, *added), coverage=coverage)


@dataclass(frozen=True)
class Swap:
    """Put *added* files in place of *removed* ones, in one step: a user's write, a compaction, a replaced table.

    With ``folded_through`` (a commit number) the coverage that rested on the removed files rests on none from now on,
    and its rows up to that commit are joined, so that they do not accumulate. With ``expected_generation`` the change
    holds only while nothing else was committed to the dataset. ``LookupError`` where the world has moved on.
    """

    dataset: str
    added: tuple[StoredFile, ...]
    removed: tuple[StoredFile, ...]
    adjacent: Adjacent
    folded_through: int | None = None
    expected_generation: int | None = None

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Exchange the rows of the files and, after folding, join those of the coverage."""
        _delete_files(connection, self.removed)
        if self.added:
            connection.execute(t.files.insert(), [t.file_row(file, seq) for file in self.added])
        if self.folded_through is not None:
            touched = sorted({symbol for file in self.removed if file.kind == "segment" for symbol in file.symbols})
            for start in range(0, len(touched), 500):  # SQLite bounds the parameters of one statement
                _join_coverage(connection, self.dataset, touched[start : start + 500], self.folded_through, self.adjacent)

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the new file list; what was known stays known."""
        known, gone = _known(state, self.dataset), {file.id for file in self.removed}
        if self.expected_generation not in {None, known.generation}:
            raise LookupError(f"{self.dataset} has moved on")
        kept = tuple(file for file in known.files if file.id not in gone)
        return replace(known, files=(*kept, *(replace(file, seq=seq) for file in self.added)))


def _delete_files(connection: sa.Connection, removed: Sequence[StoredFile]) -> None:
    for file in removed:
        found = connection.execute(t.files.delete().where(t.files.c.id == file.id)).rowcount
        if not found:
            raise LookupError(f"{file.path} is no longer part of {file.dataset}")


def _join_coverage(connection: sa.Connection, dataset: str, symbols: Sequence[str], through: int, adjacent: Adjacent) -> None:
    c = t.coverage.c
    chosen = sa.and_(c.dataset == dataset, c.symbol.in_(symbols), c.seq <= through)
    spans: dict[str, Spans] = {}
    for row in connection.execute(sa.select(t.coverage).where(chosen).order_by(c.seq)).mappings():
        span = Span(row["first_day"], row["last_day"], row["state"], row["reason"], row["fetched_at"])
        spans[row["symbol"]] = overlay(spans.get(row["symbol"], ()), [span], adjacent)
    connection.execute(t.coverage.delete().where(chosen))
    facts = [Fact(symbol, span, None) for symbol, joined in spans.items() for span in joined]
    _insert_facts(connection, dataset, facts, through)


@dataclass(frozen=True)
class Forget:
    """Drop coverage of some symbols (None: all) between two days, and files that cannot be trusted any more."""

    dataset: str
    symbols: tuple[str, ...] | None
    days: Days
    adjacent: Adjacent
    removed: tuple[StoredFile, ...] = ()

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Cut the coverage rows, and delete the files."""
        del seq
        _delete_files(connection, self.removed)
        c = t.coverage.c
        hit = [c.dataset == self.dataset, c.last_day >= self.days.first, c.first_day <= self.days.last]
        named = None if self.symbols is None else set(self.symbols)  # not in SQL: SQLite bounds the parameters of a statement
        found = connection.execute(sa.select(t.coverage).where(*hit)).mappings()
        rows = [row for row in found if named is None or row["symbol"] in named]
        if not rows:
            return
        connection.execute(t.coverage.delete().where(c.id == sa.bindparam("gone")), [{"gone": row["id"]} for row in rows])
        left = [{**row, "first_day": span.first, "last_day": span.last} for row in rows for span in self._left(row)]
        for row in left:
            del row["id"]
        if left:
            connection.execute(t.coverage.insert(), left)

    def _left(self, row: sa.RowMapping) -> Spans:
        """Return what is still known of a row of coverage."""
        span = Span(row["first_day"], row["last_day"], row["state"], row["reason"], row["fetched_at"])
        return without((span,), self.days.first, self.days.last)

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState:
        """Return the picture that knows nothing of those cells."""
        known, gone = _known(state, self.dataset), {file.id for file in self.removed}
        named = known.coverage.keys() if self.symbols is None else set(self.symbols) & known.coverage.keys()
        cut = {symbol: without(known.coverage[symbol], *self.days) for symbol in named}
        coverage = {symbol: spans for symbol, spans in (dict(known.coverage) | cut).items() if spans}
        return replace(known, coverage=coverage, files=tuple(f for f in known.files if f.id not in gone))


@dataclass(frozen=True)
class Delete:
    """Remove a dataset with everything that is held and known of it."""

    dataset: str

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Delete the rows of all tables; provenance stays, as a record."""
        del seq
        for table in (t.files, t.coverage):
            connection.execute(table.delete().where(table.c.dataset == self.dataset))
        connection.execute(t.datasets.delete().where(t.datasets.c.name == self.dataset))

    def amend(self, state: DatasetState | None, _seq: int) -> None:
        """Return None: the dataset is gone."""
        del state

"""What a commit can do: each change says what it does to the database and to the picture in memory, side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server import history
from fletching_server import tables as t
from fletching_server.history import Moment
from fletching_server.restatement import Restated
from fletching_server.snapshot import DatasetState, Fact, StoredFile
from fletching_server.spans import Adjacent, Days, Span, Spans, overlay, without

_ROWS_SAVED: Final = 8  # by so many rows of coverage at least a symbol's are joined: a market gets one each session


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


def placed(file: StoredFile, seq: int, shape: int) -> StoredFile:
    """Return *file* as commit *seq* makes it part of a dataset of *shape*."""
    return replace(file, seq=seq, rank=file.rank or (seq if file.kind == "segment" else 0), shape=shape, read_shape=shape)


def insert_files(connection: sa.Connection, files: Sequence[StoredFile], moment: Moment) -> None:
    """Make *files* part of the present."""
    if files:
        connection.execute(t.files.insert(), [t.file_row(placed(file, moment.seq, moment.shape)) for file in files])


@dataclass(frozen=True)
class Define:
    """Record a dataset, or what its source promises of it now."""

    definition: Dataset
    source: str | None

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        return self.definition.name

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Replace the definition."""
        held = connection.execute(sa.select(t.datasets).where(t.datasets.c.name == self.dataset)).first()
        values = {"source": self.source, "definition": self.definition.to_json(), "seq": moment.seq}
        if held is None:
            connection.execute(t.datasets.insert().values(name=self.dataset, shape=0, since=moment.seq, **values))
            history.begin(connection, self.dataset, moment, moment.seq - 1)
        else:
            connection.execute(t.datasets.update().where(t.datasets.c.name == self.dataset).values(values))
        history.define(connection, self.definition, held.shape if held else 0, moment.seq)
        return ()

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState:
        """Return the picture with the new definition; files and coverage stay."""
        if state is None:
            return DatasetState(self.definition, self.source)
        return replace(state, dataset=self.definition, source=self.source)


class WriteKey(NamedTuple):
    """What a client calls one write of its own, and what it asked with it."""

    key: str
    digest: str
    rows: int


@dataclass(frozen=True)
class Write:
    """Add what users wrote, all of it or nothing: files, and the table's definition where it is new or has other columns.

    With *replaces* nothing that was there before counts any more. With ``expected_generation`` the change holds only while
    nothing else was committed to the table, with ``expected_shape`` only while it has the same columns, and with *new* only
    while there is none. ``LookupError`` else.
    """

    dataset: str
    added: tuple[StoredFile, ...]
    definition: Dataset | None = None
    new: bool = False
    replaces: bool = False
    expected_generation: int | None = None
    expected_shape: int | None = None
    keys: tuple[WriteKey, ...] = ()

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Record definition, files and keys."""
        if self.definition is not None:
            self._define(connection, self.definition, moment)
        gone: Sequence[StoredFile] = ()
        if self.replaces and not self.new:
            gone = history.retire_all(connection, self.dataset, moment)
            history.begin(connection, self.dataset, moment, moment.seq - 1)
        insert_files(connection, self.added, moment)
        rows = [
            {**key._asdict(), "dataset": self.dataset, "created": self.new, "seq": moment.seq, "at": moment.at}
            for key in self.keys
        ]
        if rows:
            connection.execute(t.writes.insert(), rows)
        return gone

    def _define(self, connection: sa.Connection, definition: Dataset, moment: Moment) -> None:
        if self.new:
            Define(definition, None).write(connection, moment)
            return
        chosen = t.datasets.update().where(t.datasets.c.name == self.dataset)
        connection.execute(chosen.values(definition=definition.to_json(), shape=moment.shape))
        history.define(connection, definition, moment.shape, moment.seq)

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the new rows."""
        if self.new != (state is None):
            raise LookupError(f"somebody else has just {'created' if self.new else 'deleted'} {self.dataset}")
        known = state or DatasetState(_defined(self.definition), None)
        if self.expected_generation not in {None, known.generation}:
            raise LookupError(f"{self.dataset} has moved on")
        if self.expected_shape not in {None, known.shape}:
            raise LookupError(f"{self.dataset} has other columns now")
        held = () if self.replaces else known.files
        if self.definition is not None and not self.new:
            known = replace(known, dataset=self.definition, shape=known.shape + 1)
            held = tuple(replace(file, read_shape=known.shape) for file in held)
        return replace(known, files=(*held, *(placed(file, seq, known.shape) for file in self.added)))


def _defined(definition: Dataset | None) -> Dataset:
    if definition is None:
        raise LookupError("a new table has no definition")
    return definition


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

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Insert segment, coverage and provenance."""
        seq = moment.seq
        insert_files(connection, (self.segment,) if self.segment else (), moment)
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
        return ()

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the segment and its coverage."""
        known = _known(state, self.dataset)
        added = (placed(self.segment, seq, known.shape),) if self.segment else ()
        coverage = _cover(dict(known.coverage), self.facts, self.adjacent)
        return replace(known, files=(*known.files, *added), coverage=coverage)


@dataclass(frozen=True)
class Swap:
    """Put *added* files, which hold the same rows, in place of *removed* ones: a compaction.

    ``folded_through`` is a rank: all segments up to it are in partitions now, and of the symbols they name the rows of the
    coverage are joined, where there are many, so that they do not accumulate. With *merged* they are in a larger segment.
    ``LookupError`` where the world has moved on: with *shape* also where the columns are other ones by now.
    """

    dataset: str
    added: tuple[StoredFile, ...]
    removed: tuple[StoredFile, ...]
    adjacent: Adjacent
    folded_through: int
    merged: bool = False
    shape: int | None = None

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Exchange the rows of the files, and join those of the coverage."""
        if self.merged and self.added[0].tells_ranks:
            gone = history.replace_by(connection, self.added[0], self.removed)
        else:
            gone = history.retire(connection, self.dataset, self.removed, moment)
        insert_files(connection, self.added, moment)
        if self.merged:
            return gone
        gone += history.folded(connection, self.dataset, self.folded_through, moment)
        touched = sorted({symbol for file in self.removed if file.kind == "segment" for symbol in file.symbols})
        for start in range(0, len(touched), 500):  # SQLite bounds the parameters of one statement
            _join_coverage(connection, self.dataset, touched[start : start + 500], self.folded_through, self.adjacent)
        return gone

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the new file list; what was known stays known."""
        known, gone = _known(state, self.dataset), {file.id for file in self.removed}
        if self.shape not in {None, known.shape}:
            raise LookupError(f"{self.dataset} has other columns by now")
        kept = tuple(file for file in known.files if file.id not in gone)
        return replace(known, files=(*kept, *(placed(file, seq, known.shape) for file in self.added)))


def _join_coverage(connection: sa.Connection, dataset: str, symbols: Sequence[str], through: int, adjacent: Adjacent) -> None:
    c = t.coverage.c
    within = sa.and_(c.dataset == dataset, c.symbol.in_(symbols), c.seq <= through)
    counted = sa.select(c.symbol, sa.func.count()).where(within).group_by(c.symbol).having(sa.func.count() > _ROWS_SAVED)
    rows = {row[0]: int(row[1]) for row in connection.execute(counted)}
    chosen = sa.and_(c.dataset == dataset, c.symbol.in_(rows), c.seq <= through)
    spans: dict[str, Spans] = {}
    for row in connection.execute(sa.select(t.coverage).where(chosen).order_by(c.seq)).mappings():
        span = Span(row["first_day"], row["last_day"], row["state"], row["reason"], row["fetched_at"])
        spans[row["symbol"]] = overlay(spans.get(row["symbol"], ()), [span], adjacent)
    long = [symbol for symbol, joined in spans.items() if rows[symbol] >= len(joined) + _ROWS_SAVED]
    connection.execute(t.coverage.delete().where(chosen, c.symbol.in_(long)))
    _insert_facts(connection, dataset, [Fact(symbol, span, None) for symbol in long for span in spans[symbol]], through)


@dataclass(frozen=True)
class Adopt:
    """Make files that were found on disk part of a dataset, and believe what they tell of its cells.

    The dataset is defined where it is not known; files of *older* ids have fewer or narrower columns than that.
    """

    definition: Dataset
    source: str | None
    files: tuple[StoredFile, ...]
    facts: tuple[Fact, ...] = ()
    older: frozenset[str] = frozenset()

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        return self.definition.name

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Record dataset, files and coverage."""
        if connection.execute(sa.select(t.datasets.c.name).where(t.datasets.c.name == self.dataset)).first() is None:
            Define(self.definition, self.source).write(connection, moment)
        if self.files:
            connection.execute(t.files.insert(), [t.file_row(self._adopted(file, moment.seq)) for file in self.files])
        _insert_facts(connection, self.dataset, self.facts, moment.seq)
        return ()

    def _adopted(self, file: StoredFile, seq: int) -> StoredFile:
        """Return *file* as part of the dataset; one of another shape is brought up to its columns as it is read."""
        return replace(placed(file, seq, 0), shape=-1 if file.id in self.older else 0)

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the files."""
        known = state or DatasetState(self.definition, self.source)
        coverage = _cover(dict(known.coverage), self.facts, lambda _last, _first: False)
        return replace(known, files=(*known.files, *(self._adopted(file, seq) for file in self.files)), coverage=coverage)


@dataclass(frozen=True)
class Forget:
    """Drop coverage of some symbols (None: all) between two days, and files that cannot be trusted any more."""

    dataset: str
    symbols: tuple[str, ...] | None
    days: Days
    adjacent: Adjacent
    removed: tuple[StoredFile, ...] = ()

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Cut the coverage rows, and delete the files; what the dataset was with them cannot be told any more."""
        history.lose(connection, self.dataset, self.removed, moment)
        c = t.coverage.c
        hit = [c.dataset == self.dataset, c.last_day >= self.days.first, c.first_day <= self.days.last]
        named = None if self.symbols is None else set(self.symbols)  # not in SQL: SQLite bounds the parameters of a statement
        found = connection.execute(sa.select(t.coverage).where(*hit)).mappings()
        rows = [row for row in found if named is None or row["symbol"] in named]
        if rows:
            connection.execute(t.coverage.delete().where(c.id == sa.bindparam("gone")), [{"gone": row["id"]} for row in rows])
        left = [{**row, "first_day": span.first, "last_day": span.last} for row in rows for span in self._left(row)]
        for row in left:
            del row["id"]
        if left:
            connection.execute(t.coverage.insert(), left)
        return ()

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
    """Remove a dataset with everything that is held and known of it, and its past."""

    dataset: str

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Delete the rows of all tables; provenance stays, as a record."""
        del moment
        connection.execute(t.coverage.delete().where(t.coverage.c.dataset == self.dataset))
        connection.execute(t.datasets.delete().where(t.datasets.c.name == self.dataset))
        return history.clear(connection, self.dataset)

    def amend(self, state: DatasetState | None, _seq: int) -> None:
        """Return None: the dataset is gone."""
        del state


@dataclass(frozen=True)
class Expire:
    """Forget what a dataset was before the instant *cutoff* (seconds since 1970)."""

    dataset: str
    cutoff: float

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Return the files that only that past needed."""
        del moment
        return history.expire(connection, self.dataset, self.cutoff)

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState:
        """Return the picture as it is."""
        return _known(state, self.dataset)


@dataclass(frozen=True)
class Retain:
    """Say for how many days the past of a dataset is kept (None: as the settings say)."""

    dataset: str
    history_days: float | None

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Record it."""
        del moment
        connection.execute(t.datasets.update().where(t.datasets.c.name == self.dataset).values(history_days=self.history_days))
        return ()

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState:
        """Return the picture as it is."""
        return _known(state, self.dataset)

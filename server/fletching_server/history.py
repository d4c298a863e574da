"""The past of a dataset: which files it was made of at an earlier commit, and which of them nobody can ask for any more.

What a dataset was at generation *g* is a *base* and what came after: the partitions of one commit, and the segments of a rank
above what these hold, up to *g*. A fold does not change what is held, so not every fold needs a base: the partitions between
two bases leave at once, and the segments from which they were made stay. ``docs/storage.md`` draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_schemas.errors import HistoryGone
from fletching_server import tables as t
from fletching_server.snapshot import DatasetState, StoredFile

SPACING_SECONDS: Final = 86_400.0  # one base a day: so much is replayed, at most, to answer for a moment of the past
_WRITTEN: Final = sa.select(t.writes).where(t.writes.c.key.in_(sa.bindparam("keys", expanding=True)))


@dataclass(frozen=True)
class Moment:
    """One commit: its number, when it is made (seconds since 1970), how long the past is kept where nobody says.

    ``shape`` is that of the dataset after it.
    """

    seq: int
    at: float = 0.0
    history_days: float = 0.0
    shape: int = 0


class Written(NamedTuple):
    """One write that has happened: where, what was asked, and what it did."""

    dataset: str
    digest: str
    rows: int
    created: bool
    seq: int


def define(connection: sa.Connection, dataset: Dataset, shape: int, seq: int) -> None:
    """Record what *dataset* promises from commit *seq* on."""
    values = {"dataset": dataset.name, "seq": seq, "definition": dataset.to_json(), "shape": shape}
    connection.execute(t.definitions.insert().values(values))


def begin(connection: sa.Connection, dataset: str, moment: Moment, through: int) -> None:
    """Let the past of *dataset* begin anew at *moment*, whose partitions hold all segments up to the rank *through*."""
    values = {"dataset": dataset, "seq": moment.seq, "through": through, "since": moment.seq, "at": moment.at, "fixed": True}
    connection.execute(t.bases.insert().values(values))


def begin_all(connection: sa.Connection, now: float) -> None:
    """Let the past of all datasets begin here: the store was written by a release that kept none."""
    f = t.files.c
    for row in connection.execute(sa.select(t.datasets)).all():
        latest = connection.execute(sa.select(sa.func.max(f.seq)).where(f.dataset == row.name)).scalar() or 0
        journal = sa.select(sa.func.min(f.rank)).where(f.dataset == row.name, f.kind == "segment")
        moment = Moment(max(latest, row.seq), now)
        begin(connection, row.name, moment, (connection.execute(journal).scalar() or moment.seq + 1) - 1)
        define(connection, Dataset.from_json(row.definition), 0, moment.seq)
        connection.execute(t.commits.insert().values(seq=moment.seq, dataset=row.name, at=now))
        forget_before(connection, row.name, moment.seq)


def kept_days(connection: sa.Connection, dataset: str, moment: Moment) -> float:
    """Return for how many days the past of *dataset* is kept."""
    found = connection.execute(sa.select(t.datasets.c.history_days).where(t.datasets.c.name == dataset)).scalar()
    return moment.history_days if found is None else float(found)


def retire(connection: sa.Connection, dataset: str, files: Sequence[StoredFile], moment: Moment) -> list[StoredFile]:
    """Take *files* out of the present, and return those that the past does not need either: all, where none is kept.

    Nor does it need a merged file where those are kept that it was merged from. ``LookupError`` where one is no longer part
    of it.
    """
    kept = kept_days(connection, dataset, moment) > 0
    leaving = [file for file in files if not kept or _is_made_of(connection, file)]
    gone = {file.id for file in leaving}
    parts = [] if kept else [part for file in files if file.since for part in _drop(connection, _parts(file))]
    f = t.files
    for file in files:
        chosen = sa.and_(f.c.id == file.id, f.c.retired.is_(None))
        change = f.delete().where(chosen) if file.id in gone else f.update().where(chosen).values(retired=moment.seq)
        if not connection.execute(change).rowcount:
            raise LookupError(f"{file.path} is no longer part of {file.dataset}")
    if not kept and files:
        forget_before(connection, dataset, moment.seq)
    return leaving + parts


def _is_made_of(connection: sa.Connection, file: StoredFile) -> bool:
    """Return whether the past has what *file* was merged from: all of it, where it has any."""
    return file.since > 0 and connection.execute(sa.select(t.files.c.id).where(_parts(file)).limit(1)).first() is not None


def _parts(file: StoredFile) -> sa.ColumnElement[bool]:
    """The retired segments that *file* was merged from."""
    f = t.files.c
    within = sa.and_(f.rank >= file.since, f.rank <= file.rank)
    return sa.and_(f.dataset == file.dataset, f.kind == "segment", f.retired.is_not(None), within)


def replace_by(connection: sa.Connection, merged: StoredFile, files: Sequence[StoredFile]) -> list[StoredFile]:
    """Take *files* out of present and past, and return them: *merged* tells what they were, as of any commit."""
    f = t.files
    for file in files:
        if not connection.execute(f.delete().where(f.c.id == file.id, f.c.retired.is_(None))).rowcount:
            raise LookupError(f"{file.path} is no longer part of {merged.dataset}")
    return list(files)


def retire_all(connection: sa.Connection, dataset: str, moment: Moment) -> list[StoredFile]:
    """Take all files of *dataset* out of the present. See ``retire``."""
    f = t.files.c
    rows = connection.execute(sa.select(t.files).where(f.dataset == dataset, f.retired.is_(None))).mappings()
    return retire(connection, dataset, [t.stored_file(row, 0) for row in rows], moment)


def lose(connection: sa.Connection, dataset: str, files: Sequence[StoredFile], moment: Moment) -> None:
    """Take *files* out of present and past; ``LookupError`` where one is no longer part of it."""
    for file in files:
        if not connection.execute(t.files.delete().where(t.files.c.id == file.id)).rowcount:
            raise LookupError(f"{file.path} is no longer part of {file.dataset}")
    if files:
        forget_before(connection, dataset, moment.seq)


def forget_before(connection: sa.Connection, dataset: str, seq: int) -> None:
    """Record that generations before *seq* cannot be read any more."""
    later = sa.and_(t.datasets.c.name == dataset, sa.func.coalesce(t.datasets.c.since, 0) < seq)
    connection.execute(t.datasets.update().where(later).values(since=seq))


def folded(connection: sa.Connection, dataset: str, through: int, moment: Moment) -> list[StoredFile]:
    """Make the partitions of *moment*, which hold all segments up to *through*, a base; return the files that leave for it.

    The last base leaves where the one before it is younger than a day: what it has can be made of that one and segments.
    Where no past is kept these segments have left, so it begins here.
    """
    b = t.bases
    kept = kept_days(connection, dataset, moment) > 0
    if not kept:
        connection.execute(b.delete().where(b.c.dataset == dataset))
    rows = connection.execute(sa.select(b).where(b.c.dataset == dataset).order_by(b.c.seq.desc()).limit(2)).all()
    if len(rows) == 2 and not rows[0].fixed and rows[0].at < rows[1].at + SPACING_SECONDS:
        connection.execute(b.delete().where(b.c.dataset == dataset, b.c.seq == rows[0].seq))
    values = {"dataset": dataset, "seq": moment.seq, "through": through, "since": through, "at": moment.at, "fixed": not kept}
    connection.execute(b.insert().values(values))
    return _drop(connection, _baseless(dataset))


def _baseless(dataset: str) -> sa.ColumnElement[bool]:
    """The retired partitions of no base."""
    f, b = t.files.c, t.bases.c
    based = sa.select(b.seq).where(b.dataset == f.dataset, f.seq <= b.seq, b.seq < f.retired).exists()
    return sa.and_(f.dataset == dataset, f.kind == "partition", f.retired.is_not(None), ~based)


def _drop(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> list[StoredFile]:
    rows = connection.execute(sa.select(t.files).where(chosen)).mappings().all()
    if rows:
        connection.execute(t.files.delete().where(chosen))
    return [t.stored_file(row, 0) for row in rows]


def expire(connection: sa.Connection, dataset: str, cutoff: float) -> list[StoredFile]:
    """Forget what *dataset* was before the instant *cutoff*, and return the files that leave for it."""
    generation = generation_at(connection, dataset, cutoff)
    oldest = None if generation is None else _base(connection, dataset, generation)
    if oldest is None:
        return []
    b, f, d = t.bases.c, t.files.c, t.definitions.c
    connection.execute(t.bases.delete().where(b.dataset == dataset, b.seq < oldest.seq))
    forget_before(connection, dataset, oldest.since)
    folded_in = sa.and_(f.dataset == dataset, f.kind == "segment", f.retired.is_not(None), f.rank <= oldest.through)
    gone = [*_drop(connection, _baseless(dataset)), *_drop(connection, folded_in)]
    first = _last_before(connection, t.commits, dataset, oldest.since)
    connection.execute(t.commits.delete().where(t.commits.c.dataset == dataset, t.commits.c.seq < (first or 0)))
    defined = _last_before(connection, t.definitions, dataset, oldest.since)
    connection.execute(t.definitions.delete().where(d.dataset == dataset, d.seq < (defined or 0)))
    connection.execute(t.writes.delete().where(t.writes.c.dataset == dataset, t.writes.c.at < cutoff))
    return gone


def clear(connection: sa.Connection, dataset: str) -> list[StoredFile]:
    """Forget a deleted dataset, present and past, and return all its files."""
    gone = _drop(connection, t.files.c.dataset == dataset)
    for table in (t.definitions, t.commits, t.bases, t.writes):
        connection.execute(table.delete().where(table.c.dataset == dataset))
    return gone


def kept_since(connection: sa.Connection, dataset: str, moment: Moment) -> int | None:
    """Return the first generation of *dataset* that can still be read; None where its past is not kept."""
    if kept_days(connection, dataset, moment) <= 0:
        return None
    return connection.execute(sa.select(t.datasets.c.since).where(t.datasets.c.name == dataset)).scalar() or 0


def is_due(connection: sa.Connection, dataset: str, cutoff: float) -> bool:
    """Return whether ``expire`` would forget anything worth a commit: a base, or what a write did."""
    generation = generation_at(connection, dataset, cutoff)
    oldest = None if generation is None else _base(connection, dataset, generation)
    if oldest is None:
        return False
    b, w = t.bases.c, t.writes.c
    bases = sa.select(b.seq).where(b.dataset == dataset, b.seq < oldest.seq)
    writes = sa.select(w.seq).where(w.dataset == dataset, w.at < cutoff)
    return any(connection.execute(query.limit(1)).first() is not None for query in (bases, writes))


def generation_at(connection: sa.Connection, dataset: str, instant: float) -> int | None:
    """Return the last commit to *dataset* at or before *instant*; None where none is recorded."""
    c = t.commits.c
    found: int | None = connection.execute(sa.select(sa.func.max(c.seq)).where(c.dataset == dataset, c.at <= instant)).scalar()
    return found


def written(connection: sa.Connection, keys: Sequence[str]) -> dict[str, Written]:
    """Return what the writes did that clients called by one of *keys*, as far as there were such."""
    rows = connection.execute(_WRITTEN, {"keys": list(keys)})
    return {row.key: Written(row.dataset, row.digest, row.rows, row.created, row.seq) for row in rows}


def past(connection: sa.Connection, dataset: str, generation: int) -> DatasetState:
    """Return what *dataset* was at *generation*: a table, as nothing of the past can be fetched again.

    ``HistoryGone`` where that lies before what is kept, or before the dataset.
    """
    since = connection.execute(sa.select(t.datasets.c.since).where(t.datasets.c.name == dataset)).scalar() or 0
    base, at = _base(connection, dataset, generation), _last_before(connection, t.commits, dataset, generation)
    if generation < since or base is None or at is None:
        raise HistoryGone(
            f"{dataset} cannot be read as of generation {generation}: its past goes back to generation {since}; "
            "how long it is kept is set by history_days, or per dataset by the action retention"
        )
    definition = _definition(connection, dataset, generation)
    rows = connection.execute(sa.select(t.files).where(_part_of(dataset, base, generation)).order_by(t.files.c.seq)).mappings()
    files = _as_of([t.stored_file(row, definition.shape) for row in rows], generation)
    return DatasetState(Dataset.from_json(definition.definition), None, files, {}, at, definition.shape)


def _part_of(dataset: str, base: Any, generation: int) -> sa.ColumnElement[bool]:
    f = t.files.c
    partition = sa.and_(f.kind == "partition", f.seq <= base.seq, sa.or_(f.retired.is_(None), f.retired > base.seq))
    begun = sa.case((f.since > 0, f.since), else_=f.rank) <= generation
    segment = sa.and_(f.kind == "segment", f.rank > base.through, begun)
    return sa.and_(f.dataset == dataset, sa.or_(partition, segment))


def _as_of(files: Sequence[StoredFile], generation: int) -> tuple[StoredFile, ...]:
    """Return those of *files* that make up a dataset at *generation*: none that another one, merged from it, has the rows of."""
    found = [file for file in files if file.rank <= generation or file.tells_ranks]
    merged = [file for file in found if file.since and file.rank <= generation]
    return tuple(
        _cut(file, generation)
        for file in found
        if not any(other.since <= file.lowest and file.rank <= other.rank for other in merged if other is not file)
    )


def _cut(file: StoredFile, generation: int) -> StoredFile:
    """Return *file* without what fills later than *generation* brought and asked."""
    if file.rank <= generation:
        return file
    asked = tuple(cells for cells in file.asked if cells.rank <= generation)
    hidden = tuple(cells for cells in file.asked if cells.rank > generation)
    return replace(file, asked=asked, hidden=hidden)


def _base(connection: sa.Connection, dataset: str, generation: int) -> Any:
    b = t.bases.c
    query = sa.select(t.bases).where(b.dataset == dataset, b.since <= generation).order_by(b.seq.desc()).limit(1)
    return connection.execute(query).first()


def _definition(connection: sa.Connection, dataset: str, generation: int) -> Any:
    d = t.definitions.c
    query = sa.select(t.definitions).where(d.dataset == dataset, d.seq <= generation).order_by(d.seq.desc()).limit(1)
    return connection.execute(query).one()


def _last_before(connection: sa.Connection, table: sa.Table, dataset: str, seq: int) -> int | None:
    chosen = (table.c.dataset == dataset, table.c.seq <= seq)
    found: int | None = connection.execute(sa.select(sa.func.max(table.c.seq)).where(*chosen)).scalar()
    return found


def paths(connection: sa.Connection) -> Iterable[str]:
    """Return the paths of all files that the present or the past refers to."""
    return list(connection.execute(sa.select(t.files.c.path)).scalars())

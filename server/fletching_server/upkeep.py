"""Changes that no read or write asks for: the past that is let go, how long it is kept, files that are found on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server import history
from fletching_server import tables as t
from fletching_server.changes import Define, cover, insert_facts, placed, still_there
from fletching_server.history import Moment
from fletching_server.snapshot import DatasetState, Fact, StoredFile


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
        insert_facts(connection, self.dataset, self.facts, moment.seq)
        return ()

    def _adopted(self, file: StoredFile, seq: int) -> StoredFile:
        """Return *file* as part of the dataset; one of another shape is brought up to its columns as it is read."""
        return replace(placed(file, seq, 0), shape=-1 if file.id in self.older else 0)

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the files."""
        known = state or DatasetState(self.definition, self.source)
        coverage = cover(dict(known.coverage), self.facts, lambda _last, _first: False)
        return replace(known, files=(*known.files, *(self._adopted(file, seq) for file in self.files)), coverage=coverage)


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
        return still_there(state, self.dataset)


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
        return still_there(state, self.dataset)

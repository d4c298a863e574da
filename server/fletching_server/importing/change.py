"""The commit of an import: table, files and record in one transaction, so that its rows are visible all or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server import history
from fletching_server import tables as t
from fletching_server.changes import Define, insert_files, placed
from fletching_server.history import Moment
from fletching_server.snapshot import DatasetState, StoredFile


@dataclass(frozen=True)
class Provenance:
    """What the records tell of an import: its id, when, with which arguments, what it read and what was kept."""

    id: str
    fetched_at: float
    arguments: dict[str, Any]
    rows: int
    first_day: int
    last_day: int
    symbols: tuple[str, ...]
    digest: str
    version: str


@dataclass(frozen=True)
class Import:
    """Put *added* partitions in place of *removed* ones, which have the same rows and others beside them.

    With *new* the table is defined by this. ``LookupError`` where the world has moved on.
    """

    definition: Dataset
    new: bool
    added: tuple[StoredFile, ...]
    removed: tuple[StoredFile, ...]
    provenance: Provenance

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        return self.definition.name

    def write(self, connection: sa.Connection, moment: Moment) -> Sequence[StoredFile]:
        """Exchange the files and record where they came from; the past begins anew, as these rows are in no segment."""
        if self.new:
            Define(self.definition, None).write(connection, moment)
        gone = history.retire(connection, self.dataset, self.removed, moment)
        insert_files(connection, self.added, moment)
        if not self.new:
            history.begin(connection, self.dataset, moment, self._through(connection, moment))
        self._record(connection, moment)
        return gone

    def _through(self, connection: sa.Connection, moment: Moment) -> int:
        """Return the rank up to which all segments are in the partitions: what was written meanwhile is in the journal."""
        f = t.files.c
        journal = sa.select(sa.func.min(f.rank)).where(f.dataset == self.dataset, f.kind == "segment", f.retired.is_(None))
        return int(connection.execute(journal).scalar() or moment.seq) - 1

    def _record(self, connection: sa.Connection, moment: Moment) -> None:
        told = self.provenance
        row = {
            "id": told.id,
            "dataset": self.dataset,
            "symbols": json.dumps(told.symbols),
            "first_day": told.first_day,
            "last_day": told.last_day,
            "rows": told.rows,
            "provider": "fletching",
            "fetched_at": told.fetched_at,
            "digest": told.digest,
            "seq": moment.seq,
            "function": "import",
            "arguments": json.dumps(told.arguments, ensure_ascii=False),
            "version": told.version,
            "unit_check": "not_applicable",
        }
        connection.execute(t.provenance.insert().values(row))

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the new files."""
        if self.new != (state is None):
            raise LookupError(f"somebody else has just {'created' if self.new else 'deleted'} {self.dataset}")
        known = state or DatasetState(self.definition, None)
        if known.dataset != self.definition:
            raise LookupError(f"{self.dataset} has other columns now")
        gone = {file.id for file in self.removed}
        kept = tuple(file for file in known.files if file.id not in gone)
        return replace(known, files=(*kept, *(placed(file, seq, known.shape) for file in self.added)))

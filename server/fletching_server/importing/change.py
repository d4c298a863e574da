"""The commit of an import: table, files and record in one transaction, so that its rows are visible all or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fletching_server import tables as t
from fletching_server.changes import Define, Swap
from fletching_server.snapshot import DatasetState


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
    """*swap* the files, after defining the table where *define* says so; ``LookupError`` where the world has moved on."""

    swap: Swap
    define: Define | None
    provenance: Provenance

    @property
    def dataset(self) -> str:
        """The dataset that changes."""
        return self.swap.dataset

    def write(self, connection: sa.Connection, seq: int) -> None:
        """Apply all of it."""
        if self.define:
            self.define.write(connection, seq)
        self.swap.write(connection, seq)
        told = self.provenance
        connection.execute(
            t.provenance.insert().values(
                id=told.id,
                dataset=self.dataset,
                symbols=json.dumps(told.symbols),
                first_day=told.first_day,
                last_day=told.last_day,
                rows=told.rows,
                provider="fletching",
                fetched_at=told.fetched_at,
                digest=told.digest,
                seq=seq,
                function="import",
                arguments=json.dumps(told.arguments, ensure_ascii=False),
                version=told.version,
                unit_check="not_applicable",
            )
        )

    def amend(self, state: DatasetState | None, seq: int) -> DatasetState:
        """Return the picture with the new files."""
        if self.define:
            state = self.define.amend(state, seq)
        return self.swap.amend(state, seq)

"""What a read would need, before any of it moves: bytes in memory and on disk, calls, cells. Pure.

Files that are there are counted by their size; what is missing by what cells of the same dataset take, or, of a dataset of
which nothing is held yet, by its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from fletching_schemas import Dataset
from fletching_server.batches import row_bytes
from fletching_server.gaps import Gaps, fetch_requests
from fletching_server.plan import Plan
from fletching_server.snapshot import DatasetState, StoredFile

ROWS_PER_SESSION: Final = 240  # of instants: bars of a minute; trades are far more, but then files tell soon
DISK_SHARE: Final = 0.4  # of what rows take in memory, where no file tells
_MOST_LOOKED_AT: Final = 64  # files


@dataclass(frozen=True)
class Needs:
    """What a plan needs: all of its *bytes* in memory, of which *missing_bytes* are still to be fetched in *calls*.

    ``cells`` are the symbols and sessions that are missing, ``disk_bytes`` what they will take there.
    """

    symbols: int
    cells: int
    calls: int
    bytes: int
    missing_bytes: int
    disk_bytes: int


def needs(plan: Plan, state: DatasetState, sweep: int | None = None) -> Needs:
    """Return what *plan*, on the picture *state*, needs."""
    cells = _cells(plan.gaps, plan)
    missing = round(cells * bytes_per_cell(state))
    held = sum(file.memory_bytes for file in plan.files)
    calls = len(fetch_requests(state.dataset, plan.gaps, sweep))
    return Needs(len(plan.symbols), cells, calls, held + missing, missing, round(missing * _disk_share(state)))


def _cells(gaps: Gaps, plan: Plan) -> int:
    return sum(len(plan.calendar.between(*run)) for runs in gaps.values() for run in runs)


def bytes_per_cell(state: DatasetState) -> float:
    """Return what one symbol's session takes in memory, by the newest files, or by the columns where there are none."""
    files = _newest(state)
    sessions = sum(len(file.symbols) * _sessions(file) for file in files)
    return sum(file.memory_bytes for file in files) / sessions if sessions else guessed_bytes(state.dataset)


def guessed_bytes(dataset: Dataset) -> float:
    """Return what one symbol's session takes by the columns alone."""
    rows = 1 if pa.types.is_date32(dataset.schema.field(dataset.time).type) else ROWS_PER_SESSION
    return rows * row_bytes(dataset.schema)


def _disk_share(state: DatasetState) -> float:
    files = _newest(state)
    size = sum(file.memory_bytes for file in files)
    return sum(file.bytes for file in files) / size if size else DISK_SHARE


def _newest(state: DatasetState) -> list[StoredFile]:
    return [file for file in state.files[-_MOST_LOOKED_AT:] if file.rows]


def _sessions(file: StoredFile) -> float:
    return max(1.0, (file.last_day - file.first_day + 1) * 5 / 7)

"""What an import tells: while it runs, and when it has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Stage = Literal["reading", "publishing"]


@dataclass(frozen=True)
class Progress:
    """How far an import is: records and bytes read of all inputs, rows merged, and the seconds since it began."""

    stage: Stage
    bytes: int
    total_bytes: int
    records: int
    merged: int
    seconds: float


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows: ``read`` = ``kept`` + ``reduced`` + ``duplicates`` + ``different`` + ``rejected``.

    ``duplicates`` came again just as they were; of ``different`` ones the key came again with other values, they are in the
    rejects like the rows that could not be read (``rejected``). ``replaced`` rows were in the table and gave way.
    """

    dataset: str
    job: str
    read: int
    kept: int
    reduced: int
    duplicates: int
    different: int
    replaced: int
    rejected: int
    partitions: int
    files: int
    seconds: float
    resumed_chunks: int = 0
    rejects: Path | None = None
    dry_run: bool = False

    @property
    def rows_per_second(self) -> float:
        """Rows read per second."""
        return self.read / max(self.seconds, 1e-9)

    def facts(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return {**asdict(self), "rejects": self.rejects and str(self.rejects)}


class Counting:
    """Adds up what the threads of an import report, and tells *show*."""

    def __init__(self, total_bytes: int, now: Callable[[], float], show: Callable[[Progress], None] | None) -> None:
        self._now, self._began, self._show = now, now(), show
        self._state = Progress("reading", 0, total_bytes, 0, 0, 0.0)
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """How long it has been."""
        return self._now() - self._began

    def read(self, size: int, records: int) -> None:
        """Add *size* bytes of inputs that hold so many *records*."""
        self._tell(lambda old: replace(old, bytes=old.bytes + size, records=old.records + records))

    def merged(self, rows: int) -> None:
        """Add *rows* that are on their way into the table."""
        self._tell(lambda old: replace(old, stage="publishing", merged=old.merged + rows))

    def _tell(self, change: Callable[[Progress], Progress]) -> None:
        with self._lock:
            self._state = replace(change(self._state), seconds=self.seconds)
            if self._show:
                self._show(self._state)

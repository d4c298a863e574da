"""The folder of one import: what is staged in it survives the process, and the same command finds it again.

<folder>/chunks/<input>-<chunk>.rows.arrow     sorted rows of one chunk
<folder>/chunks/<input>-<chunk>.index.arrow    which rows are whose; it appears last, so it is the checkpoint of its chunk
<folder>/chunks/<input>-<chunk>.bad.arrow      records that cannot be imported
<folder>/held/                                 rows that the table holds, while they are merged
<folder>/rejects.csv, report.json              what stays

A file per chunk rather than one list of them: staging a chunk costs the same however many there are. Nothing is synced, as all
of it can be made again; so after a crash a chunk counts only if its rows have the checksum that its index tells.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching_server import disk
from fletching_server.failpoints import Purpose, Removal
from fletching_server.importing.raw import Bad
from fletching_server.importing.runs import Run, encoded

_FACTS: Final = b"fletching.import"
_NAME: Final = re.compile(r"(\d+)-(\d+)\.index\.arrow")
_BAD: Final = {"place": pl.UInt32, "reason": pl.String, "text": pl.String}


@dataclass(frozen=True)
class Staged:
    """A chunk that is parsed and sorted: of which input, where the next one begins, how many records it had, and the bad."""

    input: int
    number: int
    end: int
    records: int
    bad: int
    rows: int
    digest: str

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.input:06}-{self.number:06}"


class Job:
    """One import's folder; safe to stage from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chunks = folder / "chunks"
        self.held = folder / "held"

    def stage(self, staged: Staged, run: Run, bad: Sequence[Bad]) -> Staged:
        """Write the files of one chunk, and return its record; it counts from then on."""
        rows = encoded(run.rows)
        digest = disk.publish(self.rows(staged), rows, sync=False, purpose=Purpose.IMPORT)
        if bad:
            told = encoded(pl.DataFrame(bad, schema=_BAD, orient="row"))
            disk.publish(self.chunks / f"{staged.name}.bad.arrow", told, sync=False, purpose=Purpose.IMPORT)
        done = Staged(**{**asdict(staged), "digest": digest})
        facts = {_FACTS: json.dumps(asdict(done)).encode()}
        path = self.chunks / f"{staged.name}.index.arrow"
        disk.publish(path, encoded(run.index, facts), sync=False, purpose=Purpose.CHECKPOINT)
        return done

    def staged(self) -> list[Staged]:
        """Return what is staged, in the order of the inputs; a chunk whose rows are not what was written is not."""
        found = [self._record(path) for path in sorted(self.chunks.glob("*.index.arrow")) if _NAME.fullmatch(path.name)]
        return [record for record in found if record and self._is_whole(record)]

    def _record(self, path: Path) -> Staged | None:
        try:
            with pa.memory_map(str(path)) as file:
                told = (pa.ipc.open_file(file).schema.metadata or {})[_FACTS]
            return Staged(**json.loads(told))
        except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError):  # torn by a power failure
            return None

    def _is_whole(self, staged: Staged) -> bool:
        try:
            return disk.file_digest(self.rows(staged)) == staged.digest
        except OSError:
            return False

    def rows(self, staged: Staged) -> Path:
        """Return where the rows of a chunk lie."""
        return self.chunks / f"{staged.name}.rows.arrow"

    def index(self, staged: Staged) -> pl.DataFrame:
        """Return which rows of a chunk are of which period and symbol."""
        return pl.read_ipc(self.chunks / f"{staged.name}.index.arrow")

    def bad(self, staged: Staged) -> pl.DataFrame:
        """Return the records of a chunk that cannot be imported."""
        if not staged.bad:
            return pl.DataFrame(schema=_BAD)
        return pl.read_ipc(self.chunks / f"{staged.name}.bad.arrow")

    def lose(self, name: str, rows: pl.DataFrame) -> None:
        """Keep *rows* (rank, place, text) that lost their key to another row."""
        disk.publish(self.chunks / f"{name}.lost.arrow", encoded(rows), sync=False, purpose=Purpose.IMPORT)

    def lost(self) -> Iterator[pl.DataFrame]:
        """Yield what ``lose`` was given."""
        for path in sorted(self.chunks.glob("*.lost.arrow")):
            yield pl.read_ipc(path)

    def note(self, name: str, document: dict[str, Any]) -> None:
        """Write *document* as the file *name*, for people and programs."""
        text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
        disk.publish(self.folder / name, f"{text}\n".encode(), sync=True, purpose=Purpose.CHECKPOINT)

    def run_id(self) -> str:
        """Return what this run of the job has in common with those that it goes on with."""
        path = self.folder / "run"
        if not path.exists():
            disk.publish(path, uuid.uuid4().hex.encode(), sync=True, purpose=Purpose.CHECKPOINT)
        return path.read_text("ascii")

    def clear(self) -> None:
        """Remove what is staged; rejects and report stay."""
        for folder in (self.chunks, self.held):
            for path in _files(folder):
                disk.let_go(path, Removal.DISCARD)
            shutil.rmtree(folder, ignore_errors=True)
        disk.let_go(self.folder / "run", Removal.DISCARD)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.is_file())

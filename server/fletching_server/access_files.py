"""The access log on disk: small Parquet files by UTC day, joined as they become many, into one when the day is over.

<store>/access/YYYY-MM-DD/KIND-LEVEL-FIRST-ID.pq

*KIND* is events or groups. Files of a level that become many are joined into one of the next; the new file names those it
replaces, so a process that dies between writing it and removing them leaves no row twice. What cannot be read is told once,
and skipped: losing some of the log is no reason to stop anything.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from fletching_server import disk
from fletching_server.access_table import EVENTS, GROUPS
from fletching_server.failpoints import Purpose, Removal

log = structlog.get_logger(__name__)

FORMAT: Final = 1
SUFFIX: Final = ".pq"  # Parquet, but no data: whoever looks for *.parquet in a store finds what the catalogue vouches for
MANY: Final = 32  # files of a level, from which on they are joined
KINDS: Final[Mapping[str, pa.Schema]] = {"events": EVENTS, "groups": GROUPS}
_FORMAT_KEY, _REPLACES_KEY = b"fletching.access_log", b"fletching.replaces"
_NAME: Final = re.compile(rf"(events|groups)-(\d+)-(-?\d+)-([0-9a-f]+){re.escape(SUFFIX)}")
_TRIES: Final = 20  # for a day whose files are being joined by another process meanwhile
_BATCH_ROWS: Final = 65_536
_UNREADABLE: Final = (OSError, ValueError, LookupError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class LogFile:
    """One file of a day, by its name."""

    path: Path
    kind: str
    level: int
    first: int
    id: str

    @property
    def size(self) -> int:
        """Its bytes; 0 where it has gone."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


class _Opened(NamedTuple):
    """A file that can be read, and the names of those whose rows it has."""

    file: LogFile
    parquet: pq.ParquetFile
    replaces: Sequence[str]


@dataclass
class AccessFiles:
    """The folder of one store's access log. Writing and tidying are for one thread at a time; reading is for any."""

    root: Path
    _told: set[Path] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=count)  # so that files that begin at one instant are in order

    # Looking

    def days(self) -> list[date]:
        """Return the days that have a folder, in order."""
        found = []
        for path in self._listed(self.root):
            with suppress(ValueError):
                found.append(date.fromisoformat(path.name))
        return sorted(found)

    def files(self, day: date) -> list[LogFile]:
        """Return the files of *day*, in the order of their first events."""
        found = [(path, _NAME.fullmatch(path.name)) for path in self._listed(self._folder(day))]
        files = [LogFile(path, name[1], int(name[2]), int(name[3]), name[4]) for path, name in found if name]
        return sorted(files, key=lambda file: (file.first, file.id, file.level))

    def _listed(self, folder: Path) -> list[Path]:
        """Return what is in *folder*; nothing where it has gone, is no folder, or may not be looked into."""
        try:
            return list(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._skip(folder, error.strerror or repr(error))
            return []

    def bytes(self) -> int:
        """Return what all files take on disk."""
        return sum(file.size for day in self.days() for file in self.files(day))

    def _folder(self, day: date) -> Path:
        return self.root / day.isoformat()

    # Writing

    def write(self, day: date, kind: str, rows: pa.Table, first: int) -> None:
        """Add *rows* to *day*, the first of them with the number *first*; join files that have become many."""
        self._publish(day, kind, 0, first, f"{next(self._numbers):08x}{uuid.uuid4().hex[:8]}", rows.to_batches())
        level = 0
        while sum((file.kind, file.level) == (kind, level) for file in self.files(day)) >= MANY:
            self._join(day, kind, level)
            level += 1

    def close_day(self, day: date) -> None:
        """Join what *day* has into one file of each kind."""
        for kind in KINDS:
            if sum(file.kind == kind for file in self.files(day)) > 1:
                self._join(day, kind)

    def _join(self, day: date, kind: str, level: int | None = None) -> None:
        """Join the files of *level* (None: of all), and remove those whose rows another has."""
        with ExitStack() as opened:
            live, replaced = self._live(day, kind, opened)
            chosen = [each for each in live if level in {None, each.file.level}]
            if len(chosen) > 1:
                rows = (batch for each in chosen for batch in self._batches(each.file, each.parquet, KINDS[kind].names))
                files = [each.file for each in chosen]
                first, above = files[0], max(file.level for file in files) + 1
                self._publish(day, kind, above, first.first, first.id, rows, files)
                replaced += files
            for file in replaced:
                disk.let_go(file.path, Removal.RETIRE)

    def _publish(
        self,
        day: date,
        kind: str,
        level: int,
        first: int,
        file_id: str,
        batches: Sequence[pa.RecordBatch] | Iterator[pa.RecordBatch],
        replaced: Sequence[LogFile] = (),
    ) -> None:
        path = self._folder(day) / f"{kind}-{level}-{first:016}-{file_id}{SUFFIX}"
        facts = {_FORMAT_KEY: str(FORMAT), _REPLACES_KEY: json.dumps([file.path.name for file in replaced])}
        with disk.creating(path, sync=False, purpose=Purpose.ACCESS) as file:
            options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
            with pq.ParquetWriter(file, KINDS[kind], **options) as writer:
                writer.add_key_value_metadata(facts)
                for batch in batches:
                    writer.write_batch(batch)

    # Reading

    def read(self, day: date, kind: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of *day* with *columns* (None: all), nearly in the order in which they were written."""
        with ExitStack() as opened:
            live, _ = self._live(day, kind, opened)
            for each in live:
                yield from self._batches(each.file, each.parquet, columns or KINDS[kind].names)

    def _live(self, day: date, kind: str, opened: ExitStack) -> tuple[list[_Opened], list[LogFile]]:
        """Return the files of *day*, opened at one moment, and apart from them those that another of them replaces."""
        for _ in range(_TRIES):
            files = [file for file in self.files(day) if file.kind == kind]
            found = self._opened(files, opened)
            if all(file.path.exists() for file in files):  # else some were joined between looking and opening
                break
        gone = {name for each in found for name in each.replaces}
        live = [each for each in found if each.file.path.name not in gone]
        return live, [each.file for each in found if each.file.path.name in gone]

    def _opened(self, files: Sequence[LogFile], opened: ExitStack) -> list[_Opened]:
        found = []
        for file in files:
            try:
                parquet = opened.enter_context(pq.ParquetFile(file.path, page_checksum_verification=True))
                if (why := _other_format(parquet, file.kind)) is None:
                    found.append(_Opened(file, parquet, _replaces(parquet)))
                    continue
            except FileNotFoundError:
                continue
            except _UNREADABLE as error:
                why = str(error).splitlines()[0] if str(error) else repr(error)
            self._skip(file.path, why)
        return found

    def _batches(self, file: LogFile, parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                yield pa.RecordBatch.from_arrays(
                    [batch.column(name).cast(KINDS[file.kind].field(name).type) for name in columns],
                    schema=pa.schema([KINDS[file.kind].field(name) for name in columns]),
                )
        except _UNREADABLE as error:
            self._skip(file.path, str(error).splitlines()[0] if str(error) else repr(error))

    def _skip(self, path: Path, why: str) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("a file of the access log cannot be read and is skipped", file=str(path), why=why)

    # Tidying

    def sweep(self) -> None:
        """Remove what a process that died had not finished."""
        for path in (*self.root.glob(f"*{disk.TEMPORARY}"), *self.root.glob(f"*/*{disk.TEMPORARY}")):
            disk.let_go(path, Removal.SWEEP)

    def keep(self, today: date, days: float, most_bytes: int) -> None:
        """Join the files of days that are over; remove days older than *days*, and the oldest files beyond *most_bytes*.

        A clock that jumps ahead must not empty the log: days are counted from the last one before today that has events, so a
        new date is believed on the day after it.
        """
        held = self.days()
        past = [day for day in held if day < today]
        for day in past:
            self.close_day(day)
        newest = past[-1] if past else today
        for day in past:
            if day < newest - timedelta(days=days):
                self._remove(day, self.files(day))
        excess = self.bytes() - most_bytes
        for day in held:
            for file in self.files(day):
                if excess <= 0:
                    return
                excess -= file.size
                self._remove(day, [file])

    def _remove(self, day: date, files: Sequence[LogFile]) -> None:
        for file in files:
            disk.let_go(file.path, Removal.VACUUM)
        with suppress(OSError):  # it is not empty, or has gone
            self._folder(day).rmdir()


def _facts(parquet: pq.ParquetFile) -> Mapping[bytes, bytes]:
    return parquet.metadata.metadata or {}


def _replaces(parquet: pq.ParquetFile) -> list[str]:
    """Return the names of the files whose rows *parquet* has; ``ValueError`` where its footer does not say."""
    names = json.loads(_facts(parquet).get(_REPLACES_KEY, b"null"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its footer does not tell which files it replaces")
    return names


def _other_format(parquet: pq.ParquetFile, kind: str) -> str | None:
    """Return why *parquet* is no file of the log as this version writes it; None where it is."""
    said = _facts(parquet).get(_FORMAT_KEY)
    if said != str(FORMAT).encode():
        return f"its format is {said.decode(errors='replace') if said else 'unknown'}, this version reads {FORMAT}"
    if parquet.schema_arrow.names != KINDS[kind].names:
        return f"it has the columns {', '.join(parquet.schema_arrow.names)}"
    return None

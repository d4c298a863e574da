"""The folder that holds everything: one process at a time, files that appear whole and leave after their last reader.

<store>/LOCK               who has the store open
<store>/catalogue.sqlite   which files make up which dataset, and what is known
<store>/COMMITTED          the number of the last commit
<store>/journal/           segments: what fills and writes added
<store>/data/<dataset>/    partitions: what compaction made of them
<store>/manifests/         which partitions make up which dataset, for ``rebuild``
<store>/set-aside/         files whose checksum failed, for somebody to look at
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import StoreError, StoreInUse, UnknownDataset
from fletching_server import disk, parquet
from fletching_server.calendars import day_number
from fletching_server.catalogue import HISTORY_DAYS, Catalogue, Change
from fletching_server.clock import Clock
from fletching_server.failpoints import Purpose, Removal
from fletching_server.image import Image
from fletching_server.snapshot import Asked, DatasetState, FileKind, StoredFile
from fletching_server.upkeep import Expire
from fletching_server.volume import mount

FOOTER_FORMAT: Final = 3
_CATALOGUE: Final = ("catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm", "COMMITTED")
MANIFESTS: Final = "manifests"
_ids, _latest = threading.Lock(), [0]
_PASTS: Final = 32  # pictures of the past that are kept for whoever reads them again

if TYPE_CHECKING:
    from collections.abc import Iterator


class DamagedFile(Exception):  # noqa: N818  # what happened, not an error of the interface: see repair
    """A stored file is missing, or its bytes are not those that were written."""

    def __init__(self, file: StoredFile, why: str) -> None:
        super().__init__(f"{file.path} of {file.dataset} {why}")
        self.file = file


@dataclass(frozen=True)
class _Retired:
    path: Path
    seq: int
    why: Removal


class Store:
    """The durable side of one engine: the catalogue, and the files it vouches for."""

    def __init__(
        self, root: Path, clock: Clock | None = None, history_days: float = HISTORY_DAYS, *, aside: Path | None = None
    ) -> None:
        """Open the store at *root*; with *aside*, a folder, its catalogue is moved there and an empty one made instead."""
        self.root = root
        if root.exists() and not root.is_dir():
            raise StoreError(f"the store {root} is a file; name a folder")
        mount(root)
        disk.make_folder(root)
        self._lock = _take(root)
        if aside is not None:
            for name in _CATALOGUE:
                disk.set_aside(root / name, aside)
        try:
            # Without the catalogue every data file would look like an orphan: it is not made anew beside them.
            self.catalogue = Catalogue(
                root / "catalogue.sqlite",
                create=aside is not None or next(self._data_files(), None) is None,
                clock=clock,
                history_days=history_days,
            )
        except BaseException:
            self._lock.release()
            raise
        self._pins_lock = threading.Lock()
        self._pins: dict[str, Counter[int]] = defaultdict(Counter)
        self._retired: dict[str, list[_Retired]] = defaultdict(list)
        self._past: OrderedDict[tuple[str, int], DatasetState] = OrderedDict()
        self._trusted: dict[str, str] = {}  # files whose checksum was found right, with that of their footer

    # Reading: a pinned picture keeps its files on disk.

    def state(self, dataset: str) -> DatasetState:
        """Return the present picture of *dataset*; ``UnknownDataset`` names what there is."""
        state = self.catalogue.state(dataset)
        if state is None:
            there = ", ".join(known.dataset.name for known in self.catalogue.states()) or "none yet"
            raise UnknownDataset(f"there is no dataset {dataset!r}; there are: {there}")
        return state

    @contextmanager
    def pinned(self, dataset: str) -> Iterator[DatasetState]:
        """Yield the present picture of *dataset*, whose files stay on disk until the end."""
        with self._pins_lock:
            state = self.state(dataset)
            self._pins[dataset][state.generation] += 1
        try:
            yield state
        finally:
            self._unpin(dataset, state.generation)

    def _unpin(self, dataset: str, generation: int) -> None:
        with self._pins_lock:
            pins = self._pins[dataset]
            pins[generation] -= 1
            if not pins[generation]:
                del pins[generation]
            leaving = self._leaving(dataset)
        for old in leaving:
            disk.let_go(old.path, old.why)

    @contextmanager
    def pinned_past(self, dataset: str, generation: int) -> Iterator[DatasetState]:
        """Yield *dataset* as it was at *generation*, as a table; its files stay until the end. ``HistoryGone`` passes."""
        with self._pins_lock:
            self._pins[dataset][generation] += 1  # before looking: what leaves from here on stays for us
        try:
            yield self.past(dataset, generation)
        finally:
            self._unpin(dataset, generation)

    def past(self, dataset: str, generation: int) -> DatasetState:
        """Return *dataset* as it was at *generation*; for looking only, its files may leave."""
        with self._pins_lock:
            found, kept = self._past.get((dataset, generation)), self._past
        if found is None:
            found = self.catalogue.past(dataset, generation)
            with self._pins_lock:  # into those of then: files of it may have left since, and the others are of now
                kept[dataset, generation] = found
                while len(kept) > _PASTS:
                    kept.popitem(last=False)
        return found

    def path(self, file: StoredFile) -> Path:
        """Return where *file* lies, once its checksum has been found right since the start; ``DamagedFile`` else.

        From then on its pages are checked as they are read, by their own checksums. The footer has none, and a broken one
        misleads the reader or ends the process, so it is compared each time.
        """
        path = self.root / file.path
        if (known := self._trusted.get(file.id)) is None:
            self.verify(file)
            self._trusted[file.id] = self._footer(file)
        elif known != self._footer(file):
            self._trusted.pop(file.id, None)
            raise DamagedFile(file, "has another footer than was written")
        return path

    def _footer(self, file: StoredFile) -> str:
        try:
            length = int.from_bytes(disk.tail(self.root / file.path, file.bytes, 8)[:4], "little") + 8
            return disk.digest(disk.tail(self.root / file.path, file.bytes, min(length, file.bytes)))
        except OSError as error:
            raise DamagedFile(file, f"cannot be read: {error}") from error

    def verify(self, file: StoredFile, paced: Callable[[int], None] | None = None) -> None:
        """Raise ``DamagedFile`` where *file* is missing or its bytes are not those that were written."""
        path = self.root / file.path
        try:
            found = disk.file_digest(path, paced)
        except OSError as error:
            raise DamagedFile(file, f"cannot be read: {error}") from error
        if found != file.digest:
            raise DamagedFile(file, f"has checksum {found}, not {file.digest} as written")

    # Writing: a file is published first and becomes part of a dataset by a commit.

    def publish(
        self,
        dataset: Dataset,
        image: Image,
        kind: FileKind,
        *,
        sync: bool,
        period: str = "",
        bucket: int = 0,
        asked: FetchRequest | None = None,
        through: str = "",
        tells: Mapping[str, Any] | None = None,
        purpose: Purpose | None = None,
    ) -> StoredFile:
        """Write *image*, which answers *asked* where it is a fill, as a new file, and return its record.

        Nothing refers to the file before a commit does. *through* is the id of the last file whose rows went into it, where it
        was made of others; what it *tells* besides is for ``rebuild``.
        """
        file_id = new_id()
        first, last = image.days
        cells = (day_number(asked.start), day_number(asked.end)) if asked else ()
        placed = {"kind": kind, "period": period, "bucket": bucket, "first_day": first, "last_day": last, "through": through}
        told = {"asked": asked and [*cells, *asked.symbols], **(tells or {})}
        facts = footer_facts(dataset, file_id, **placed, **told)
        packing = parquet.PASSING if kind == "segment" else parquet.LASTING
        data = parquet.encode(dataset, image.table, facts, packing, (image.symbols, image.offsets))
        folder = "journal" if kind == "segment" else f"data/{dataset.name}/{period}"
        relative = f"{folder}/{dataset.name}-{period + '-' if period else ''}{bucket}-{file_id}.parquet"
        found = disk.publish(self.root / relative, data, sync=sync, purpose=purpose or _purpose(kind, sync=sync))
        written = StoredFile(
            file_id,
            dataset.name,
            kind,
            period,
            bucket,
            relative,
            found,
            data.size,
            image.nbytes,
            image.table.num_rows,
            first,
            last,
            tuple(sorted(asked.symbols if asked else image.symbols)),
            asked=(Asked(*cells),) if cells else (),
            through=through,
        )
        length = int.from_bytes(memoryview(data)[-8:-4], "little") + 8
        self._trusted[file_id] = disk.digest(memoryview(data)[-length:])
        return written

    def declare(self, state: DatasetState, partitions: Iterable[StoredFile], through: str) -> None:
        """Write down which *partitions* make up the dataset once all segments up to the id *through* are in them.

        Before the commit that says so: ``rebuild`` believes the newest list whose files are all there. The one before stays
        until there is another.
        """
        spans: dict[str, list[str]] = defaultdict(list)
        for symbol, known in state.coverage.items():
            for span in known:
                spans[json.dumps(span)].append(symbol)
        document = {
            "dataset": state.dataset.to_json(),
            "source": state.source,
            "through": through,
            "partitions": [[file.id, file.period, file.bucket] for file in partitions],
            "coverage": [[*json.loads(span), symbols] for span, symbols in spans.items()],
        }
        folder, name = self.root / MANIFESTS, state.dataset.name
        before = sorted(folder.glob(f"{name}-*.json"))
        disk.publish(folder / f"{name}-{new_id()}.json", json.dumps(document).encode(), sync=True, purpose=Purpose.MANIFEST)
        for old in before[:-1]:
            disk.let_go(old, Removal.RETIRE)

    def undeclare(self, dataset: str) -> None:
        """Remove the lists of partitions of a *dataset* that has been deleted."""
        for old in (self.root / MANIFESTS).glob(f"{dataset}-*.json"):
            disk.let_go(old, Removal.RETIRE)

    def declared_through(self, dataset: str) -> str:
        """Return the id up to which all segments of *dataset* are in partitions, by its newest list; empty: nobody said."""
        listed = sorted((self.root / MANIFESTS).glob(f"{dataset}-*.json"))
        return str(json.loads(listed[-1].read_bytes())["through"]) if listed else ""

    def discard(self, file: StoredFile) -> None:
        """Remove a published *file* that no commit will mention."""
        self._trusted.pop(file.id, None)
        disk.let_go(self.root / file.path, Removal.DISCARD)

    def commit(self, change: Change, retired: Iterable[StoredFile] = (), why: Removal = Removal.RETIRE) -> int:
        """Make *change* durable and visible; *retired* files, and what the past needs no more, leave after their last reader.

        After an error the outcome is not known for certain, so files stay: what no dataset refers to is swept at the
        next start.
        """
        seq, gone = self.catalogue.commit(change)
        with self._pins_lock:
            if gone:
                self._past = OrderedDict()
            self._retired[change.dataset] += [_Retired(self.root / file.path, seq, why) for file in (*gone, *retired)]
            leaving = self._leaving(change.dataset)
        for old in leaving:
            disk.let_go(old.path, old.why)
        return seq

    def _leaving(self, dataset: str) -> list[_Retired]:
        """Take out the retired files that no pinned picture still lists. Runs under the lock; the caller removes them."""
        if not self._retired[dataset]:
            return []
        oldest = min(self._pins[dataset], default=None)
        leaving = [old for old in self._retired[dataset] if oldest is None or old.seq <= oldest]
        self._retired[dataset] = [old for old in self._retired[dataset] if not (oldest is None or old.seq <= oldest)]
        return leaving

    def orphans(self) -> list[Path]:
        """Return files that no dataset refers to: a process died between writing and committing them."""
        wanted = self.catalogue.paths()
        return [self.root / path for path in self._data_files() if path not in wanted]

    def _data_files(self) -> Iterator[str]:
        """Yield the paths of all data files as the catalogue writes them; ``Path.rglob`` takes twenty times as long."""
        for top in ("journal", "data"):
            for folder, _, names in os.walk(self.root / top):
                relative = folder[len(str(self.root)) + 1 :]
                yield from (f"{relative}/{name}" for name in names)

    def sweep(self) -> int:
        """Remove the orphans, and return how many there were. For the start only: later they may be on their way in."""
        orphans = self.orphans()
        for path in orphans:
            disk.let_go(path, Removal.SWEEP)
        return len(orphans)

    def set_aside(self, file: StoredFile) -> Path | None:
        """Move a damaged file out of the way, and return its new place."""
        self._trusted.pop(file.id, None)
        return disk.set_aside(self.root / file.path, self.root / "set-aside")

    def disk_bytes(self) -> int:
        """Return how many bytes the files of all datasets take, those that only the past refers to included."""
        return self.catalogue.bytes()

    def history_bytes(self) -> int:
        """Return how many bytes of these only the past refers to."""
        return self.catalogue.bytes(retired=True)

    def vacuum(self, dataset: str, history_days: float | None = None) -> int:
        """Forget the past of *dataset* that is older than it is kept, or than *history_days*; return the bytes that leave."""
        before = self.catalogue.bytes(dataset, retired=True)
        self.commit(Expire(dataset, self.catalogue.cutoff(dataset, history_days)), why=Removal.VACUUM)
        return before - self.catalogue.bytes(dataset, retired=True)

    def close(self) -> None:
        """Close the catalogue and give the folder back."""
        self.catalogue.close()
        self._lock.release()


def _purpose(kind: FileKind, *, sync: bool) -> Purpose:
    if kind == "partition":
        return Purpose.FOLD
    return Purpose.WRITE if sync else Purpose.FILL


def new_id() -> str:
    """Return a name that nobody else has, and that sorts after those made before it: the instant, then chance."""
    with _ids:
        _latest[0] = max(_latest[0] + 1, time.time_ns())  # names, not times: a clock that is passed in may stand still
        return f"{_latest[0]:016x}{uuid.uuid4().hex[:16]}"


def footer_facts(dataset: Dataset, file_id: str, **told: Any) -> dict[str, Any]:
    """Return what a file tells about itself in its footer."""
    return {"format": FOOTER_FORMAT, "dataset": dataset.to_json(), "id": file_id, **told}


def _take(root: Path) -> disk.Lock:
    try:
        return disk.Lock(root / "LOCK")
    except BlockingIOError as error:
        raise StoreInUse(
            f"the store {root} is open in {error}; one process at a time: connect to that server, or stop it first"
        ) from error

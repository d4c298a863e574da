"""An import from its plan to its report: stage, merge, publish, record."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import polars as pl
import pyarrow as pa

from fletching_schemas.errors import InvalidRequest
from fletching_server import disk
from fletching_server.clock import Clock, SystemClock
from fletching_server.engine import Engine
from fletching_server.importing.job import Job, Staged
from fletching_server.importing.merge import Counts, Merge, Opener, shares_by_period
from fletching_server.importing.merging import Share
from fletching_server.importing.plan import ImportPlan
from fletching_server.importing.planning import ImportRequest, make_plan
from fletching_server.importing.publishing import Publication
from fletching_server.importing.rejects import write_rejects
from fletching_server.importing.report import Counting, ImportReport, Progress
from fletching_server.importing.runs import NEWEST
from fletching_server.importing.staging import Staging
from fletching_server.system import refuse_system

PARTITION_BYTES: Final = 256 << 20  # of Arrow, that a partition of a new table should have at most
SENT_BYTES: Final = 64 << 20  # of Arrow, in one write to a server
_MOST_BUCKETS: Final = 4096
_SYMBOL_BYTES: Final = 16

Show = Callable[[Progress], None]
Write = Callable[..., Any]


def workers() -> int:
    """Return how many chunks are parsed at a time: one per core that this process may use, at most eight."""
    return min(8, len(os.sched_getaffinity(0)))


@dataclass
class Running:
    """One import under way: *memory_bytes* bound what is held of it at a time, *show* is told how far it is."""

    plan: ImportPlan
    job: Job
    memory_bytes: int = 512 << 20
    clock: Clock = field(default_factory=SystemClock)
    show: Show | None = None

    def __post_init__(self) -> None:
        self.counting = Counting(sum(source.bytes for source in self.plan.inputs), self.clock.monotonic, self.show)
        self.resumed_chunks = len(self.job.staged())
        self.staged: list[Staged] = []
        self.digests: dict[str, str] = {}

    def stage(self) -> None:
        """Bring all inputs to sorted runs; ``InvalidRequest`` where they hold no row that can be imported."""
        staging = Staging(self.plan, self.job, workers(), self.counting.read)
        self.staged, self.digests = staging.run(), staging.digests
        if not any(chunk.rows for chunk in self.staged):
            self._refuse()
        if self.plan.free_buckets:
            self.plan = replace(self.plan, dataset=replace(self.plan.dataset, buckets=self._buckets()))

    @property
    def _read(self) -> int:
        return sum(chunk.records for chunk in self.staged)

    def facts(self) -> dict[str, Any]:
        """Return what was read, for the records."""
        told = self.plan.facts()
        inputs = [
            {**entry, "digest": self.digests.get(str(source.path))}
            for entry, source in zip(told["inputs"], self.plan.inputs, strict=True)
        ]
        return {**told, "inputs": inputs, "read": self._read, "rejected": sum(chunk.bad for chunk in self.staged)}

    def _refuse(self) -> NoReturn:
        path = self.job.folder / "rejects.csv"
        write_rejects(path, self.plan, self.job, self.staged)
        first = next((self.job.bad(chunk)["reason"][0] for chunk in self.staged if chunk.bad), "there is none")
        self.job.clear()
        raise InvalidRequest(
            f"nothing could be imported into {self.plan.dataset.name}: all of {self._read:,} rows were rejected, "
            f"the first as {first}. All reasons are in {path}"
        )

    @property
    def _row_bytes(self) -> float:
        size = sum(self.job.rows(chunk).stat().st_size for chunk in self.staged)
        return size / max(sum(chunk.rows for chunk in self.staged), 1) + _SYMBOL_BYTES

    def _buckets(self) -> int:
        """Return into how many buckets the largest period must be divided, as a power of two."""
        shares = shares_by_period(self.job, self.staged)
        rows = max(sum(int(share.symbols["rows"].sum()) for share in found) for found in shares.values())
        parts = rows * self._row_bytes / PARTITION_BYTES
        return min(_MOST_BUCKETS, 1 << max(0, math.ceil(math.log2(max(parts, 1)) - 0.1)))  # a little more is no harm

    def merge(self, opener: Opener, held: Callable[[str], Sequence[Share]] = lambda _: (), at_once: int = 2) -> Counts:
        """Hand the merged rows of every period, with those *held*, to what *opener* opens, and return what became of them."""
        shares = {period: [*held(period), *found] for period, found in shares_by_period(self.job, self.staged).items()}
        at_once = min(at_once, len(shares))
        group_rows = max(1, int(self.memory_bytes / (12 * at_once) / self._row_bytes))
        merge = Merge(self.plan, self.job, shares, group_rows, opener, self.counting.merged, at_once)
        merge.run()
        return merge.counts

    def report(self, counts: Counts, partitions: int, *, dry_run: bool = False) -> ImportReport:
        """Return what became of it, and write the rejects (not of a dry run)."""
        path = self.job.folder / "rejects.csv"
        rejects = 0 if dry_run else write_rejects(path, self.plan, self.job, self.staged)
        return ImportReport(
            self.plan.dataset.name,
            self.job.folder.name,
            self._read,
            counts.kept,
            counts.reduced,
            counts.equal,
            counts.different,
            counts.replaced,
            sum(chunk.bad for chunk in self.staged),
            partitions,
            len(self.plan.inputs),
            self.counting.seconds,
            self.resumed_chunks,
            path if rejects else None,
            dry_run,
        )

    def finished(self, counts: Counts, partitions: int) -> ImportReport:
        """Return the report, kept in the job's folder with the rejects; the rest of the folder is removed."""
        report = self.report(counts, partitions)
        self.job.note("report.json", report.facts())
        self.job.clear()
        return report


def plan_import(engine: Engine, request: ImportRequest) -> ImportPlan:
    """Return what importing *request* into the store of *engine* will do; nothing is written."""
    refuse_system(request.dataset)
    state = engine.store.catalogue.state(request.dataset)
    if engine.desk.source(request.dataset) or (state and not state.is_table):
        raise InvalidRequest(f"{request.dataset} is filled from a source; import into a table of your own")
    return make_plan(request, state.dataset if state else None, workers())


def run_import(engine: Engine, plan: ImportPlan, *, memory_bytes: int = 512 << 20, show: Show | None = None) -> ImportReport:
    """Return once the rows of *plan* are durable and visible in the store of *engine*, all of them at once.

    What a process that was interrupted had staged of the same plan is used. Raises ``InvalidRequest`` for inputs that cannot be
    read or hold nothing, and ``StoreUnwritable`` where the disk is full; both leave what is staged.
    """
    job = Job(engine.store.root / "import" / plan.id)
    running = Running(plan, job, memory_bytes, engine.clock, show)
    running.stage()
    publication = Publication(engine, running.plan, job, running.facts())
    counts = publication.publish(running.merge)
    return running.finished(counts, len(publication.files))


def dry_run(
    plan: ImportPlan, *, memory_bytes: int = 512 << 20, clock: Clock | None = None, show: Show | None = None
) -> ImportReport:
    """Return what importing *plan* would count: everything is read, and sorted in a folder that is gone afterwards.

    Rows that would be ``replaced`` are not counted, as the table is not looked at.
    """
    with tempfile.TemporaryDirectory(prefix="fletching-import-") as folder:
        running = Running(plan, Job(Path(folder)), memory_bytes, clock or SystemClock(), show)
        running.stage()
        counts = running.merge(_nowhere)
        return running.report(counts, counts.periods, dry_run=True)


class _Nowhere:
    def add(self, frame: pl.DataFrame) -> None:
        """Let it go."""


@contextmanager
def _nowhere(_period: str) -> Iterator[_Nowhere]:
    yield _Nowhere()


def send_import(
    write: Write, plan: ImportPlan, folder: Path, *, memory_bytes: int = 512 << 20, show: Show | None = None
) -> ImportReport:
    """Return once the rows of *plan* were given to *write* (``Cache.write``), sorted, in parts of some 64 MB.

    They are staged below *folder*. Each part is durable by itself: a reader may see some before others. An interrupted import
    goes on where staging ended; parts that were written have a key by which the server knows them.
    """
    job = Job(folder / plan.id)
    with _alone(job):
        running = Running(plan, job, memory_bytes, SystemClock(), show)
        running.stage()
        sending = _Sending(write, running.plan, f"{plan.id}-{job.run_id()}")
        counts = running.merge(sending.opened, at_once=1)
        return running.finished(counts, sending.parts)


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Keep others from running *job* meanwhile; in a store its lock does."""
    try:
        lock = disk.Lock(job.folder / "LOCK")
    except BlockingIOError as error:
        raise InvalidRequest(f"this very import is under way in {error}") from error
    try:
        yield
    finally:
        lock.release(remove=True)


@dataclass
class _Sending:
    """Writes rows to a server, part by part."""

    write: Write
    plan: ImportPlan
    job: str
    parts: int = 0

    @contextmanager
    def opened(self, _period: str) -> Iterator[_Sending]:
        """Yield itself: to a server all periods are the same."""
        yield self

    def add(self, frame: pl.DataFrame) -> None:
        """Write *frame*."""
        dataset = self.plan.dataset
        table: pa.Table = frame.to_arrow(compat_level=NEWEST).cast(dataset.schema)
        rows = max(1, table.num_rows * SENT_BYTES // max(table.nbytes, SENT_BYTES))
        for start in range(0, table.num_rows, rows):
            key = f"import-{self.job}-{self.parts}"
            new = {"keys": dataset.keys, "time": dataset.time, "partition": dataset.period}
            self.write(dataset.name, table.slice(start, rows), key=key, **new)
            self.parts += 1

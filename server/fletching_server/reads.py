"""One read: plan, close the gaps, hold each file in memory or read it, and stream the rows in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from threading import get_ident
from typing import Final, TypeVar

import pyarrow as pa

from fletching_schemas import PartRequest, ReadInfo, ReadRequest, Tier
from fletching_schemas.errors import CorruptFile, Error
from fletching_server.answering import Answer
from fletching_server.batches import cut, row_bytes, rows_per_batch
from fletching_server.clock import Clock
from fletching_server.completion import Completion
from fletching_server.holding import Holding
from fletching_server.noting import MOST_WAITING, Queue
from fletching_server.pictures import Pictures
from fletching_server.pieces import Tally, parts
from fletching_server.plan import Plan, divided, estimated_bytes
from fletching_server.plans import Plans
from fletching_server.progress import ProgressBoard
from fletching_server.reading import Reading
from fletching_server.repair import Repairs
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile
from fletching_server.telling import tell
from fletching_server.tracking import Tracking

PART_BYTES: Final = 32 << 20  # an answer of twice that is worth a second connection
_TRIES: Final = 64  # a damaged file costs two: it is set aside, and what rested on it is fetched again

T = TypeVar("T")
Ending = Callable[[Plan, DatasetState, ExitStack], T]  # what is done with a plan without gaps, while its files stay


@dataclass(frozen=True)
class Prepared:
    """What it took to have the cells of a read on disk, and which symbols could not be fetched."""

    upstream_calls: int
    joined_calls: int
    rows: int
    failed: Mapping[str, Error]


class Reads:
    """The read path of one engine. Close it."""

    def __init__(
        self,
        pictures: Pictures,
        plans: Plans,
        completion: Completion,
        holding: Holding,
        repairs: Repairs,
        clock: Clock,
        stats: Stats,
        queue: Queue | None,
        tracking: Tracking,
    ) -> None:
        self.pictures = pictures
        self._plans, self._completion, self._holding, self._repairs = plans, completion, holding, repairs
        self._clock, self._stats, self._tracking = clock, stats, tracking
        self._queue = queue  # of the access log; None: there is none
        self._answering: set[int] = set()  # threads that work on the beginning of an answer
        self.progress = ProgressBoard()

    def read(
        self, asked: ReadRequest | PartRequest, plane: str, principal: str = "", demand: ReadRequest | None = None
    ) -> Answer:
        """Return the answer to *asked*: gaps are closed before this returns, rows move as it is read.

        Where some symbols cannot be fetched the others are answered if the request asks for the info that says so; else the
        first failure is raised, and what arrived is kept for the next time. *principal* is who asks, for a fair turn. *demand*
        is the request of theirs that this read serves, as the access log tells it; None: nobody asked, and nothing is logged.
        """
        part, request = (asked, asked.read) if isinstance(asked, PartRequest) else (None, self.pictures.settled(asked))
        with self.progress.following(request.progress_id) as progress:
            info = ReadInfo(request.dataset, plane)
            reading = Reading(info, self._clock.monotonic(), progress, self._clock.now(), principal, part, demand)
            me = get_ident()
            self._answering.add(me)
            try:
                return self._read(request, reading, lambda plan, state, held: self._answer(request, plan, state, reading, held))
            finally:
                self._answering.discard(me)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for the beginning of an answer."""
        return bool(self._answering)

    def prepare(self, request: ReadRequest, load: Callable[[Plan], None]) -> Prepared:
        """Return what it took to close the gaps of *request* before anybody asked, in calls that people go before.

        *load* sees the plan while its files stay on disk; where it meets a damaged one that is mended, and it sees another
        plan. Symbols that could not be fetched are told, and raised only where none of them could.
        """
        with self.progress.following(request.progress_id) as progress:
            request = replace(request, info=True)
            info, now = ReadInfo(request.dataset), self._clock.now()
            reading = Reading(info, self._clock.monotonic(), progress, now, early=True)
            self._read(request, reading, lambda plan, _state, _held: load(plan))
            return Prepared(info.upstream_calls, info.joined_calls, reading.fetched_rows, reading.failed | reading.stale)

    def _read(self, request: ReadRequest, reading: Reading, ending: Ending[T]) -> T:
        try:
            return self._ended(request, reading, ending)
        finally:
            if reading.awaited is not None:
                reading.awaited()

    def _ended(self, request: ReadRequest, reading: Reading, ending: Ending[T]) -> T:
        now = reading.at  # one instant for all tries, or fresh rows would be too old
        for _ in range(_TRIES):
            try:
                with ExitStack() as held:
                    state = held.enter_context(self.pictures.pinned(request))
                    plan = self._plans.of(request, state, now)
                    if reading.part is not None:
                        plan = divided(plan, state.generation, reading.part)
                    gaps = reading.left(plan, state)
                    if gaps and request.on_miss != "cached":
                        self._completion.close_gaps(request, plan, gaps, state, reading)
                        continue  # the picture has changed: look again
                    self._completion.judge(request, plan, state, reading)
                    return ending(plan, state, held)
            except DamagedFile as damage:
                self._repairs.mend(damage)
        raise CorruptFile(f"{request.dataset}: files keep failing their checksums; check the disk and run `fletching verify`")

    # The answer

    def _answer(self, request: ReadRequest, plan: Plan, state: DatasetState, reading: Reading, held: ExitStack) -> Answer:
        info = reading.info
        info.partitions, info.generation = len(plan.files), state.generation
        if request.info:
            tell(reading, plan, state, self._clock.now(), fillable=self._completion.fillable(request.dataset))
        found, runs = self._holding.found(request, plan, reading.principal, held)
        in_memory = None not in runs
        rows = parts(found, Tally(info, plan.columns, reading.filled))
        ahead = list(islice(rows, 2 if in_memory else 1))  # read here, where a damaged file can still be mended
        size = _batch_rows(plan)
        reading.cold = [file.key for file, run in zip(plan.files, runs, strict=True) if run is None or run.tier != "hot"]
        if self._tracking.marks and reading.demand is not None:
            self._meet(plan, reading)
        held.callback(self.finish, reading, request, plan)
        if plan.due and request.on_miss == "fill":
            self._completion.refresh(plan, state)
        if in_memory and len(ahead) < 2 and not any(run and run.image.has_text for run in runs):
            whole = ahead[0].table((plan.columns,)) if ahead else plan.schema.empty_table()
            return Answer(plan.schema, whole, info, held.pop_all(), size, plan, iter(ahead), reading=reading)
        following = chain(ahead, rows)
        batches = cut((part.table((plan.columns,)) for part in following), size)
        rows_lying = following if in_memory else None
        return Answer(plan.schema, self._rest(batches), info, held.pop_all(), size, plan, rows_lying, reading=reading)

    def _rest(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield *batches*; rows have left already, so a file found damaged now is mended for the next read only."""
        try:
            yield from batches
        except DamagedFile as damage:
            self._repairs.mend(damage)
            raise CorruptFile(f"{damage}; it has been set aside, and what it held is forgotten: read again") from damage

    def _meet(self, plan: Plan, reading: Reading) -> None:
        """Find which files were there because somebody was expected to ask, and tell."""
        met = self._tracking.met(plan, in_memory=not reading.cold, waited=bool(reading.filled))
        if met:
            reading.warmed = tuple(any(mark.holds(file) for mark in met) for file in plan.files)
            reading.info.warmed = sum(reading.warmed)

    def finish(self, reading: Reading, request: ReadRequest, plan: Plan) -> None:
        """Count the read that has ended, and where somebody asked for it take it down for the access log."""
        info = reading.info
        info.milliseconds = (self._clock.monotonic() - reading.started) * 1e3
        self._stats.read_ended(info)
        queue, demand = self._queue, reading.demand
        if queue is None or demand is None:
            return
        # Written out, as every call and object shows: a read from memory takes a tenth of a millisecond.
        asked = None if plan.lasting and demand is request else (demand, request)
        noted = reading.noted = (
            reading.at,
            reading.principal,
            asked,
            plan,
            tuple(reading.cold),
            info.upstream_calls,
            info.rows,
            info.bytes,
            info.milliseconds,
            reading.began,
            reading.warmed,
            reading.part,
        )
        if asked is None and len(queue.waiting) < MOST_WAITING:
            queue.waiting.append(noted)
        else:
            queue.note(noted)

    # What a read would do, without reading

    def explain(self, request: ReadRequest) -> tuple[Plan, list[tuple[StoredFile, Tier]]]:
        """Return what a read would do now: its plan, and each file with the tier it would come from."""
        request = self.pictures.settled(request)
        plan = self._plans.of(request, self.pictures.picture(request), self._clock.now())
        return plan, [(file, self._holding.tier(file)) for file in plan.files]

    def describe(self, request: ReadRequest) -> tuple[pa.Schema, int]:
        """Return the schema of an answer, and its rows where the files alone tell them: all wanted whole, none overlapping."""
        request = self.pictures.settled(request)
        state = self.pictures.picture(request)
        plan = self._plans.of(replace(request, on_miss="cached"), state, self._clock.now())  # describing asks nobody
        whole = all(
            file.kind == "partition"
            and plan.window.first_day <= file.first_day
            and file.last_day <= plan.window.last_day
            and file.share_of(plan.symbols) == 1
            for file in plan.files
        )
        known = state.is_table or (request.symbols is not None and not plan.gaps)
        exact = known and whole and plan.window.first_instant is None and plan.window.last_instant is None
        return plan.schema, sum(file.rows for file in plan.files) if exact else -1

    def parts(self, request: ReadRequest, most: int) -> list[PartRequest]:
        """Return the parts, at most *most*, that a large answer may be read in; none where it is better read whole."""
        state = self.pictures.picture(request)
        plan = self._plans.of(request, state, self._clock.now())
        large = 0 if plan.gaps or plan.due else int(estimated_bytes(plan) / PART_BYTES)
        count = min(most, large, len(plan.symbols))
        return [PartRequest(request, part, count, state.generation) for part in range(count)] if count > 1 else []

    def close(self) -> None:
        """Return once nothing is read ahead any more."""
        self._holding.close()


def _batch_rows(plan: Plan) -> int:
    held_bytes, rows = plan.held_bytes, sum(file.rows for file in plan.files)
    share = 1.0 if plan.schema is plan.dataset.schema else row_bytes(plan.schema) / row_bytes(plan.dataset.schema)
    return rows_per_batch(held_bytes, rows, share)

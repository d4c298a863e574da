"""One read: plan, close the gaps, hold each file in memory or read it, and stream the rows in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain, islice
from threading import get_ident
from typing import Final, TypeVar

import pyarrow as pa

from fletching_schemas import Gap, PartRequest, ReadInfo, ReadRequest, Tier
from fletching_schemas.errors import (
    CorruptFile,
    Error,
    InvalidRequest,
    NotCached,
    SourceError,
    SourceTimeout,
    SourceUnavailable,
    UnknownSymbol,
    copy_of,
)
from fletching_server.almanac import Calendars
from fletching_server.answering import Answer
from fletching_server.batches import cut, row_bytes, rows_per_batch
from fletching_server.calendars import from_day_number
from fletching_server.clock import Clock
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.fills import Fills
from fletching_server.gaps import Gaps, World, present_session, unknown
from fletching_server.hot import HotTier, Lease
from fletching_server.noting import MOST_WAITING, Queue
from fletching_server.pictures import Pictures
from fletching_server.pieces import Piece, Run, Tally, parts, pieces
from fletching_server.plan import Plan, divided, estimated_bytes, named_symbols, resolve
from fletching_server.policy import cheaper_whole
from fletching_server.progress import ProgressBoard
from fletching_server.reading import Reading
from fletching_server.repair import Repairs
from fletching_server.snapshot import DatasetState, Life, StoredFile
from fletching_server.spans import PROVISIONAL, UNCONFIRMED, merged
from fletching_server.stats import Stats
from fletching_server.store import DamagedFile, Store
from fletching_server.sweeping import MOST_AHEAD, Passage, ReadAhead, Ready, Step, groups, steps
from fletching_server.telling import any_ageing, oldest_fetch, statuses, told_gaps
from fletching_server.tracking import Tracking
from fletching_server.uses import Uses

# Rows of cold files are read for as many symbols at a time as fit in this, so a large read does not need large memory.
GROUP_BYTES: Final = 32 << 20
PART_BYTES: Final = 32 << 20  # an answer of twice that is worth a second connection
SWEEP_SHARE: Final = 0.75  # of memory: a read that would hold more at once leaves nothing worth the name for anybody else
_RUN_STEPS: Final = 2  # in the same direction, one session after the other: chance does not do that
_TRIES: Final = 64  # a damaged file costs two: it is set aside, and what rested on it is fetched again

_PREPARED: Final = 4096  # plans kept; each is a few hundred bytes

_DOWN: Final = (SourceUnavailable, SourceTimeout)  # the upstream is at fault, and not what it said

Held = tuple[StoredFile, Run | None]
T = TypeVar("T")
Ending = Callable[[Plan, DatasetState, ExitStack], T]  # what is done with a plan without gaps, while its files stay


# How many steps from one session to the next this principal has made with its last requests, this one included.
RunLength = Callable[[ReadRequest, Plan, str], int]


@dataclass(frozen=True)
class Prepared:
    """What it took to have the cells of a read on disk, and which symbols could not be fetched."""

    upstream_calls: int
    joined_calls: int
    rows: int
    failed: Mapping[str, Error]


class Reads:
    """The read path of one engine."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        cold: ColdTier,
        fills: Fills,
        repairs: Repairs,
        desk: Desk,
        calendars: Calendars,
        clock: Clock,
        stats: Stats,
        uses: Uses,
        queue: Queue | None,
        tracking: Tracking,
    ) -> None:
        self._store, self._hot, self._cold, self._fills, self._repairs = store, hot, cold, fills, repairs
        self._desk, self._calendars, self._clock, self._stats, self._uses = desk, calendars, clock, stats, uses
        self._queue = queue  # of the access log; None: there is none
        self._tracking = tracking
        self._answering: set[int] = set()  # threads that work on the beginning of an answer
        self.progress = ProgressBoard()
        self.pictures = Pictures(store, calendars, clock)
        self._prepared: dict[tuple[ReadRequest, int, int, int], Plan] = {}
        self._ahead = ReadAhead(hot.ring_bytes, GROUP_BYTES)
        self._sweep_bytes = hot.main_bytes * SWEEP_SHARE
        self.run_length: RunLength | None = None  # of requests that go from session to session; who can tell says so here

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
                    plan = self._plan(request, state, now)
                    if reading.part is not None:
                        plan = divided(plan, state.generation, reading.part)
                    gaps = reading.left(plan, state)
                    if gaps and request.on_miss != "cached":
                        self._close_gaps(request, plan, gaps, state, reading)
                        continue  # the picture has changed: look again
                    self._judge(request, plan, state, reading)
                    return ending(plan, state, held)
            except DamagedFile as damage:
                self._repairs.mend(damage)
        raise CorruptFile(f"{request.dataset}: files keep failing their checksums; check the disk and run `fletching verify`")

    def _judge(self, request: ReadRequest, plan: Plan, state: DatasetState, reading: Reading) -> None:
        """Decide what failed calls mean: older rows serve, a part does for who is told that it is one, else an error."""
        if not reading.failed:
            return
        lost = unknown({symbol: plan.gaps.get(symbol, ()) for symbol in reading.failed}, state, plan.calendar)
        for symbol, error in list(reading.failed.items()):
            if symbol not in lost and isinstance(error, _DOWN) and request.max_age is None:
                reading.stale[symbol] = reading.failed.pop(symbol)
        self._stats.add(stale_reads=bool(reading.stale) and not reading.early)
        if not reading.failed:
            return
        if not request.info or len(reading.failed) == len(plan.symbols):
            raise _failure(request, plan, reading.failed)
        self._stats.add(partial_reads=not reading.early)

    def close(self) -> None:
        """Return once nothing is read ahead any more."""
        self._ahead.close()

    def explain(self, request: ReadRequest) -> tuple[Plan, list[tuple[StoredFile, Tier]]]:
        """Return what a read would do now: its plan, and each file with the tier it would come from."""
        request = self.pictures.settled(request)
        plan = self._plan(request, self.pictures.picture(request), self._clock.now())
        return plan, [(file, "hot" if self._hot.holds(file.key) else "cold") for file in plan.files]

    def describe(self, request: ReadRequest) -> tuple[pa.Schema, int]:
        """Return the schema of an answer, and its rows where the files alone tell them: all wanted whole, none overlapping."""
        request = self.pictures.settled(request)
        state = self.pictures.picture(request)
        plan = self._plan(replace(request, on_miss="cached"), state, self._clock.now())  # describing asks nobody
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
        state = self._store.state(request.dataset)
        plan = self._plan(request, state, self._clock.now())
        large = 0 if plan.gaps or plan.due else int(estimated_bytes(plan) / PART_BYTES)
        count = min(most, large, len(plan.symbols))
        return [PartRequest(request, part, count, state.generation) for part in range(count)] if count > 1 else []

    # Planning and filling

    def _plan(self, request: ReadRequest, state: DatasetState, now: datetime) -> Plan:
        """Return the plan of *request*; one that only a commit, an opening or a settlement can change is kept for next time."""
        if request.as_of is not None:
            return self._resolved(request, state, now)  # the same past is made of other files after a fold
        calendar = self._calendars.get(state.dataset.calendar)
        present = present_session(state.dataset, calendar, now)
        key = (request, state.generation, present, calendar.settled_through(now))
        if (prepared := self._prepared.get(key)) is not None:
            return prepared
        plan = self._resolved(request, state, now)
        lasting = request.symbols is not None or state.is_table  # else the source's list of symbols decides
        lasting = lasting and request.as_of is None  # folds change which files a generation of the past is made of
        if lasting and not (plan.gaps or plan.due) and not _ages(plan, state, request):
            if len(self._prepared) >= _PREPARED:
                self._prepared.clear()
            plan = self._prepared[key] = replace(plan, lasting=True, asked=request)
        return plan

    def _resolved(self, request: ReadRequest, state: DatasetState, now: datetime) -> Plan:
        try:
            return resolve(request, state, self._world(request, state, now))
        except UnknownSymbol:
            if self._desk.source(request.dataset) is None or request.on_miss == "cached":
                raise
            self._desk.listed(request.dataset, fresh=True)  # the symbol may be newer than the list we hold
            return resolve(request, state, self._world(request, state, now))

    def _world(self, request: ReadRequest, state: DatasetState, now: datetime) -> World:
        fillable = self._desk.source(request.dataset) is not None
        return World(
            self._calendars.get(state.dataset.calendar), now, self._listed(request, state), fillable, self._lives(request)
        )

    def _lives(self, request: ReadRequest) -> Mapping[str, Life]:
        if request.on_miss == "cached":
            return {}
        try:
            return self._desk.lives(request.dataset)
        except SourceError:  # nothing but calls that could have been spared depends on it
            return {}

    def _listed(self, request: ReadRequest, state: DatasetState) -> frozenset[str] | None:
        """Return the source's symbols where the request needs them: it asks for all, or for one we know nothing of."""
        named = named_symbols(request, state.dataset)
        if named is not None and request.as_of is not None:  # files do not tell of whom it was known that there is nothing
            return frozenset(self._store.state(request.dataset).symbols)
        needed = named is None or any(name not in state.coverage for name in named)
        if not needed or request.on_miss == "cached":
            return None
        if named is not None and self._desk.lists_at_a_cost(request.dataset):
            return None
        must_know = named is None and request.on_miss == "fill" and self._desk.source(request.dataset) is not None
        try:
            listed = self._desk.listed(request.dataset)
        except SourceError:
            if must_know:
                raise
            return None
        if listed is None and must_know:  # answering with what is held would be a silent gap
            raise InvalidRequest(
                f"the source of {request.dataset} cannot list its symbols: name them, or read what is held with on_miss='cached'"
            )
        return listed

    def _close_gaps(self, request: ReadRequest, plan: Plan, gaps: Gaps, state: DatasetState, reading: Reading) -> None:
        """Return once *gaps* are stored, or are known not to be had."""
        if request.on_miss == "error":
            raise NotCached(f"{request.dataset}: {_told(gaps)} not held; read with on_miss='fill' to fetch it")
        if self._desk.source(request.dataset) is None:
            raise SourceUnavailable(
                f"{request.dataset}: {_told(gaps)} not held, and its source {state.source!r} is not configured here; "
                "start with that source, or read with on_miss='cached'"
            )
        reading.awaited = reading.awaited or self._uses.awaiting(state)
        reading.began = state.generation if reading.began is None else reading.began
        outcome = self._fills.close_gaps(state, gaps, plan.horizon, reading.progress, reading.principal, early=reading.early)
        reading.fetched_rows += outcome.rows
        reading.info.upstream_calls += outcome.calls
        reading.info.joined_calls += outcome.joined
        reading.failed |= outcome.failed
        reading.filled = _either(reading.filled, gaps)

    # Reading

    def _answer(
        self,
        request: ReadRequest,
        plan: Plan,
        state: DatasetState,
        reading: Reading,
        held: ExitStack,
    ) -> Answer:
        info = reading.info
        info.partitions, info.generation = len(plan.files), state.generation
        if request.info:
            self._tell(plan, state, reading)
        found, runs = self._found(plan, held, sweeps=self._sweeps(request, plan, reading.principal))
        in_memory = None not in runs
        rows = parts(found, Tally(info, plan.columns, reading.filled))
        ahead = list(islice(rows, 2 if in_memory else 1))  # read here, where a damaged file can still be mended
        size = _batch_rows(plan)
        reading.cold = [file.key for file, run in zip(plan.files, runs, strict=True) if run is None or run.tier != "hot"]
        if self._tracking.marks and reading.demand is not None:
            self._meet(plan, reading)
        held.callback(self.finish, reading, request, plan)
        if plan.due and request.on_miss == "fill":
            self._fills.refresh(state, plan.due, plan.refresh)
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

    def _tell(self, plan: Plan, state: DatasetState, reading: Reading) -> None:
        info = reading.info
        reason = "not_cached" if self._desk.source(info.dataset) else "no_source"
        info.tell_gaps(told_gaps(plan, state, reason, reading.failed))
        info.symbols = statuses(plan, state, reading.failed, reading.stale)
        info.stale = bool(reading.stale) or any_ageing(plan.due, state)
        fetched = oldest_fetch(plan, state)
        info.age_seconds = None if fetched is None else max(0.0, self._clock.now().timestamp() - fetched)

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

    def _found(self, plan: Plan, held: ExitStack, *, sweeps: bool) -> tuple[Iterator[Piece], Sequence[Run | None]]:
        """Return the pieces of the answer, and for each file the run they lie in; None where it is not in memory."""
        for file in plan.files:
            self._uses.note(file)
        if sweeps and self._outgrows_ring(plan):
            return self._passing(plan, held), [None] * len(plan.files)
        hold = self._hold_in_ring if sweeps else self._hold
        files = [(file, hold(plan, file, plan.symbols, held)) for file in plan.files]
        runs = [run for _, run in files]
        if None in runs:
            return self._pieces(plan, files), runs
        return pieces(plan.dataset, plan.symbols, plan.window, [run for run in runs if run]), runs

    def _hold(self, plan: Plan, file: StoredFile, symbols: Sequence[str], held: ExitStack) -> Run | None:
        """Return *file* where it is in memory, or deserves to be; else its rows are read as needed."""
        tier: Tier = "hot"
        item = self._hot.item(file)
        lease = self._hot.lease(item)
        if lease is None and self._hot.wants_whole(item, file.share_of(symbols)):
            tier = "cold"
            lease = self._hot.load(item, lambda: self._cold.whole(plan.dataset, file))
        return _run(file, lease, tier, held)

    def _pieces(self, plan: Plan, files: Sequence[Held]) -> Iterator[Piece]:
        for symbols in groups(plan.symbols, [file for file, run in files if run is None], GROUP_BYTES):
            runs = [run or self._select(plan, file, symbols) for file, run in files]
            yield from pieces(plan.dataset, symbols, plan.window, runs)

    # Sweeps: what is read once and in order leaves alone what is read again

    def _sweeps(self, request: ReadRequest, plan: Plan, principal: str) -> bool:
        """Return whether this read passes through more than memory should hold, or is a step of somebody who does."""
        if request.profile == "backtesting":
            return True
        if self.run_length is not None and self.run_length(request, plan, principal) >= _RUN_STEPS:
            return True
        if plan.held_bytes <= self._sweep_bytes:
            return False
        items = ((file, self._hot.item(file)) for file in plan.files if not self._hot.holds(file.key))
        return (
            sum(item.bytes for file, item in items if self._hot.wants_whole(item, file.share_of(plan.symbols)))
            > self._sweep_bytes
        )

    def _outgrows_ring(self, plan: Plan) -> bool:
        absent = [self._hot.item(file) for file in plan.files if not self._hot.holds(file.key)]
        return len(absent) > MOST_AHEAD or sum(item.bytes for item in absent) > self._hot.ring_bytes

    def _hold_in_ring(self, plan: Plan, file: StoredFile, symbols: Sequence[str], held: ExitStack) -> Run | None:
        """Return *file* where it is in memory, or better read whole into the ring; else its rows are read as needed."""
        tier: Tier = "hot"
        item = self._hot.item(file)
        lease = self._hot.peek(item)
        if lease is None and cheaper_whole(item, file.share_of(symbols)):
            tier = "cold"
            lease = self._hot.load(item, lambda: self._cold.whole(plan.dataset, file), ring=True)
        return _run(file, lease, tier, held)

    def _passing(self, plan: Plan, held: ExitStack) -> Iterator[Piece]:
        """Yield the pieces of an answer step by step, the next ones being read meanwhile."""
        passage = Passage(partial(steps, plan), partial(self._ready, plan), self._ahead)
        held.callback(passage.close)
        for ready in passage:
            yield from pieces(plan.dataset, ready.step.symbols, plan.window, ready.runs)

    def _ready(self, plan: Plan, step: Step) -> Ready:
        with ExitStack() as held:
            runs = [
                self._hold_in_ring(plan, file, step.symbols, held) or self._select(plan, file, step.symbols)
                for file in step.files
            ]
            return Ready(step, runs, held.pop_all())

    def _select(self, plan: Plan, file: StoredFile, symbols: Sequence[str]) -> Run:
        image = self._cold.select(plan.dataset, file, symbols, plan.window, plan.columns)
        return Run(image, "cold", file.rank, file)


def _run(file: StoredFile, lease: Lease | None, tier: Tier, held: ExitStack) -> Run | None:
    if lease is None:
        return None
    held.callback(lease.release)
    return Run(lease.image, tier, file.rank, file)


def _batch_rows(plan: Plan) -> int:
    held_bytes, rows = plan.held_bytes, sum(file.rows for file in plan.files)
    share = 1.0 if plan.schema is plan.dataset.schema else row_bytes(plan.schema) / row_bytes(plan.dataset.schema)
    return rows_per_batch(held_bytes, rows, share)


def _ages(plan: Plan, state: DatasetState, request: ReadRequest) -> bool:
    """Return whether time alone can make *plan* wrong, before the next session settles or the day ends."""
    return any(
        span.state == PROVISIONAL or (span.state == UNCONFIRMED and request.max_age is not None)
        for symbol in plan.symbols
        for span in state.coverage.get(symbol, ())
        if span.first <= plan.wanted.last and span.last >= plan.wanted.first
    )


def _failure(request: ReadRequest, plan: Plan, failed: Mapping[str, Error]) -> Error:
    """Return the first of the errors, as one that tells about all."""
    error = next(iter(failed.values()))
    if len(failed) == len(plan.symbols) and all(other is error for other in failed.values()):
        return copy_of(error)
    kept = "what arrived is kept, so asking again goes on from there; read with info=True to get what there is"
    return copy_of(error, f"{error}. Of {request.dataset} {len(failed):,} of {len(plan.symbols):,} symbols failed; {kept}")


def _either(one: Gaps, other: Gaps) -> Gaps:
    """Return the cells of both, each once."""
    both = ((symbol, [*one.get(symbol, ()), *other.get(symbol, ())]) for symbol in {*one, *other})
    return {symbol: merged(runs, lambda last, first: first == last + 1) for symbol, runs in both}


def _told(gaps: Gaps) -> str:
    symbol, runs = next(iter(gaps.items()))
    first = Gap(symbol, from_day_number(runs[0].first), from_day_number(runs[0].last), "")
    more = sum(map(len, gaps.values())) - 1
    return str(first).strip() + (f" and {more} more ranges are" if more else " is")

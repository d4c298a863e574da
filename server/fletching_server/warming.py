"""Having rows where a read will find them, before it asks: fetched to disk in calls that people go before, then loaded.

Nothing of this is a use: whether it was worth it, reads decide, by the marks that are put up (``tracking``). Files are held
whole, as reads hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from fletching_schemas import ReadRequest
from fletching_schemas.errors import Error
from fletching_server.clock import Clock
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.gaps import sweepable
from fletching_server.hot import HotTier
from fletching_server.needs import Needs, needs
from fletching_server.plan import Plan
from fletching_server.reads import Reads
from fletching_server.snapshot import StoredFile
from fletching_server.spans import Days
from fletching_server.store import Store
from fletching_server.tracking import Mark, Tracking
from fletching_server.uses import Uses

SURE: Final = 0.999  # of what somebody wishes for


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


@dataclass(frozen=True)
class Task:
    """A read that is made ready: what it is called, who said so, how likely it is, until when, on disk only or in memory too."""

    name: str
    arm: str
    request: ReadRequest
    memory: bool
    until: float
    chance: float = SURE
    ring: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a task would take: what is missing, the seconds of fetching it, what is not in memory yet, and what it touches."""

    needs: Needs
    fetch_seconds: float
    absent_bytes: int
    load_seconds: float
    days: Days
    files: tuple[StoredFile, ...]


@dataclass
class Warmed:
    """What warming did: calls and rows fetched, files and bytes brought into memory, files that were there already."""

    upstream_calls: int = 0
    joined_calls: int = 0
    rows: int = 0
    loaded_files: int = 0
    loaded_bytes: int = 0
    held_files: int = 0
    refused_files: int = 0
    seconds: float = 0.0
    failed: dict[str, Error] = field(default_factory=dict)

    @property
    def did_something(self) -> bool:
        """Whether anything moved."""
        return bool(self.upstream_calls or self.loaded_files)

    def __iadd__(self, other: Warmed) -> Self:
        for name, value in vars(other).items():
            if name != "failed":
                setattr(self, name, getattr(self, name) + value)
        self.failed |= other.failed
        return self


class Warming:
    """The doing of one engine, for explicit wishes and for what the warmer decides."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        cold: ColdTier,
        reads: Reads,
        desk: Desk,
        clock: Clock,
        uses: Uses,
        tracking: Tracking,
    ) -> None:
        self._store, self._hot, self._cold, self._reads, self._desk = store, hot, cold, reads, desk
        self._clock, self._uses, self._tracking = clock, uses, tracking

    def estimate(self, request: ReadRequest) -> Estimate:
        """Return what having the rows of *request* would take; nobody is asked for it but for a list of symbols."""
        plan, _ = self._reads.explain(request)
        state = self._store.state(request.dataset)
        found = needs(plan, state, sweepable(state.dataset, plan.calendar, self._clock.now()))
        absent = [self._hot.item(file) for file in plan.files if not self._hot.holds(file.key)]
        seconds = sum(item.refill_seconds for item in absent)
        return Estimate(
            found,
            found.calls * self._uses.call_seconds(request.dataset),
            sum(item.bytes for item in absent) + found.missing_bytes,
            seconds,
            _missing_days(plan),
            tuple(plan.files),
        )

    def do(self, task: Task, stop: Callable[[], bool] = never) -> Warmed:
        """Return what was done for *task*: missing cells are fetched, then files loaded, as long as *stop* does not say so.

        Raises what a read raises where nothing could be fetched.
        """
        estimate = self.estimate(task.request)
        mark = _mark(task, self._reads.explain(task.request)[0], estimate)
        done, began = Warmed(), self._clock.monotonic()
        self._tracking.begin(mark)
        try:
            prepared = self._reads.prepare(task.request, lambda plan: self._load_all(plan, task, done, stop))
        except BaseException:
            self._tracking.undo(mark)
            raise
        done.upstream_calls, done.joined_calls = prepared.upstream_calls, prepared.joined_calls
        done.rows, done.failed = prepared.rows, dict(prepared.failed)
        done.seconds = self._clock.monotonic() - began
        if done.did_something:
            saves = (estimate.fetch_seconds if done.upstream_calls else 0.0) + (estimate.load_seconds if task.memory else 0.0)
            self._tracking.done(mark, max(done.seconds, 0.0), saves)
        else:
            self._tracking.undo(mark)
        return done

    def _load_all(self, plan: Plan, task: Task, done: Warmed, stop: Callable[[], bool]) -> None:
        for file in plan.files if task.memory else ():
            if stop():
                return
            self._load(plan, file, task, done)

    def _load(self, plan: Plan, file: StoredFile, task: Task, done: Warmed) -> None:
        if self._hot.holds(file.key):
            done.held_files += 1
            return
        item = self._hot.item(file)
        leaving = self._hot.would_leave(item.bytes)
        lease = self._hot.load(item, lambda: self._cold.whole(plan.dataset, file), ring=task.ring, chance=task.chance)
        if lease is not None:
            lease.release()
        if lease is None or not self._hot.holds(file.key):
            done.refused_files += 1
            return
        done.loaded_files += 1
        done.loaded_bytes += item.bytes
        if not task.ring:
            self._tracking.displaced(leaving.lineages, task.arm)


def _missing_days(plan: Plan) -> Days:
    """Return the run of days within which cells are missing; those that are wanted where none are."""
    runs = [run for runs in plan.gaps.values() for run in runs]
    return Days(min(run.first for run in runs), max(run.last for run in runs)) if runs else plan.wanted


def _mark(task: Task, plan: Plan, estimate: Estimate) -> Mark:
    symbols = None if task.request.symbols is None else frozenset(plan.symbols)
    days = plan.wanted if task.memory else estimate.days
    return Mark(task.name, task.arm, task.request.dataset, symbols, days, task.memory, task.until)

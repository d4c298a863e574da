"""The parts of an engine, put together from the bottom up; what was opened first is closed last.

Each group knows those before it only: the ground that all stand on, upstream, the read path, what looks ahead of reads, the
write path, and housekeeping. What works in the background begins last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import structlog

from fletching_server import offers, tiers
from fletching_server.access_log import AccessLog
from fletching_server.adjusted import AdjustedReads
from fletching_server.almanac import Calendars, Rules
from fletching_server.arrivals import Arrivals
from fletching_server.background import Background
from fletching_server.calls import Calls
from fletching_server.clock import Clock
from fletching_server.cold import ColdTier
from fletching_server.compaction import Compaction
from fletching_server.compactor import Compactor
from fletching_server.completion import Completion
from fletching_server.density import DensityPolicy
from fletching_server.desk import Desk
from fletching_server.evidence import Evidence
from fletching_server.fills import Fills
from fletching_server.filtered import FilteredReads
from fletching_server.gathering import Gathering
from fletching_server.guard import Guard
from fletching_server.holding import Holding
from fletching_server.hot import HotTier
from fletching_server.hot_list import HotList
from fletching_server.inspection import Inspection
from fletching_server.learning import Learning
from fletching_server.notes import Notes
from fletching_server.pictures import Pictures
from fletching_server.plans import Plans
from fletching_server.policy import LruPolicy, Policy
from fletching_server.quarantine import Quarantine
from fletching_server.quota import FIRST_SECONDS, LULL_SECONDS, Quota
from fletching_server.reads import Reads
from fletching_server.records import Records
from fletching_server.repair import Repairs
from fletching_server.rooms import RING_SHARE
from fletching_server.runs import Runs
from fletching_server.scrubber import REST_SECONDS as SCRUB_REST_SECONDS
from fletching_server.scrubber import Scrubber
from fletching_server.settings import CalendarSettings, Settings
from fletching_server.sources import Budget, Source
from fletching_server.stats import Stats
from fletching_server.store import Store
from fletching_server.system import SystemReads
from fletching_server.tracking import Tracking
from fletching_server.uses import Uses
from fletching_server.warmer import Warmer
from fletching_server.warming import Warming
from fletching_server.wishes import Wishes
from fletching_server.writes import Writes

log = structlog.get_logger(__name__)

POLICIES: Final[Mapping[str, Callable[[int], Policy]]] = {"density": DensityPolicy, "lru": lambda _: LruPolicy()}


@dataclass(frozen=True)
class Ground:
    """What all others stand on: the store, memory, the access log."""

    settings: Settings
    clock: Clock
    stats: Stats
    calendars: Calendars
    store: Store
    access: AccessLog
    system: SystemReads
    hot: HotTier
    cold: ColdTier
    gathering: Gathering
    repairs: Repairs


@dataclass(frozen=True)
class Upstream:
    """The sources, and what fetches from them."""

    desk: Desk
    quarantine: Quarantine
    uses: Uses
    fills: Fills
    calls: Calls


@dataclass(frozen=True)
class ReadPath:
    """Reads, and looking."""

    tracking: Tracking
    holding: Holding
    reads: Reads
    adjusted: AdjustedReads
    filtered: FilteredReads
    inspection: Inspection
    records: Records


@dataclass(frozen=True)
class Ahead:
    """What has rows, and calendars, ready before anybody asks."""

    warmer: Warmer
    wishes: Wishes
    evidence: Evidence


@dataclass(frozen=True)
class WritePath:
    """Writes, and what folds them into partitions."""

    writes: Writes
    compaction: Compaction


@dataclass(frozen=True)
class Housekeeping:
    """What looks after disk and memory, and the background work of the first two."""

    quota: Quota
    scrubber: Scrubber
    hot_list: HotList
    evicting: Background
    scrubbing: Background


@dataclass(frozen=True)
class Parts:
    """All parts of one engine."""

    ground: Ground
    upstream: Upstream
    read_path: ReadPath
    ahead: Ahead
    write_path: WritePath
    housekeeping: Housekeeping


def assembled(
    settings: Settings, sources: Sequence[Source], clock: Clock, opened: ExitStack, *, recover: bool, shares: bool
) -> Parts:
    """Return the parts of an engine, which *opened* closes; a store that is not to *recover* is only looked at."""
    ground = _ground(settings, clock, opened, shares=shares)
    if recover:
        _recover(ground)
    upstream = _upstream(ground, sources, opened)
    read_path = _read_path(ground, upstream, opened)
    ahead = _ahead(ground, upstream, read_path, opened)
    opened.callback(upstream.desk.release)  # before all these are closed: nobody shall wait for a call that hangs
    write_path = _write_path(ground, upstream, opened)
    housekeeping = _housekeeping(ground, upstream, write_path)
    parts = Parts(ground, upstream, read_path, ahead, write_path, housekeeping)
    if recover:
        _start(parts, opened)
    return parts


def _ground(settings: Settings, clock: Clock, opened: ExitStack, *, shares: bool) -> Ground:
    stats = Stats()
    calendars = Calendars(clock, {mic: _rules(said) for mic, said in settings.calendar.items()})
    store = Store(settings.store, clock, settings.history_days)
    opened.callback(store.close)
    access = AccessLog(settings.store, clock, stats, settings)
    opened.callback(access.close)
    hot = _hot_tier(settings, clock, shares=shares)
    cold = ColdTier(store, int(settings.query_memory), settings.threads)
    opened.callback(cold.close)
    system, repairs = SystemReads(access, calendars, clock), Repairs(store, hot, calendars)
    return Ground(settings, clock, stats, calendars, store, access, system, hot, cold, Gathering(hot, cold), repairs)


def _rules(said: CalendarSettings) -> Rules:
    return Rules(frozenset(said.add), frozenset(said.remove), said.settle_minutes)


def _hot_tier(settings: Settings, clock: Clock, *, shares: bool) -> HotTier:
    memory, ring = int(settings.memory), int(settings.memory * RING_SHARE)
    return HotTier(memory, POLICIES[settings.policy](memory - ring), ring_bytes=ring, shares=shares, clock=clock)


def _recover(ground: Ground) -> None:
    orphans, dropped = ground.store.sweep(), ground.repairs.at_start()
    if orphans or dropped:
        log.info("recovered", orphans_removed=orphans, torn_segments_dropped=dropped)


def _upstream(ground: Ground, sources: Sequence[Source], opened: ExitStack) -> Upstream:
    settings, clock, stats, store = ground.settings, ground.clock, ground.stats, ground.store
    budgets = {family: Budget(**said.model_dump()) for family, said in settings.guard.items()}
    guard = Guard(settings.store / "guard.sqlite", clock, budgets, settings.patience_seconds)
    desk = Desk(sources, clock, settings.source_seconds, guard)
    opened.callback(desk.close)
    offers.record(desk, store, settings.datasets)
    for dataset in desk.offers.values():
        ground.calendars.get(dataset.calendar)  # building one takes up to 0.3 s: better now than in the first read
    quarantine, uses = Quarantine(settings.store / "quarantine", clock), Uses(Notes(settings.store / "uses.json"), clock)
    arrivals = Arrivals(store, ground.hot, ground.gathering, desk, ground.calendars, clock, stats, quarantine, uses)
    fills = Fills(store, arrivals, desk, ground.calendars, clock, stats, settings)
    opened.callback(fills.close)
    calls = Calls(store.root, desk, clock, stats, int(settings.call_cache), settings.source_calls)
    opened.callback(calls.close)
    return Upstream(desk, quarantine, uses, fills, calls)


def _read_path(ground: Ground, upstream: Upstream, opened: ExitStack) -> ReadPath:
    clock, stats, calendars, store, hot = ground.clock, ground.stats, ground.calendars, ground.store, ground.hot
    desk, uses, tracking = upstream.desk, upstream.uses, Tracking(clock)
    pictures, plans = Pictures(store, calendars, clock), Plans(store, desk, calendars)
    completion, holding = Completion(upstream.fills, desk, uses, stats), Holding(hot, ground.cold, uses, Runs(clock))
    reads = Reads(pictures, plans, completion, holding, ground.repairs, clock, stats, ground.access.queue, tracking)
    opened.callback(reads.close)
    adjusted = AdjustedReads(store, reads, hot, clock)
    filtered = FilteredReads(store, reads, adjusted, desk, calendars, clock)
    inspection, records = Inspection(store, hot, reads, desk, calendars, clock, stats), Records(store, calendars)
    return ReadPath(tracking, holding, reads, adjusted, filtered, inspection, records)


def _ahead(ground: Ground, upstream: Upstream, read_path: ReadPath, opened: ExitStack) -> Ahead:
    settings, clock, calendars, store, hot = ground.settings, ground.clock, ground.calendars, ground.store, ground.hot
    desk, reads, tracking = upstream.desk, read_path.reads, read_path.tracking
    warming = Warming(store, hot, ground.cold, reads, desk, clock, upstream.uses, tracking)
    learning = Learning(ground.access, store, calendars, clock)
    warmer = Warmer(learning, warming, tracking, reads, hot, store, desk, calendars, clock, ground.stats, settings)
    opened.callback(warmer.background.close)
    evidence = Evidence(store, ground.gathering, reads, desk, calendars, clock, settings.calendar)
    opened.callback(evidence.close)
    return Ahead(warmer, Wishes(store, hot, reads, warming, clock, settings), evidence)


def _write_path(ground: Ground, upstream: Upstream, opened: ExitStack) -> WritePath:
    settings, clock, stats, store, hot = ground.settings, ground.clock, ground.stats, ground.store, ground.hot
    writes = Writes(store, hot, ground.cold, upstream.desk, stats)
    opened.callback(writes.close)
    rules = tiers.Rules(settings.compact_segments, settings.compact_settle_seconds)
    compaction = Compaction(store, hot, ground.gathering, ground.repairs, ground.calendars, clock, stats, rules)
    compactor = Compactor(store, compaction, clock, settings.compact_idle_seconds, settings.vacuum_seconds)
    opened.callback(compactor.close)
    return WritePath(writes, compaction)


def _housekeeping(ground: Ground, upstream: Upstream, write_path: WritePath) -> Housekeeping:
    settings, clock, stats, store, hot = ground.settings, ground.clock, ground.stats, ground.store, ground.hot
    compaction, desk = write_path.compaction, upstream.desk
    quota = Quota(store, hot, compaction, desk, ground.calendars, upstream.uses, clock, stats, settings)
    scrubber = Scrubber(store, ground.repairs, Notes(settings.store / "scrub.json"), clock, stats, settings)
    evicting = Background("quota", quota.work, FIRST_SECONDS, LULL_SECONDS)
    scrubbing = Background("scrubber", scrubber.work, SCRUB_REST_SECONDS)
    scrubber.pause = scrubbing.closing.wait
    return Housekeeping(
        quota, scrubber, HotList(store, hot, ground.cold, Notes(settings.store / "hot.json")), evicting, scrubbing
    )


def _start(parts: Parts, opened: ExitStack) -> None:
    """Start what works in the background."""
    ground, warmer, kept = parts.ground, parts.ahead.warmer, parts.housekeeping
    ground.access.start()
    ground.access.listeners.append(warmer.hear)
    opened.callback(warmer.background.closing.set)  # it is waited for once no source can keep it
    if ground.settings.warm:
        warmer.background.start()
    ground.store.catalogue.on_commit(lambda _dataset: kept.evicting.wake())
    ground.store.catalogue.on_commit(warmer.committed)
    for notes, work in ((parts.upstream.uses, kept.evicting), (kept.scrubber, kept.scrubbing)):
        opened.callback(notes.save, now=True)
        opened.callback(work.close)
        work.start()
    if ground.settings.hot_list:
        _keep(kept.hot_list, opened)


def _keep(hot_list: HotList, opened: ExitStack) -> None:
    """Bring back into memory what lay there, and note what does."""
    restoring = Background("hot list", hot_list.work, 0.0)
    hot_list.closing = restoring.closing
    opened.callback(hot_list.save)
    opened.callback(restoring.close)
    restoring.start()

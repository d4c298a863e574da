"""The engine: one object that puts the parts together, and the verbs of the interface. No logic lives here."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import structlog

from fletching_schemas import Action, Dataset, PartRequest, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.calls import CallRequest
from fletching_schemas.errors import InvalidRequest, NotBuilt, ServerClosing, StoreError
from fletching_schemas.requests import is_system
from fletching_server import tiers
from fletching_server.access_log import AccessLog
from fletching_server.adjusted import AdjustedReads
from fletching_server.almanac import Calendars, Rules
from fletching_server.answering import Answer
from fletching_server.arrivals import Arrivals
from fletching_server.background import Background
from fletching_server.calls import Calls
from fletching_server.changes import Define, Delete, Forget
from fletching_server.clock import Clock, SystemClock
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
from fletching_server.settings import CalendarSettings, FreshnessSettings, Settings
from fletching_server.snapshot import DatasetState
from fletching_server.sources import Budget, Source
from fletching_server.stats import Stats
from fletching_server.store import Store
from fletching_server.system import SystemReads, refuse_system
from fletching_server.tracking import Tracking
from fletching_server.upkeep import Retain
from fletching_server.uses import Uses
from fletching_server.verify import problems_of
from fletching_server.warmer import Warmer
from fletching_server.warming import Warming
from fletching_server.wishes import Wishes
from fletching_server.writes import Writes

log = structlog.get_logger(__name__)

Verb = Callable[[Mapping[str, Any]], dict[str, Any] | pa.Table]

_MOST_DAYS: Final = 1e6
POLICIES: Final[Mapping[str, Callable[[int], Policy]]] = {"density": DensityPolicy, "lru": lambda _: LruPolicy()}

_RANGE: Final = frozenset({"dataset", "symbols", "start", "end"})
_READ: Final = frozenset(ReadRequest.__dataclass_fields__)


class Engine:
    """One cache over one store, safe to use from any thread. Close it; it is a context manager.

    Raises ``StoreInUse``, ``StoreVersion``, ``StoreUnwritable`` or ``StoreError`` where the store cannot be opened, and
    ``InvalidRequest`` where two sources offer the same dataset. With *shares* what lies in memory lies there so that other
    processes can map it, which takes a copy when it is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source] = (),
        clock: Clock | None = None,
        *,
        recover: bool = True,
        shares: bool = False,
    ) -> None:
        self.settings = settings
        self.planes: dict[str, dict[str, Any]] = {}  # where else it can be asked: its edges write, ``health`` tells
        self._shares = shares
        self.clock = clock or SystemClock()
        self.stats = Stats()
        self._closed = False
        with ExitStack() as opened:
            self._open(sources, opened, recover=recover)
            self._closing = opened.pop_all()
        atexit.register(self.close)  # a notebook that never closes its cache still ends in order

    def _open(self, sources: Sequence[Source], opened: ExitStack, *, recover: bool) -> None:
        """Build the parts bottom-up; *opened* closes them top-down."""
        settings, clock, stats = self.settings, self.clock, self.stats
        self.calendars = calendars = Calendars(clock, {mic: _rules(said) for mic, said in settings.calendar.items()})
        self.store = store = Store(settings.store, clock, settings.history_days)
        opened.callback(store.close)
        self.access = AccessLog(settings.store, clock, stats, settings)
        opened.callback(self.access.close)
        self.system = SystemReads(self.access, calendars, clock)
        self.hot = hot = _hot_tier(settings, clock, shares=self._shares)
        self.cold = cold = ColdTier(store, int(settings.query_memory), settings.threads)
        opened.callback(cold.close)
        repairs = Repairs(store, hot, calendars)
        if recover:  # not where the store is only looked at
            self._recover(repairs)
        budgets = {family: Budget(**said.model_dump()) for family, said in settings.guard.items()}
        guard = Guard(settings.store / "guard.sqlite", clock, budgets, settings.patience_seconds)
        self.desk = desk = Desk(sources, clock, settings.source_seconds, guard)
        opened.callback(desk.close)
        self._define(desk)
        self.quarantine = Quarantine(settings.store / "quarantine", clock)
        gathering = Gathering(hot, cold)
        self._uses = uses = Uses(Notes(settings.store / "uses.json"), clock)
        arrivals = Arrivals(store, hot, gathering, desk, calendars, clock, stats, self.quarantine, uses)
        fills = Fills(store, arrivals, desk, calendars, clock, stats, settings)
        opened.callback(fills.close)
        self._calls = Calls(store.root, desk, clock, stats, int(settings.call_cache), settings.source_calls)
        opened.callback(self._calls.close)
        self.tracking = tracking = Tracking(clock)
        pictures, plans = Pictures(store, calendars, clock), Plans(store, desk, calendars)
        completion, self._holding = Completion(fills, desk, uses, stats), Holding(hot, cold, uses, Runs(clock))
        self._fills = fills
        self._reads = Reads(pictures, plans, completion, self._holding, repairs, clock, stats, self.access.queue, tracking)
        opened.callback(self._reads.close)
        self._adjusted = AdjustedReads(store, self._reads, hot, clock)
        self._look_ahead(uses, opened)
        self._filtered = FilteredReads(store, self._reads, self._adjusted, desk, calendars, clock)
        self.evidence = Evidence(store, gathering, self._reads, desk, calendars, clock, settings.calendar)
        opened.callback(self.evidence.close)
        opened.callback(desk.release)  # before these two: nobody shall wait for a call that hangs
        self._writes = Writes(store, hot, cold, desk, stats)
        opened.callback(self._writes.close)
        rules = tiers.Rules(settings.compact_segments, settings.compact_settle_seconds)
        self._compaction = Compaction(store, hot, gathering, repairs, calendars, clock, stats, rules)
        self._records = Records(store, calendars)
        self._inspection = Inspection(store, hot, self._reads, desk, calendars, clock, stats)
        compactor = Compactor(store, self._compaction, clock, settings.compact_idle_seconds, settings.vacuum_seconds)
        opened.callback(compactor.close)
        self._tend(repairs, uses, opened, starts=recover)

    def _look_ahead(self, uses: Uses, opened: ExitStack) -> None:
        """Build what has rows ready before anybody asks."""
        settings, store, hot, clock, tracking = self.settings, self.store, self.hot, self.clock, self.tracking
        warming = Warming(store, hot, self.cold, self._reads, self.desk, clock, uses, tracking)
        self._wishes = Wishes(store, hot, self._reads, warming, clock, settings)
        learning = Learning(self.access, store, self.calendars, clock)
        told = (hot, store, self.desk, self.calendars, clock, self.stats, settings)
        self.warmer = Warmer(learning, warming, tracking, self._reads, *told)
        opened.callback(self.warmer.background.close)

    def _tend(self, repairs: Repairs, uses: Uses, opened: ExitStack, *, starts: bool) -> None:
        """Build what looks after the disk, and start it where the store is not only looked at."""
        settings, store, clock, stats = self.settings, self.store, self.clock, self.stats
        self.quota = Quota(store, self.hot, self._compaction, self.desk, self.calendars, uses, clock, stats, settings)
        self.scrubber = Scrubber(store, repairs, Notes(settings.store / "scrub.json"), clock, stats, settings)
        self._evicting = Background("quota", self.quota.work, FIRST_SECONDS, LULL_SECONDS)
        self._scrubbing = Background("scrubber", self.scrubber.work, SCRUB_REST_SECONDS)
        self.scrubber.pause = self._scrubbing.closing.wait
        self.hot_list = HotList(store, self.hot, self.cold, Notes(settings.store / "hot.json"))
        if starts:
            self.access.start()
            self.access.listeners.append(self.warmer.hear)
            opened.callback(self.warmer.background.closing.set)  # it is waited for once no source can keep it
            if settings.warm:
                self.warmer.background.start()
            store.catalogue.on_commit(lambda _dataset: self._evicting.wake())
            store.catalogue.on_commit(self.warmer.committed)
            for notes, work in ((uses, self._evicting), (self.scrubber, self._scrubbing)):
                opened.callback(notes.save, now=True)
                opened.callback(work.close)
                work.start()
            if settings.hot_list:
                self._keep_hot_list(opened)

    def _keep_hot_list(self, opened: ExitStack) -> None:
        """Bring back into memory what lay there, and note what does."""
        restoring = Background("hot list", self.hot_list.work, 0.0)
        self.hot_list.closing = restoring.closing
        opened.callback(self.hot_list.save)
        opened.callback(restoring.close)
        restoring.start()

    def _recover(self, repairs: Repairs) -> None:
        orphans, dropped = self.store.sweep(), repairs.at_start()
        if orphans or dropped:
            log.info("recovered", orphans_removed=orphans, torn_segments_dropped=dropped)

    def _define(self, desk: Desk) -> None:
        """Record what the sources offer, refusing to mix two sources or two schemas under one name."""
        for name, offered in list(desk.offers.items()):
            dataset = desk.offers[name] = _overridden(offered, self.settings.datasets.get(name))
            source = desk.source(name)
            provider = source.name if source else ""
            state = self.store.catalogue.state(name)
            if state and (state.files or state.coverage):
                _check_same(state.dataset, state.source, dataset, provider)
            if state is None or state.dataset != dataset or state.source != provider:
                self.store.commit(Define(dataset, provider))
            self.calendars.get(dataset.calendar)  # building one takes up to 0.3 s: better now than in the first read

    def _check_open(self) -> None:
        if self._closed:
            raise ServerClosing("the cache is closed; open it again")

    # The verbs

    def read(self, request: ReadRequest | PartRequest, plane: str = "embedded", principal: str = "") -> Answer:
        """Return the answer to *request*; its rows move as it is read. See ``Reads.read``."""
        self._check_open()
        self.evidence.look()
        if isinstance(request, PartRequest):
            return self._reads.read(request, plane, principal, request.read)
        if is_system(request.dataset):
            return self.system.read(request, plane)
        return self._filtered.read(request, plane, principal)

    def parts(self, request: ReadRequest, most: int) -> list[PartRequest]:
        """Return the parts in which the answer to *request* may be read side by side; none where it is better read whole."""
        self._check_open()
        plain = all(asked is None for asked in (request.adjust, request.where, request.limit, request.as_of))
        plain = plain and not is_system(request.dataset)
        most = min(most, self.settings.most_endpoints)
        return self._reads.parts(replace(request, progress_id=None), most) if most > 1 and plain else []

    def names(self) -> list[str]:
        """Return the names of all datasets, sorted."""
        return [state.dataset.name for state in self.store.catalogue.states()]

    def schema(self, dataset: str) -> Dataset:
        """Return what *dataset* promises; ``UnknownDataset`` names what there is."""
        return self.system.dataset(dataset) if is_system(dataset) else self.store.state(dataset).dataset

    def describe(self, request: ReadRequest) -> tuple[pa.Schema, int]:
        """Return the schema of the answer to *request*, and how many rows it will have (-1: only reading can tell)."""
        self._check_open()
        return (self.system.plan(request).schema, -1) if is_system(request.dataset) else self._filtered.describe(request)

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are durable. See ``Writes.write``."""
        self._check_open()
        if rows.nbytes > self.settings.max_write_bytes:
            raise InvalidRequest(
                f"a write of {rows.nbytes:,} bytes; at most {int(self.settings.max_write_bytes):,} (max_write_bytes): "
                "write in parts"
            )
        return self._writes.write(request, rows)

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers: a table for ``TABLE_ACTIONS``, a JSON object for the others."""
        verbs: dict[Action, Verb] = {
            Action.DATASETS: _bare(self._inspection.datasets),
            Action.COVERAGE: lambda body: self._inspection.coverage(_request(body, _RANGE)),
            Action.EXPLAIN: lambda body: self._explain(_asked(body, _READ)),
            Action.STATS: _bare(self._figures),
            Action.HEALTH: _bare(
                lambda: self._inspection.health() | {"planes": self.planes, "memory": self.hot.ranking()} | self._troubles()
            ),
            Action.EVICT: self._evict,
            Action.WARM: self._warm,
            Action.INVALIDATE: lambda body: self._invalidate(_request(body, _RANGE)),
            Action.DELETE: lambda body: self._delete(_named(body)),
            Action.COMPACT: lambda body: {"folded_segments": self._compaction.compact(_named(body))},
            Action.RETENTION: self._retention,
            Action.VACUUM: self._vacuum,
            Action.CALL: lambda body: self._calls.call(CallRequest.from_body(body)),
            Action.VERIFY: _bare(lambda: {"problems": self.verify()}),
            Action.PROVENANCE: lambda body: self._records.provenance(_request(body, _RANGE)),
            Action.RESTATEMENTS: lambda body: self._records.restatements(_request(body, _RANGE)),
            Action.SESSIONS: self._records.sessions,
            Action.PROGRESS: self._progress,
            Action.GUARD: _bare(self.desk.guard.table),
            Action.EVICTIONS: _bare(self.hot.evictions),
        }
        self._check_open()
        if action not in verbs:
            raise NotBuilt(f"{action} is not built yet")
        return verbs[action](body)

    def verify(self) -> list[str]:
        """Return what is wrong with the store and with the books in memory; an empty list is the good answer."""
        return [*problems_of(self.store, self.cold, self.calendars), *self._calls.problems(), *self.hot.check()]

    def _figures(self) -> dict[str, Any]:
        self.access.flush()  # else it would be chance how many reads are logged
        return self._inspection.stats() | self._calls.facts() | self.quota.facts() | self.scrubber.facts() | self.warmer.facts()

    def _troubles(self) -> dict[str, Any]:
        """Return what somebody should look at: damaged user data, a quota that cannot be kept."""
        return {"damaged": self.scrubber.damaged(), "warnings": self.quota.warnings()}

    def _explain(self, request: ReadRequest) -> dict[str, Any]:
        if is_system(request.dataset):
            return self.system.explain(request)
        adjust = {"adjust": self._adjusted.explain(request)} if request.adjust else {}
        narrowed = self._filtered.narrowed(request)
        told = self._inspection.explain(replace(narrowed.request, adjust=None, adjust_ref=None))
        return {**told, **adjust, **self._filtered.told(request, narrowed)}

    def _progress(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if set(body) != {"id"} or not isinstance(body["id"], str):
            raise InvalidRequest(
                f"progress takes one argument, id: the progress_id of a read; it got {', '.join(body) or 'none'}"
            )
        return self._reads.progress.facts(body["id"])

    def _warm(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.warmer.explain() if dict(body) == {"explain": True} else self._wishes.warm(body)

    def _evict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if not body:
            return {"evicted_bytes": self.hot.evict()}
        state = self.store.state(_named(body))
        return {"evicted_bytes": self.hot.evict(self._hot_keys(state))}

    def _hot_keys(self, state: DatasetState) -> set[str]:
        """Return the keys of what may be in memory of a dataset: its files, and prices adjusted from them."""
        return {file.key for file in state.files} | self._adjusted.kept_keys(state.dataset.name)

    def _invalidate(self, request: ReadRequest) -> dict[str, Any]:
        state = self.store.state(request.dataset)
        if state.is_table:
            raise InvalidRequest(f"{request.dataset} is a user table: nothing could fetch it again; use delete")
        plan, _ = self._reads.explain(replace(request, on_miss="cached"))  # forgetting asks nobody
        symbols = plan.symbols if request.symbols is not None else None
        adjacent = self.calendars.get(state.dataset.calendar).adjacent
        self.store.commit(Forget(request.dataset, symbols, plan.wanted, adjacent))
        self.desk.guard.forget(request.dataset, symbols)
        return {"dataset": request.dataset, "symbols": len(plan.symbols) if symbols else "all"}

    def _delete(self, dataset: str) -> dict[str, Any]:
        state = self.store.state(dataset)
        self.store.commit(Delete(dataset))
        self.store.undeclare(dataset)
        self.hot.drop(self._hot_keys(state), {file.lineage for file in state.files})
        if (offered := self.desk.offers.get(dataset)) is not None:  # what was held is gone, the offer stands
            self.store.commit(Define(offered, state.source))
        return {"dataset": dataset, "deleted_rows": sum(file.rows for file in state.files)}

    def _retention(self, body: Mapping[str, Any]) -> dict[str, Any]:
        dataset, days = _named({"dataset": body.get("dataset")}), _days(body, {"dataset", "history_days"})
        self.store.state(dataset)
        self.store.commit(Retain(dataset, days))
        return {"dataset": dataset, "history_days": self.settings.history_days if days is None else days}

    def _vacuum(self, body: Mapping[str, Any]) -> dict[str, Any]:
        days = _days(body, {"dataset", "history_days"})
        names = (
            self.names() if body.get("dataset") is None else [self.store.state(_named({"dataset": body["dataset"]})).dataset.name]
        )
        return {"freed_bytes": sum(self.store.vacuum(name, days) for name in names)}

    def close(self) -> None:
        """Stop filling and folding, and give the store back; a second call does nothing."""
        self._closed = True
        atexit.unregister(self.close)
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _days(body: Mapping[str, Any], known: set[str]) -> float | None:
    days = body.get("history_days")
    number = isinstance(days, (int, float)) and not isinstance(days, bool)
    if set(body) - known or not (days is None or (number and 0 <= days < _MOST_DAYS)):
        raise InvalidRequest(f"it takes dataset and history_days, a number of days; it got {dict(body)!r:.90}")
    return days


def _hot_tier(settings: Settings, clock: Clock, *, shares: bool) -> HotTier:
    memory, ring = int(settings.memory), int(settings.memory * RING_SHARE)
    return HotTier(memory, POLICIES[settings.policy](memory - ring), ring_bytes=ring, shares=shares, clock=clock)


def _rules(said: CalendarSettings) -> Rules:
    return Rules(frozenset(said.add), frozenset(said.remove), said.settle_minutes)


def _overridden(offered: Dataset, said: FreshnessSettings | None) -> Dataset:
    chosen = said.model_dump(exclude_none=True) if said else {}
    return replace(offered, **chosen) if chosen else offered


def _check_same(held: Dataset, held_source: str | None, offered: Dataset, provider: str) -> None:
    way_out = f"use another store, or delete {held.name} from this one, or offer it under another name"
    if held_source is None:
        raise StoreError(f"{held.name} is a user table of this store, and source {provider} offers it too: {way_out}")
    if held_source != provider:
        raise StoreError(f"{held.name} in this store came from source {held_source}, not from {provider}: {way_out}")
    if (held.schema, held.keys, held.period, held.buckets) != (offered.schema, offered.keys, offered.period, offered.buckets):
        raise StoreError(f"{held.name} in this store has other columns, keys or partitions than {provider} offers: {way_out}")


def _request(body: Mapping[str, Any], allowed: frozenset[str]) -> ReadRequest:
    request = _asked(body, allowed)
    refuse_system(request.dataset)
    return request


def _asked(body: Mapping[str, Any], allowed: frozenset[str]) -> ReadRequest:
    if unknown := sorted(set(body) - allowed):
        raise InvalidRequest(f"unknown argument {', '.join(unknown)[:90]}; there are {', '.join(sorted(allowed))}")
    if "dataset" not in body:
        raise InvalidRequest("name the dataset")
    return ReadRequest(**body)


def _named(body: Mapping[str, Any]) -> str:
    if set(body) != {"dataset"} or not isinstance(body["dataset"], str):
        raise InvalidRequest(f"this action takes one argument, the dataset's name; it got {', '.join(body) or 'none'}")
    refuse_system(body["dataset"])
    return body["dataset"]


def _bare(verb: Callable[[], dict[str, Any] | pa.Table]) -> Verb:
    def run(body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        if body:
            raise InvalidRequest(f"this action takes no arguments; it got {', '.join(map(str, body))[:90]}")
        return verb()

    return run

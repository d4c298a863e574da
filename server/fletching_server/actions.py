"""What each action does: looking, keeping house, forgetting. One method where there is more to it than one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fletching_schemas import Action, ReadRequest
from fletching_schemas.calls import CallRequest
from fletching_schemas.errors import InvalidRequest, NotBuilt
from fletching_schemas.requests import is_system
from fletching_server import arguments
from fletching_server.arguments import Arguments, Verb
from fletching_server.assembly import Parts
from fletching_server.changes import Define, Delete, Forget
from fletching_server.snapshot import DatasetState
from fletching_server.upkeep import Retain
from fletching_server.verify import problems_of


class Actions:
    """The actions of one engine; *planes* are where else it can be asked."""

    def __init__(self, parts: Parts, planes: Mapping[str, Any]) -> None:
        self._ground, self._upstream, self._read_path = parts.ground, parts.upstream, parts.read_path
        self._ahead, self._write_path, self._housekeeping = parts.ahead, parts.write_path, parts.housekeeping
        self._planes = planes

    def act(self, action: Action, body: Arguments) -> dict[str, Any] | pa.Table:
        """Return what *action* answers: a table for ``TABLE_ACTIONS``, a JSON object for the others."""
        verbs = self._verbs()
        if action not in verbs:
            raise NotBuilt(f"{action} is not built yet")
        return verbs[action](body)

    def _verbs(self) -> dict[Action, Verb]:
        looking, records = self._read_path.inspection, self._read_path.records
        return {
            Action.DATASETS: arguments.none(looking.datasets),
            Action.COVERAGE: lambda body: looking.coverage(arguments.held_range(body)),
            Action.EXPLAIN: lambda body: self._explain(arguments.asked(body)),
            Action.STATS: arguments.none(self._figures),
            Action.HEALTH: arguments.none(self._health),
            Action.EVICT: self._evict,
            Action.WARM: self._warm,
            Action.INVALIDATE: lambda body: self._invalidate(arguments.held_range(body)),
            Action.DELETE: lambda body: self._delete(arguments.dataset(body)),
            Action.COMPACT: lambda body: {"folded_segments": self._write_path.compaction.compact(arguments.dataset(body))},
            Action.RETENTION: self._retention,
            Action.VACUUM: self._vacuum,
            Action.CALL: lambda body: self._upstream.calls.call(CallRequest.from_body(body)),
            Action.VERIFY: arguments.none(lambda: {"problems": self.problems()}),
            Action.PROVENANCE: lambda body: records.provenance(arguments.held_range(body)),
            Action.RESTATEMENTS: lambda body: records.restatements(arguments.held_range(body)),
            Action.SESSIONS: records.sessions,
            Action.PROGRESS: lambda body: self._read_path.reads.progress.facts(arguments.progress_id(body)),
            Action.GUARD: arguments.none(self._upstream.desk.guard.table),
            Action.EVICTIONS: arguments.none(self._ground.hot.evictions),
        }

    # Looking

    def problems(self) -> list[str]:
        """Return what is wrong with the store and with the books in memory; an empty list is the good answer."""
        ground = self._ground
        return [
            *problems_of(ground.store, ground.cold, ground.calendars),
            *self._upstream.calls.problems(),
            *ground.hot.check(),
        ]

    def _figures(self) -> dict[str, Any]:
        self._ground.access.flush()  # else it would be chance how many reads are logged
        quota, scrubber = self._housekeeping.quota, self._housekeeping.scrubber
        figures = self._read_path.inspection.stats() | self._upstream.calls.facts()
        return figures | quota.facts() | scrubber.facts() | self._ahead.warmer.facts()

    def _health(self) -> dict[str, Any]:
        """Return how things are, and what somebody should look at: damaged user data, a quota that cannot be kept."""
        troubles = {"damaged": self._housekeeping.scrubber.damaged(), "warnings": self._housekeeping.quota.warnings()}
        told = {"planes": self._planes, "memory": self._ground.hot.ranking()}
        return self._read_path.inspection.health() | told | troubles

    def _explain(self, request: ReadRequest) -> dict[str, Any]:
        if is_system(request.dataset):
            return self._ground.system.explain(request)
        adjust = {"adjust": self._read_path.adjusted.explain(request)} if request.adjust else {}
        narrowed = self._read_path.filtered.narrowed(request)
        told = self._read_path.inspection.explain(replace(narrowed.request, adjust=None, adjust_ref=None))
        return {**told, **adjust, **self._read_path.filtered.told(request, narrowed)}

    # Memory

    def _warm(self, body: Arguments) -> dict[str, Any]:
        return self._ahead.warmer.explain() if dict(body) == {"explain": True} else self._ahead.wishes.warm(body)

    def _evict(self, body: Arguments) -> dict[str, Any]:
        if not body:
            return {"evicted_bytes": self._ground.hot.evict()}
        state = self._ground.store.state(arguments.dataset(body))
        return {"evicted_bytes": self._ground.hot.evict(self._hot_keys(state))}

    def _hot_keys(self, state: DatasetState) -> set[str]:
        """Return the keys of what may be in memory of a dataset: its files, and prices adjusted from them."""
        return {file.key for file in state.files} | self._read_path.adjusted.kept_keys(state.dataset.name)

    # What is held

    def _invalidate(self, request: ReadRequest) -> dict[str, Any]:
        state = self._ground.store.state(request.dataset)
        if state.is_table:
            raise InvalidRequest(f"{request.dataset} is a user table: nothing could fetch it again; use delete")
        plan, _ = self._read_path.reads.explain(replace(request, on_miss="cached"))  # forgetting asks nobody
        symbols = plan.symbols if request.symbols is not None else None
        adjacent = self._ground.calendars.get(state.dataset.calendar).adjacent
        self._ground.store.commit(Forget(request.dataset, symbols, plan.wanted, adjacent))
        self._upstream.desk.guard.forget(request.dataset, symbols)
        return {"dataset": request.dataset, "symbols": len(plan.symbols) if symbols else "all"}

    def _delete(self, dataset: str) -> dict[str, Any]:
        store = self._ground.store
        state = store.state(dataset)
        store.commit(Delete(dataset))
        store.undeclare(dataset)
        self._ground.hot.drop(self._hot_keys(state), {file.lineage for file in state.files})
        if (offered := self._upstream.desk.offers.get(dataset)) is not None:  # what was held is gone, the offer stands
            store.commit(Define(offered, state.source))
        return {"dataset": dataset, "deleted_rows": sum(file.rows for file in state.files)}

    def _retention(self, body: Arguments) -> dict[str, Any]:
        dataset, days = arguments.dataset({"dataset": body.get("dataset")}), arguments.history_days(body)
        self._ground.store.state(dataset)
        self._ground.store.commit(Retain(dataset, days))
        return {"dataset": dataset, "history_days": self._ground.settings.history_days if days is None else days}

    def _vacuum(self, body: Arguments) -> dict[str, Any]:
        store, days = self._ground.store, arguments.history_days(body)
        if body.get("dataset") is None:
            states = store.catalogue.states()
        else:
            states = [store.state(arguments.dataset({"dataset": body["dataset"]}))]
        return {"freed_bytes": sum(store.vacuum(state.dataset.name, days) for state in states)}

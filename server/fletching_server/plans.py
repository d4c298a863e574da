"""The plans of one engine: what a request resolves to now. One that time alone cannot make wrong is kept for the next asker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from fletching_schemas import ReadRequest
from fletching_schemas.errors import InvalidRequest, SourceError, UnknownSymbol
from fletching_server.almanac import Calendars
from fletching_server.desk import Desk
from fletching_server.gaps import World, present_session
from fletching_server.plan import Plan, named_symbols, resolve
from fletching_server.snapshot import DatasetState, Life
from fletching_server.spans import PROVISIONAL, UNCONFIRMED
from fletching_server.store import Store

_MOST_KEPT: Final = 4096  # plans; each is a few hundred bytes


class Plans:
    """The plans of one engine, safe from any thread."""

    def __init__(self, store: Store, desk: Desk, calendars: Calendars) -> None:
        self._store, self._desk, self._calendars = store, desk, calendars
        self._kept: dict[tuple[ReadRequest, int, int, int], Plan] = {}

    def of(self, request: ReadRequest, state: DatasetState, now: datetime) -> Plan:
        """Return the plan of *request*; one that only a commit, an opening or a settlement can change is kept for next time."""
        if request.as_of is not None:
            return self._resolved(request, state, now)  # the same past is made of other files after a fold
        calendar = self._calendars.get(state.dataset.calendar)
        present = present_session(state.dataset, calendar, now)
        key = (request, state.generation, present, calendar.settled_through(now))
        if (kept := self._kept.get(key)) is not None:
            return kept
        plan = self._resolved(request, state, now)
        lasting = request.symbols is not None or state.is_table  # else the source's list of symbols decides
        if lasting and not (plan.gaps or plan.due) and not _ages(plan, state, request):
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            plan = self._kept[key] = replace(plan, lasting=True, asked=request)
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


def _ages(plan: Plan, state: DatasetState, request: ReadRequest) -> bool:
    """Return whether time alone can make *plan* wrong, before the next session settles or the day ends."""
    return any(
        span.state == PROVISIONAL or (span.state == UNCONFIRMED and request.max_age is not None)
        for symbol in plan.symbols
        for span in state.coverage.get(symbol, ())
        if span.first <= plan.wanted.last and span.last >= plan.wanted.first
    )

"""Having rows where a read will find them, before it asks: fetched to disk in calls that people go before, then loaded.

Nothing of this is a use: whether it was worth it, reads decide. Files are held whole, as reads hold them, so the columns of a
wish make no difference. What is larger than memory, or than the disk may hold, is refused before anything moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pydantic import ByteSize

from fletching_schemas import ReadRequest
from fletching_schemas.errors import Error, InvalidRequest
from fletching_server.almanac import Calendars
from fletching_server.calendars import from_day_number
from fletching_server.clock import Clock
from fletching_server.cold import ColdTier
from fletching_server.desk import Desk
from fletching_server.gaps import sweepable
from fletching_server.hot import HotTier
from fletching_server.needs import Needs, needs
from fletching_server.plan import Plan
from fletching_server.reads import Reads
from fletching_server.settings import Settings
from fletching_server.snapshot import StoredFile
from fletching_server.stats import Stats
from fletching_server.store import Store

_FIELDS: Final = frozenset({"dataset", "symbols", "start", "end", "columns", "adjust", "max_age", "profile", "progress_id"})
SURE: Final = 0.999  # of what somebody wishes for
_MOST_TOLD: Final = 20  # symbols that failed


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


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

    @property
    def did_something(self) -> bool:
        """Whether anything moved."""
        return bool(self.upstream_calls or self.loaded_files)


class Warming:
    """The doing of one engine: explicit wishes, and what the warmer decides."""

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        cold: ColdTier,
        reads: Reads,
        desk: Desk,
        calendars: Calendars,
        clock: Clock,
        stats: Stats,
        settings: Settings,
    ) -> None:
        self._store, self._hot, self._cold, self._reads, self._desk = store, hot, cold, reads, desk
        self._calendars, self._clock, self._stats = calendars, clock, stats
        self._most_disk = int(settings.disk * settings.disk_low)

    # Wishes

    def wish(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was done, or with *explain* what would be, so that a read of these arguments finds its rows.

        Raises ``InvalidRequest`` where they do not fit, and what a read raises where nothing could be fetched.
        """
        request, memory, explain = _wish(body)
        requests = [replace(request, adjust=None), *self._factors(request)]
        wanted = [self.needed(each) for each in requests]
        self._check_fits(request, wanted, memory=memory)
        told = {"dataset": request.dataset, "symbols": wanted[0].symbols, "cells": sum(each.cells for each in wanted)}
        if explain:
            return told | _added(wanted)
        done, started, failed = Warmed(), self._clock.monotonic(), dict[str, Error]()
        for each in requests:
            failed |= self.bring(each, done, memory=memory)
        seconds = round(self._clock.monotonic() - started, 6)
        failures = {symbol: error.message for symbol, error in list(failed.items())[:_MOST_TOLD]}
        return told | asdict(done) | {"seconds": seconds, "failed_symbols": len(failed), "failed": failures}

    def _factors(self, request: ReadRequest) -> list[ReadRequest]:
        """Return the read of factors that an adjusted read makes; none where it is not adjusted."""
        if request.adjust is None:
            return []
        dataset = self._store.state(request.dataset).dataset
        if dataset.factors is None:
            raise InvalidRequest(f"the prices of {dataset.name} cannot be adjusted: no dataset has its factors")
        plan, _ = self._reads.explain(replace(request, adjust=None, on_miss="cached"))
        until = from_day_number(plan.wanted.last)
        return [replace(request, dataset=dataset.factors, adjust=None, columns=None, start=None, end=until, progress_id=None)]

    def _check_fits(self, request: ReadRequest, wanted: list[Needs], *, memory: bool) -> None:
        size, most = sum(each.bytes for each in wanted), self._hot.main_bytes
        if memory and size > most:
            raise InvalidRequest(
                f"{request.dataset}: what this warms takes about {_told(size)} in memory, which holds {_told(most)}: name fewer "
                "symbols or sessions, raise `memory`, or warm the disk alone (memory=False)"
            )
        size, most = sum(each.disk_bytes for each in wanted), self._disk_room()
        if self._most_disk and size > most:
            raise InvalidRequest(
                f"{request.dataset}: what is missing takes about {_told(size)} on disk, where {_told(most)} are left to fetched "
                "rows: name fewer symbols or sessions, or raise `disk`"
            )

    def _disk_room(self) -> int:
        tables = sum(file.bytes for state in self._store.catalogue.states() if state.is_table for file in state.files)
        return max(0, self._most_disk - tables)

    # The two steps

    def needed(self, request: ReadRequest) -> Needs:
        """Return what having the rows of *request* would take; nobody is asked for it but for a list of symbols."""
        plan, _ = self._reads.explain(request)
        state = self._store.state(request.dataset)
        return needs(plan, state, sweepable(state.dataset, plan.calendar, self._clock.now()))

    def bring(
        self, request: ReadRequest, done: Warmed, *, memory: bool, chance: float = SURE, stop: Callable[[], bool] = never
    ) -> Mapping[str, Error]:
        """Fetch what is missing for *request*, load it with *memory*, add to *done* what that took; return what failed."""

        def load(plan: Plan) -> None:
            for file in plan.files if memory else ():
                if stop():
                    return
                self._load(plan, file, done, chance)

        prepared = self._reads.prepare(request, load)
        done.upstream_calls += prepared.upstream_calls
        done.joined_calls += prepared.joined_calls
        done.rows += prepared.rows
        return prepared.failed

    def _load(self, plan: Plan, file: StoredFile, done: Warmed, chance: float) -> None:
        if self._hot.holds(file.key):
            done.held_files += 1
            return
        lease = self._hot.load(self._hot.item(file), lambda: self._cold.whole(plan.dataset, file), chance=chance)
        if lease is None:
            done.refused_files += 1
            return
        lease.release()
        done.loaded_files += 1
        done.loaded_bytes += file.memory_bytes


def _wish(body: Mapping[str, Any]) -> tuple[ReadRequest, bool, bool]:
    flags = {name: body.get(name, default) for name, default in (("memory", True), ("explain", False))}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}={value!r:.40}; it is true or false")
    asked = {name: value for name, value in body.items() if name not in flags}
    if unknown := sorted(set(asked) - _FIELDS):
        there = ", ".join(sorted(_FIELDS | flags.keys()))
        raise InvalidRequest(f"unknown argument {', '.join(unknown)[:90]}; there are {there}")
    if "dataset" not in asked:
        raise InvalidRequest("name the dataset that is to be warmed")
    return ReadRequest(**asked), flags["memory"], flags["explain"]


def _added(wanted: list[Needs]) -> dict[str, Any]:
    names = ("calls", "bytes", "missing_bytes", "disk_bytes")
    return {name: sum(getattr(each, name) for each in wanted) for name in names}


def _told(size: int) -> str:
    return ByteSize(size).human_readable()

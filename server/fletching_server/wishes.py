"""The verb ``warm``: somebody says what should be ready. What does not fit in memory, or on the disk, is refused first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import count
from typing import Any, Final

from pydantic import ByteSize

from fletching_schemas import ReadRequest
from fletching_schemas.errors import InvalidRequest
from fletching_server.calendars import from_day_number
from fletching_server.clock import Clock
from fletching_server.hot import HotTier
from fletching_server.needs import Needs
from fletching_server.reads import Reads
from fletching_server.settings import Settings
from fletching_server.store import Store
from fletching_server.system import refuse_system
from fletching_server.warming import Task, Warmed, Warming

_FIELDS: Final = frozenset({"dataset", "symbols", "start", "end", "columns", "adjust", "max_age", "profile", "progress_id"})
_MOST_TOLD: Final = 20  # symbols that failed
_GOOD_SECONDS: Final = 86_400.0  # for so long a read counts as the one that was meant


class Wishes:
    """The explicit wishes of one engine."""

    def __init__(self, store: Store, hot: HotTier, reads: Reads, warming: Warming, clock: Clock, settings: Settings) -> None:
        self._store, self._hot, self._reads, self._warming, self._clock = store, hot, reads, warming, clock
        self._most_disk = int(settings.disk * settings.disk_low)
        self._numbers = count(1)

    def warm(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was done, or with *explain* what would be, so that a read of these arguments finds its rows.

        Raises ``InvalidRequest`` where they do not fit, and what a read raises where nothing could be fetched.
        """
        request, memory, explain = _wish(body)
        requests = [replace(request, adjust=None), *self._factors(request)]
        wanted = [self._warming.estimate(each).needs for each in requests]
        self._check_fits(request, wanted, memory=memory)
        told = {"dataset": request.dataset, "symbols": wanted[0].symbols, "cells": sum(each.cells for each in wanted)}
        if explain:
            return told | _added(wanted)
        done, until = Warmed(), self._clock.now().timestamp() + _GOOD_SECONDS
        for each in requests:
            done += self._warming.do(Task(f"wish {next(self._numbers)}", "explicit", each, memory, until))
        failures = {symbol: error.message for symbol, error in list(done.failed.items())[:_MOST_TOLD]}
        return told | asdict(done) | {"failed": failures, "failed_symbols": len(done.failed), "seconds": round(done.seconds, 6)}

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
    refuse_system(asked["dataset"])
    return ReadRequest(**asked), flags["memory"], flags["explain"]


def _added(wanted: list[Needs]) -> dict[str, Any]:
    names = ("calls", "bytes", "missing_bytes", "disk_bytes")
    return {name: sum(getattr(each, name) for each in wanted) for name in names}


def _told(size: int) -> str:
    return ByteSize(size).human_readable()

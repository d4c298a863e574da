"""The call cache: any function of a source's library by name and arguments, one upstream call for the whole team.

What is kept is what the library returned, under the function, its arguments and the library's version. Equal calls at the same
time share one upstream call, and its error; an error is never kept. While the source cannot be asked, an old answer is served
and says so, unless the caller set ``max_age``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import structlog

from fletching_schemas.calls import CallInfo, CallRequest
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    InternalError,
    NotCached,
    SourceTimeout,
    SourceUnavailable,
    StoreError,
    copy_of,
)
from fletching_server import disk
from fletching_server.answers import Answers, Stored
from fletching_server.clock import Clock
from fletching_server.desk import Desk
from fletching_server.library import Libraries, bound
from fletching_server.sources.protocol import Metered
from fletching_server.stats import Stats

log = structlog.get_logger(__name__)

_CLOCK_SLACK_SECONDS: Final = 60.0  # a clock may be set back a little; an answer from further ahead has no known age


@dataclass(frozen=True)
class _Asked:
    """A call, bound and normalised: ``stored`` is what is kept about it."""

    request: CallRequest
    stored: Stored
    arguments: Mapping[str, Any]
    limit_seconds: float
    version: str | None

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r:.40}" for name, value in self.arguments.items())
        return f"{self.stored.source}.{self.stored.function}({told[:200]})"


@dataclass(frozen=True)
class _Answer:
    table: pa.Table
    stored: Stored
    fetched: bool


@dataclass(frozen=True, eq=False)
class _Flight:
    landed: Future[_Answer] = field(default_factory=Future)


class Calls:
    """The calls of one engine, safe to use from any thread."""

    def __init__(self, root: Path, desk: Desk, clock: Clock, stats: Stats, most_bytes: int, at_once: int) -> None:
        self._desk, self._clock, self._stats = desk, clock, stats
        # So many calls to a source at a time; whoever waits for a turn waits before the deadline of the call begins.
        self._turns = {
            name: threading.BoundedSemaphore(min(at_once, getattr(source, "concurrent_calls", at_once)))
            for name, source in desk.callers.items()
        }
        self._answers = Answers(root / "calls", most_bytes)
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._libraries = Libraries(desk)

    def call(self, request: CallRequest) -> pa.Table:
        """Return what the function returned, now or at most as long ago as is allowed; its metadata holds a ``CallInfo``.

        Without a function: the table of functions. Raises ``UnknownFunction``, ``InvalidRequest``, ``NotCached``, or what
        the source raised.
        """
        if request.function is None:
            return self._libraries.functions(request.source)
        asked = self._asked(request, request.function)
        self._stats.add(calls=1)
        held = self._held(asked)
        if held is not None and self._fresh(held, asked):
            self._stats.add(call_hits=1)
            return self._told(held, asked)
        return self._told(self._absent(asked, held), asked)

    def _absent(self, asked: _Asked, held: _Answer | None) -> _Answer:
        """Return the answer where none that is kept is fresh."""
        if asked.request.on_miss == "fill":
            return self._filled(asked, held)
        if asked.request.on_miss == "cached" and held is not None:
            return held
        raise NotCached(f"no answer of {asked} is held that is young enough; leave on_miss out to ask the source")

    # What is asked

    def _asked(self, request: CallRequest, function: str) -> _Asked:
        name = self._libraries.source(request.source)
        library = self._libraries.look_up(name, function)
        arguments = bound(function, library.parameters, request)
        text = json.dumps(arguments, sort_keys=True, allow_nan=False)
        key = disk.digest(json.dumps([name, function, text]).encode())
        limit = request.tolerated_age
        return _Asked(
            request,
            Stored(key, name, function, text, library.version or "", 0.0),
            arguments,
            library.fresh_seconds if limit is None else limit,
            library.version,
        )

    # What is held

    def _held(self, asked: _Asked) -> _Answer | None:
        try:
            found = self._answers.find(asked.stored.key)
        except StoreError as error:  # what cannot be read can be fetched
            log.warning("kept answers cannot be read", error=str(error))
            return None
        return found and _Answer(found[1], found[0], fetched=False)

    def _age(self, stored: Stored) -> float:
        return self._clock.now().timestamp() - stored.fetched_at

    def _fresh(self, answer: _Answer, asked: _Asked) -> bool:
        age = self._age(answer.stored)
        return answer.stored.version == asked.version and -_CLOCK_SLACK_SECONDS <= age <= asked.limit_seconds

    def _told(self, answer: _Answer, asked: _Asked) -> pa.Table:
        stored = answer.stored
        info = CallInfo(
            stored.source,
            stored.version,
            datetime.fromtimestamp(stored.fetched_at, UTC),
            max(0.0, self._age(stored)),
            stale=not answer.fetched and not self._fresh(answer, asked),
            cached=not answer.fetched,
        )
        return answer.table.replace_schema_metadata({**(answer.table.schema.metadata or {}), **info.to_metadata()})

    # What is fetched

    def _filled(self, asked: _Asked, held: _Answer | None) -> _Answer:
        while True:
            flight, own = self._embark(asked.stored.key)
            if own:
                self._fly(flight, asked)
            try:
                answer = flight.landed.result()
            except (SourceUnavailable, SourceTimeout) as error:
                if held is None or asked.request.max_age is not None:
                    raise copy_of(error) from error
                log.info("an old answer is served", call=str(asked), why=str(error))
                return held
            except Error as error:
                raise copy_of(error) from error
            # What was found by looking again suited another caller: it may be too old for this one.
            if answer.fetched or self._fresh(answer, asked):
                return answer

    def _embark(self, key: str) -> tuple[_Flight, bool]:
        """Return the flight for *key*, and whether it is the caller's own to fly."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight()
            return flight, True

    def _fly(self, flight: _Flight, asked: _Asked) -> None:
        """Land *flight*, whatever happens.

        It looks at what is held once more, because of this order of events: A looks and finds nothing; B's flight lands and
        leaves; A finds no flight to join. Without looking again A would ask for what B has just stored.
        """
        try:
            held = self._held(asked)
            answer = held if held is not None and self._fresh(held, asked) else self._fetched(asked)
        except Error as error:
            self._leave(asked)
            flight.landed.set_exception(error)
        except BaseException as error:
            log.exception("a call failed", call=str(asked))
            self._leave(asked)
            flight.landed.set_exception(InternalError(f"{asked} failed: {type(error).__name__}; see the server's log"))
            raise
        else:
            self._leave(asked)
            flight.landed.set_result(answer)

    def _leave(self, asked: _Asked) -> None:
        with self._lock:
            del self._flights[asked.stored.key]

    def _fetched(self, asked: _Asked) -> _Answer:
        name, function = asked.stored.source, asked.stored.function
        source = self._desk.callers.get(name)
        if source is None:
            raise SourceUnavailable(self._libraries.nobody(name))
        asked_at = self._clock.now().timestamp()
        self._stats.add(upstream_calls=1)
        try:
            cost = 0 if isinstance(source, Metered) else 1  # a metered one counts its requests itself
            upstream: Any = source
            with self._turns[name]:
                table = self._desk.ask(upstream, function, str(asked), lambda: source.call(function, asked.arguments), cost=cost)
            if not isinstance(table, pa.Table):
                raise BadSourceData(f"{asked} returned a {type(table).__name__}; Caller.call returns an Arrow table")
        except Error:
            self._stats.add(failed_fills=1)
            raise
        stored = Stored(asked.stored.key, name, function, asked.stored.arguments, asked.stored.version, asked_at)
        self._keep(stored, table)
        return _Answer(table, stored, fetched=True)

    def _keep(self, stored: Stored, table: pa.Table) -> None:
        try:
            if not self._answers.put(stored, table):
                log.warning("an answer is not kept: it is larger than call_cache", function=stored.function, bytes=table.nbytes)
        except StoreError as error:  # whoever asked gets the answer all the same
            log.warning("an answer could not be kept", function=stored.function, error=str(error))

    def facts(self) -> dict[str, int]:
        """Return how many answers are kept, and their bytes on disk."""
        return self._answers.facts()

    def problems(self) -> list[str]:
        """Return what is wrong with the kept answers; an empty list is the good answer."""
        return self._answers.problems()

    def close(self) -> None:
        """Close the database of answers; calls under way end with the desk's ``release``."""
        self._answers.close()
